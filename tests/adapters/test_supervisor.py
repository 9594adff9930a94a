"""Platforms are independent: a fault of one neither stops nor delays another."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from types import MappingProxyType

import pytest

from bot.adapters.supervisor import SupervisedAdapter, serve_platforms
from bot.chat.access import OPERATOR
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.domain import ChannelKey, Scope
from bot.errors import BotError, LoginRefused, PlatformUnavailable, StoreError
from bot.observability.health import Components, Health
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import Harness, notice_of
from tests.harness.messages import MEI, a_message
from tests.harness.platform import TIMEOUT


class Scripted:
    """An adapter whose runs end as told; None serves until cancelled."""

    is_connected = False

    def __init__(self, ends: Iterable[Exception | str | None]) -> None:
        self.ends = iter(ends)
        self.runs = 0

    async def run(self, intake: Intake) -> None:
        self.runs += 1
        end = next(self.ends, None)
        self.is_connected = end is None
        try:
            if end is None:
                await asyncio.Event().wait()
            if isinstance(end, Exception):
                raise end
        finally:
            self.is_connected = False


class Bench:
    """Platforms under supervision, on a clock that the test moves."""

    def __init__(
        self,
        adapters: dict[str, Scripted],
        *,
        is_final: Callable[[str], bool],
        ends_all: bool = False,
        turns: Mapping[str, AbstractAsyncContextManager[None]] = MappingProxyType({}),
    ) -> None:
        self.clock = ManualClock()
        self.platforms = {
            name: SupervisedAdapter(
                name,
                lambda adapter=adapter: adapter,  # type: ignore[misc]
                self.clock,
                is_final=is_final(name),
                ends_all=ends_all and is_final(name),
                turn=turns.get(name),
            )
            for name, adapter in adapters.items()
        }
        self.components = Components(engine=ScriptedEngine(), adapters=self.platforms)
        self.serving: asyncio.Task[None]

    async def parts(self) -> dict[str, str | None]:
        return {each.component: each.reason for each in await Health(self.components, 60.0, self.clock).readiness()}

    async def words(self) -> dict[str, str]:
        return {each.component: each.word for each in await Health(self.components, 60.0, self.clock).readiness()}


@asynccontextmanager
async def served(
    harness: Harness,
    adapters: dict[str, Scripted],
    *,
    requires_all: bool = False,
    final: str = "",
    ends_all: bool = False,
    turns: Mapping[str, AbstractAsyncContextManager[None]] | None = None,
) -> AsyncIterator[Bench]:
    bench = Bench(adapters, is_final=lambda name: name == final, ends_all=ends_all, turns=turns or {})
    work = serve_platforms(list(bench.platforms.values()), harness.intake, requires_all=requires_all)
    bench.serving = asyncio.create_task(work)
    await bench.clock.advance(0)
    yield bench
    bench.serving.cancel()
    await asyncio.gather(bench.serving, return_exceptions=True)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_a_refused_platform_is_named_and_tried_again(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    refused = LoginRefused("Slack rejects the token")
    slack, telegram = Scripted([refused, refused, ExceptionGroup("", [refused]), None]), Scripted([None])
    async with served(harness, {"slack": slack, "telegram": telegram}) as bench:
        assert (await bench.parts())["slack"] == "Slack rejects the token"
        assert (await bench.parts())["telegram"] is None
        await bench.clock.advance(599)
        assert slack.runs == 1
        await bench.clock.advance(1 + 2 * 600)
        assert slack.runs == 4
        assert (await bench.parts())["slack"] is None, "the token was accepted"
        assert telegram.runs == 1
    (error,) = errors(caplog)
    assert "platform refused" in error


async def test_settings_of_the_chat_are_loaded_before_a_platform_starts(harness: Harness) -> None:
    here = ChannelKey("slack", "C01", "1718.2")
    await harness.intake.choices.set(Scope("channel", "slack:C01"), "answer", MEI, "all")
    restarted, seen = Intake(harness.access, harness.engine, harness.store, ChatSettings()), asyncio.Event()

    class Listening(Scripted):
        async def run(self, intake: Intake) -> None:
            assert intake.settings.rules.answers_all(here, None)
            seen.set()
            await super().run(intake)

    bench = Bench({"slack": Listening([None])}, is_final=lambda name: False)
    serving = asyncio.create_task(serve_platforms(list(bench.platforms.values()), restarted, requires_all=False))
    async with asyncio.timeout(TIMEOUT):
        await seen.wait()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_who_leaves_the_terminal_ends_the_program_and_the_end_of_a_pipe_does_not(harness: Harness) -> None:
    for ends_all in (True, False):
        console, web = Scripted(["ends"]), Scripted([None])
        async with served(harness, {"web": web, "console": console}, final="console", ends_all=ends_all) as bench:
            assert bench.serving.done() is ends_all
            assert web.is_connected is not ends_all


@pytest.mark.parametrize(
    "end",
    [
        ZeroDivisionError("a bug"),
        ExceptionGroup("", [KeyError("a bug")]),
        PlatformUnavailable("gone"),
        StoreError("full"),
        "ends",
    ],
)
async def test_a_platform_that_stops_is_restarted_beside_the_others(
    end: Exception | str, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = Scripted([end] * 5), Scripted([None])
    async with served(harness, {"discord": broken, "telegram": other}) as bench:
        await bench.clock.advance(0.5)
        assert broken.runs == 1
        assert (await bench.parts())["discord"] is not None
        await bench.clock.advance(0.5 + 2 + 4 + 8)
        assert broken.runs == 5
        await bench.clock.advance(16)
        assert broken.runs == 6
        assert (await bench.parts())["discord"] is None
        assert other.runs == 1
    assert len(errors(caplog)) == 5
    is_bug = not isinstance(end, BotError | str)
    assert bool([record for record in caplog.records if record.exc_info]) is is_bug


async def test_the_program_ends_when_no_platform_is_left(harness: Harness) -> None:
    first, second = (
        Scripted([LoginRefused("one"), LoginRefused("one")]),
        Scripted([PlatformUnavailable("later"), LoginRefused("two")]),
    )
    async with served(harness, {"slack": first, "telegram": second}) as bench:
        assert not bench.serving.done()
        await bench.clock.advance(1)
        (group,) = await asyncio.gather(bench.serving, return_exceptions=True)
    assert isinstance(group, ExceptionGroup)
    (refusal,) = group.exceptions
    assert isinstance(refusal, LoginRefused)
    assert str(refusal) == "one\ntwo"
    assert refusal.exit_code == 2


async def test_one_refusal_is_enough_where_all_platforms_are_required(harness: Harness) -> None:
    adapters = {"slack": Scripted([LoginRefused("revoked")]), "telegram": Scripted([None])}
    async with served(harness, adapters, requires_all=True) as bench:
        (group,) = await asyncio.gather(bench.serving, return_exceptions=True)
    assert isinstance(group, ExceptionGroup)
    assert [str(each) for each in group.exceptions] == ["revoked"]


async def test_a_console_that_ends_leaves_the_platforms(harness: Harness) -> None:
    async with served(harness, {"console": Scripted(["ends"]), "slack": Scripted([None])}, final="console") as bench:
        assert not bench.serving.done()
    async with served(harness, {"console": Scripted(["ends"])}, final="console") as bench:
        await bench.serving


async def test_a_console_that_ends_beside_a_refused_platform_ends_the_program(harness: Harness) -> None:
    adapters = {"slack": Scripted([LoginRefused("revoked")]), "console": Scripted(["ends"])}
    async with served(harness, adapters, final="console") as bench:
        (group,) = await asyncio.gather(bench.serving, return_exceptions=True)
    assert isinstance(group, ExceptionGroup)
    assert [str(each) for each in group.exceptions] == ["revoked"]


async def test_readiness_needs_one_platform_or_all_where_that_is_set(harness: Harness) -> None:
    async with served(harness, {"slack": Scripted([LoginRefused("revoked")]), "telegram": Scripted([None])}) as bench:
        for requires_all in (False, True):
            health = Health(bench.components, 60.0, bench.clock, requires_all_platforms=requires_all)
            needed = {each.component: each.is_needed for each in await health.readiness()}
            assert needed["slack"] is requires_all
    async with served(harness, {"slack": Scripted(["ends"]), "telegram": Scripted(["ends"])}) as bench:
        needed = {
            each.component: each.is_needed for each in await Health(bench.components, 60.0, bench.clock).readiness()
        }
        assert needed["slack"]
        assert needed["telegram"]


async def test_status_tells_admins_which_platform_is_not_served(harness: Harness) -> None:
    adapters = {"slack": Scripted([LoginRefused("Slack rejects the token")]), "telegram": Scripted([None])}
    async with served(harness, adapters) as bench:
        intake = Intake(harness.access, harness.engine, harness.store, harness.settings, components=bench.components)
        exchange = await intake.accept(replace(a_message("/status"), author=OPERATOR))
        assert exchange is not None
        async with intake.answers.stream(exchange) as stream:
            told = notice_of([event async for event in stream])
    assert "Not connected: slack (Slack rejects the token)" in told
    assert "Not connected: telegram" not in told


async def test_a_question_that_a_platform_had_taken_and_not_begun_is_answered_by_its_next_run(harness: Harness) -> None:
    message, owed = a_message("what is a shell?"), list[str]()
    ran = asyncio.Semaphore(0)

    class Cut(Scripted):
        async def run(self, intake: Intake) -> None:
            owed.extend(each.message.id for each in await intake.recover("discord"))
            if self.runs == 0:
                assert await intake.accept(message) is not None
            ran.release()
            await super().run(intake)

    async with served(harness, {"discord": Cut([PlatformUnavailable("gone")])}) as bench, asyncio.timeout(TIMEOUT):
        await ran.acquire()
        await bench.clock.advance(2)
        await ran.acquire()
    assert owed == [message.id]


class Turn:
    """The turn of a platform that another bot serves; it notes its end."""

    def __init__(self) -> None:
        self.comes, self.has_ended = asyncio.Event(), False

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        await self.comes.wait()
        try:
            yield
        finally:
            self.has_ended = True


async def test_a_platform_of_another_bot_is_served_once_its_turn_has_come(harness: Harness) -> None:
    turn, adapters = Turn(), {"discord": Scripted([]), "slack": Scripted([])}
    async with served(harness, adapters, turns={"slack": turn.wait()}) as bench:
        assert adapters["discord"].runs == 1
        assert adapters["slack"].runs == 0
        words = await bench.words()
        assert (words["discord"], words["slack"]) == ("ok", "standby")
        assert bench.components.is_serving
        turn.comes.set()
        await bench.clock.advance(0)
        assert adapters["slack"].runs == 1
        assert (await bench.words())["slack"] == "ok"
        assert not turn.has_ended
    assert turn.has_ended


async def test_a_bot_whose_platforms_are_all_served_by_others_is_ready_and_serves_none(harness: Harness) -> None:
    adapters = {"discord": Scripted([]), "slack": Scripted([])}
    async with served(harness, adapters, turns={name: Turn().wait() for name in adapters}) as bench:
        parts = await bench.parts()
        assert (parts["discord"], parts["slack"]) == (None, None)
        assert not bench.components.is_serving
