"""R19: answers that are wrong: HTML, torn, dripping, redirected, refused in passing, undone.

The kinds are in wrong_kinds.py.  Each is given to the first call that sends, edits, edits for
the last time, or reads what was missed (getUpdates on Telegram), each in a conversation of
its own; later calls get real answers.  Then each question must have one whole answer.
"""

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from bot.adapters.slack import client as slack_client
from bot.adapters.telegram import handlers as telegram_handlers
from bot.delivery.view import PLACEHOLDER
from bot.domain import Action, ChatRequest
from bot.errors import BotError
from tests.adapters.lossless_runs import asked, flowing
from tests.chaos.calls import call_of, channel_of, messages_of, place_of
from tests.chaos.figure import Row, Scale
from tests.chaos.wrong_kinds import HOPELESS, WRITING, Genuine, Kind, Operation, kinds, rate_limit
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces
from tests.harness.servers import discord_gateway, slack_wire, telegram

NAME = "R19"

# Speed of the bot's clock: the longest wait that a Retry-After can ask for, an hour, takes 2 s.
FACTOR = 1800.0
# Seconds for a call, after which it is repeated; a busy machine answers within.
_CALL_SECONDS = 1.0
# Seconds without progress, after which a question counts as lost.
_TIMEOUT = 120.0
_CONCURRENT = 12
_DELTAS, _DELTA_SECONDS = 6, 0.02
_MOST_LOST = 5
# Seconds for a second answer to appear.
_LATER_SECONDS = 0.3
_SHORT = 12
_SHOWN = 40  # faults
_TOKENS = (discord_gateway.TOKEN, telegram.TOKEN, slack_wire.BOT_TOKEN, slack_wire.APP_TOKEN)
# Retry-After 0 again and again: seconds of the bot's clock, and the most calls within.
_PRESSED_FACTOR, _PRESSED_SECONDS, _MOST_CALLS = 40.0, 60.0, 30


@dataclass(slots=True)
class Case:
    """One kind at one operation, in a conversation of its own."""

    kind: Kind
    operation: Operation
    number: int
    left: int = 0  # wrong answers still to give

    @property
    def question(self) -> str:
        return f"q{self.number}e"

    @property
    def room(self) -> str:
        return f"room{self.number}"

    @property
    def answer(self) -> str:
        return "".join(_deltas(self.question))

    def __str__(self) -> str:
        return f"{self.kind.name} at {self.operation}"


@dataclass
class Verdicts:
    """The outcome of all cases of one platform."""

    kinds: set[str] = field(default_factory=set)
    whole: int = 0
    hopeless: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    left_behind: int = 0
    given: int = 0
    elsewhere: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = self.whole + len(self.faults) + sum(map(len, self.hopeless.values()))
        told = f"{len(self.kinds)} kinds, {total} conversations, {self.given} wrong answers: one whole answer in "
        told += f"{self.whole}, wrong {len(self.faults)}, redirected calls with the token {len(self._with_token)} of "
        told += f"{len(self.elsewhere)}, left-over placeholders {self.left_behind}; beyond help: "
        told += ", ".join(f"{name} ({'; '.join(found)})" for name, found in self.hopeless.items())
        return told + "".join(f"\n     {fault}" for fault in [*self.faults, *self._with_token][:_SHOWN])

    @property
    def _with_token(self) -> list[str]:
        return [call for call in self.elsewhere if any(token in call for token in _TOKENS)]

    @property
    def is_kept(self) -> bool:
        return not (self.faults or self._with_token)


class Wrongs:
    """Gives wrong answers to the calls of the cases under way."""

    def __init__(self, platform: Any, elsewhere: str, seed: int) -> None:
        self._platform = platform
        self._elsewhere = elsewhere
        self._chance = random.Random(f"{seed} {platform.name} wrong")
        self.cases: dict[str, Case] = {}  # by the platform's id of the channel; "" gets Telegram's polls
        self.given = 0

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith("/nowhere"):
            return web.Response(status=404, text="<html>", content_type="text/html")
        operation, channel = await call_of(self._platform.name, request)
        # A poll is held open, and may have begun before its case.
        polled = await handler(request) if channel == "" else None
        case = self.cases.get(channel)
        if case is None or case.left == 0 or operation not in case.operation:
            return await handler(request) if polled is None else polled
        if case.operation == "last edit" and Action.RETRY.value.encode() not in await request.read():
            return await handler(request)
        kind, body = case.kind, None
        if case.operation == "catch-up" or kind.after:
            messages = messages_of(self._platform)
            before = {id: copy.copy(message) for id, message in messages.items()} if kind.is_undone else {}
            real = await handler(request) if polled is None else polled
            body = real.body if isinstance(real, web.Response) and isinstance(real.body, bytes) else b""
            if real.status != 200 or case.left == 0 or (channel == "" and b'"result": []' in body):
                return real  # the server's own refusal, or a poll that brings nothing
            if kind.is_undone:
                self._undo(before, channel)
        case.left -= 1
        self.given += 1
        return kind.answer(Genuine(self._platform.name, case.operation, body, self._elsewhere, self._chance))

    def _undo(self, before: dict[Any, Any], channel: str) -> None:
        messages = messages_of(self._platform)
        for id, message in list(messages.items()):
            if channel_of(self._platform.name, message) == channel:
                if id in before:
                    messages[id] = before[id]
                else:
                    del messages[id]
        if self._platform.name == "discord":
            self._platform.forget_nonces()


def _deltas(question: str) -> list[str]:
    return [f"{question}.{number} some words 一些文字 " for number in range(_DELTAS)]


def _engine() -> ScriptedEngine:
    def answer(request: ChatRequest) -> AnswerScript:
        return flowing(_deltas(asked(request)), _DELTA_SECONDS)

    return ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=64, max_waiting=10_000)


async def verdicts_of(name: str, chosen: Sequence[tuple[Kind, Operation]], seed: int) -> Verdicts:
    """Have each case answered wrongly, and judge its conversation."""
    verdicts = Verdicts({kind.name for kind, _ in chosen})
    cases = [Case(kind, operation, number, kind.times) for number, (kind, operation) in enumerate(chosen)]
    wrongs: list[Wrongs] = []
    async with _elsewhere(verdicts.elsewhere) as url:

        @asynccontextmanager
        async def around(platform: Any) -> AsyncIterator[None]:
            platform.call_seconds = _CALL_SECONDS
            if platform.name == "telegram":
                platform.now = datetime.now(UTC)  # waiting messages must not be too old to be answered
            wrongs.append(Wrongs(platform, url, seed))
            platform.gate.wrapper = wrongs[0]
            with _short_calls():
                yield

        async with _surviving(verdicts), open_bench(name, _engine(), FastClock(FACTOR), around=around) as bench:
            wrong, known = wrongs[0], set[str]()
            await _converse(bench, wrong, [case for case in cases if case.operation in WRITING])
            if missed := [case for case in cases if case.operation not in WRITING]:
                known = await (_poll if name == "telegram" else _catch_up)(bench, wrong, missed)
            await asyncio.sleep(_LATER_SECONDS)
            for case in cases:
                _judge(bench, case, known, verdicts)
            verdicts.given = wrong.given
    return verdicts


@asynccontextmanager
async def _surviving(verdicts: Verdicts) -> AsyncIterator[None]:
    """Count an adapter that ended as a fault."""
    try:
        yield
    except (BotError, TimeoutError) as error:
        verdicts.faults.append(f"the bot ended, or answers no question: {error}")


async def _converse(bench: Bench, wrongs: Wrongs, cases: list[Case]) -> None:
    room, lost = asyncio.Semaphore(_CONCURRENT), 0

    async def one(case: Case) -> None:
        nonlocal lost
        async with room:
            wrongs.cases[place_of(bench.platform, case.room)] = case
            await bench.platform.say(case.question, channel=case.room)
            # After a few lost ones the bot itself may have ended.
            lost += not await _is_finished(bench, case, _TIMEOUT if lost < _MOST_LOST else 1.0)

    async with asyncio.TaskGroup() as tasks:
        for case in cases:
            tasks.create_task(one(case))


async def _poll(bench: Bench, wrongs: Wrongs, cases: list[Case]) -> set[str]:
    """Have polls answered wrongly, one case after another: all channels share them."""
    for case in cases:
        wrongs.cases[""] = case
        await bench.platform.say(case.question, channel=case.room)
        if not await _is_finished(bench, case, _TIMEOUT):
            break
    return set()


async def _catch_up(bench: Bench, wrongs: Wrongs, cases: list[Case]) -> set[str]:
    """Lose the connection, and ask in some rooms meanwhile, again and again; return the messages from before."""
    known: set[str] = set()
    for begin in range(0, len(cases), _CONCURRENT):
        some = cases[begin : begin + _CONCURRENT]
        await asyncio.gather(*(bench.ask(f"known {case.number}", case.room, seconds=_TIMEOUT) for case in some))
        known |= {seen.id for case in some for seen in bench.replies(case.room)}
        wrongs.cases = {place_of(bench.platform, case.room): case for case in some}
        await bench.platform.disconnect(resumable=False)
        for case in some:
            await bench.platform.say(case.question, channel=case.room)
        await asyncio.gather(*(_is_finished(bench, case, 2 * _TIMEOUT) for case in some))
    return known


async def _is_finished(bench: Bench, case: Case, seconds: float) -> bool:
    finished = bench.exchanges.finished(case.question)
    either: list[asyncio.Future[Any]] = [finished, bench.adapter]
    await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return finished.done()


def _judge(bench: Bench, case: Case, known: set[str], verdicts: Verdicts) -> None:
    name = bench.platform.name
    shown = [seen.markdown for seen in bench.replies(case.room) if seen.id not in known]
    whole = sum(without_spaces(text) == without_spaces(case.answer) for text in shown)
    empty = sum(text == PLACEHOLDER for text in shown)
    others = [text for text in shown if text != PLACEHOLDER and without_spaces(text) != without_spaces(case.answer)]
    verdicts.left_behind += empty
    if whole == 1 and not (others or empty):
        outcome = "whole"
    elif whole > 1 or (whole and others):
        outcome = "twice"
    else:
        outcome = "torn" if any(case.question in text for text in others) else "told" if others else "nothing"
    # Discord's history is a list, and an empty one says that nothing was missed.
    is_hopeless = case.kind.name in HOPELESS or (name, case.operation, case.kind.name) == ("discord", "catch-up", "[]")
    if is_hopeless and outcome != "twice":
        verdicts.hopeless.setdefault(case.kind.name, []).append(f"{case.operation}: {outcome}")
    elif outcome == "whole" and case.left < case.kind.times:
        verdicts.whole += 1
    else:
        is_met = case.left < case.kind.times
        verdicts.faults.append(f"{case}: {outcome}, {[text[:60] for text in shown] if is_met else 'no call was wrong'}")


@asynccontextmanager
async def _elsewhere(calls: list[str]) -> AsyncIterator[str]:
    """Serve another host, and record what reaches it."""

    async def record(request: web.Request) -> web.Response:
        sent = str(request.headers) + request.path_qs + await request.text()
        calls.append(
            f"{request.method} {'with the token' if any(each in sent for each in _TOKENS) else 'without a token'}"
        )
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", record)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.2", 0).start()
        yield f"http://127.0.0.2:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def _short_calls() -> Iterator[None]:
    """Shorten Slack's timeout and Telegram's poll, which are not settings."""
    seconds, poll = slack_client._CALL_SECONDS, telegram_handlers._POLL
    slack_client._CALL_SECONDS, telegram_handlers._POLL = _CALL_SECONDS, timedelta(seconds=_CALL_SECONDS)
    try:
        yield
    finally:
        slack_client._CALL_SECONDS, telegram_handlers._POLL = seconds, poll


async def calls_under(name: str, value: str) -> int:
    """Answer every call that sends with 429 and this Retry-After; return the calls within a minute of the bot's clock."""
    clock = FastClock(_PRESSED_FACTOR)
    calls: list[float] = []  # times
    pressed, ended = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def around(platform: Any) -> AsyncIterator[None]:
        wait = rate_limit(value)

        async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
            operation, _ = await call_of(name, request)
            if operation != "send" or ended.is_set():
                return await handler(request)
            calls.append(clock.now())
            pressed.set()
            return wait(Genuine(name, "send", None, "", random.Random(0)))

        platform.gate.wrapper = refuse
        yield

    async with open_bench(name, _engine(), clock, around=around) as bench:
        await bench.platform.say("pressed", channel="general")
        async with asyncio.timeout(_TIMEOUT):
            await pressed.wait()
        await clock.sleep(_PRESSED_SECONDS)
        ended.set()
        async with asyncio.timeout(_TIMEOUT):
            await bench.exchanges.finished("pressed")
    return sum(time < calls[0] + _PRESSED_SECONDS for time in calls)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    every = [(kind, operation) for kind in kinds() for operation in kind.operations]
    for name in PROFILES:
        chance = random.Random(f"{seed} {name}")
        chosen = every if scale == "full" else chance.sample(every, _SHORT)
        verdicts = await verdicts_of(name, chosen, seed)
        yield Row(name, str(verdicts), verdicts.is_kept)
    for name in PROFILES:
        values = ("0", "-1", "0.0001", "") if scale == "full" else ("0",)
        calls = {value or "missing": await calls_under(name, value) for value in values}
        most = max(calls.values())
        yield Row(name, f"429 for a minute, calls by Retry-After: {calls}", most <= _MOST_CALLS)
