"""Reloading config.toml while the program runs."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.chat.intake import Intake
from bot.config.reload import ConfigSource, ConfigWatcher, ReloadResult, read_content
from bot.config.schema import (
    AccessSection,
    Config,
    ConversationSection,
    EngineSection,
    LimitsSection,
    LogsSection,
    SamplingSection,
)
from bot.config.sources import load_config
from bot.domain import Author, Notice, Usage
from bot.engine import BACKENDS
from bot.errors import EngineUnavailable
from bot.observability.logging import set_levels
from bot.storage.retention import Retention
from bot.storage.sql import SqlStore
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import Harness, make_harness, notice_of
from tests.harness.messages import MEI, NOON, a_message


@dataclass
class Follower:
    """A ConfigWatcher that polls when the test advances the clock; records applied settings and models."""

    path: Path
    environ: dict[str, str] = field(default_factory=dict)
    clock: ManualClock = field(default_factory=ManualClock)
    taken: list[Config] = field(default_factory=list)
    wanted: list[EngineSection] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    change: Callable[[EngineSection], Awaitable[str | None]] | None = None
    meanwhile: str | None = None  # what the file becomes between the load and the watch

    def __post_init__(self) -> None:
        content = read_content(self.path)
        source = ConfigSource(
            self.path, lambda: load_config(self.path, SETTINGS, BACKENDS, self.environ).config, content=content
        )
        self.live = ConfigWatcher(source.load(), source, self.clock, lambda: NOON)
        if self.meanwhile is not None:
            self.path.write_text(self.meanwhile, encoding="utf-8")
        self.task = asyncio.create_task(self.live.watch(self.taken.append, self._change))

    async def _change(self, name: str, section: EngineSection) -> str | None:
        self.wanted.append(section)
        self.names.append(name)
        return None if self.change is None else await self.change(section)

    async def at_rest(self) -> None:
        """Wait until the watcher sleeps until its next poll."""
        while self.clock.next_wake is None and not self.task.done():  # noqa: ASYNC110 - a thread reads
            await asyncio.sleep(0)

    async def look(self, times: int = 2) -> ReloadResult | None:
        for _ in range(times):
            await self.at_rest()
            await self.clock.advance(1)
        await self.at_rest()
        await self.clock.settle()
        return self.live.last_result

    async def write(self, toml: str) -> ReloadResult:
        """Write the file and wait until it is loaded."""
        self.path.write_text(toml, encoding="utf-8")
        last = await self.look()
        assert last is not None
        return last


@pytest.fixture
async def follower(tmp_path: Path) -> AsyncIterator[Follower]:
    path = tmp_path / "config.toml"
    path.write_text("", encoding="utf-8")
    follower = Follower(path)
    await follower.at_rest()
    yield follower
    follower.task.cancel()
    await asyncio.wait([follower.task])


async def test_an_unchanged_file_is_not_reloaded(follower: Follower) -> None:
    assert await follower.look(3) is None


async def test_an_edit_between_the_load_and_the_watch_is_reloaded(tmp_path: Path) -> None:
    # A standby bot loads its settings days before it serves, a large model takes minutes.
    path = tmp_path / "config.toml"
    path.write_text("", encoding="utf-8")
    follower = Follower(path, meanwhile="[storage]\nretention_days = 7\n")
    assert await follower.look() == ReloadResult(NOON, changed=("storage.retention_days",))
    follower.task.cancel()
    await asyncio.wait([follower.task])


async def test_reloadable_settings_take_effect_at_once_and_are_named(follower: Follower) -> None:
    last = await follower.write("[limits]\nrequests_per_minute = 1\n[storage]\nretention_days = 7\n")
    assert last == ReloadResult(NOON, changed=("limits.requests_per_minute", "storage.retention_days"))
    [config] = follower.taken
    assert (config.limits.requests_per_minute, config.storage.retention_days) == (1, 7)
    assert config == follower.live.current


async def test_a_file_with_mistakes_is_rejected_and_all_are_listed(follower: Follower) -> None:
    await follower.write("[limits]\nrequests_per_minute = 1\n")
    last = await follower.write("[limits]\nrequests_per_minute = -1\n[engine]\nquantisation = 4\n")
    assert [mistake.partition(":")[0] for mistake in last.rejected] == [
        "line 2, limits.requests_per_minute",
        "line 4, engine.quantisation",
    ]
    assert follower.live.current.limits.requests_per_minute == 1
    assert len(follower.taken) == 1
    assert (await follower.write("[limits]\nrequests_per_minute = 2\n")).rejected == ()
    assert follower.live.current.limits.requests_per_minute == 2


async def test_a_file_that_is_still_being_written_is_not_loaded(follower: Follower) -> None:
    follower.path.write_text("[limits]\nrequests_per_min", encoding="utf-8")
    assert await follower.look(1) is None
    assert (await follower.write("[limits]\nrequests_per_minute = 1\n")).rejected == ()


async def test_a_swapped_symbolic_link_is_noticed(follower: Follower, tmp_path: Path) -> None:
    # Kubernetes updates a mounted ConfigMap by swapping symbolic links.
    other, link = tmp_path / "..data", tmp_path / "link"
    other.write_text("[limits]\nrequests_per_minute = 1\n", encoding="utf-8")
    link.symlink_to(other)
    link.replace(follower.path)
    last = await follower.look()
    assert last is not None
    assert last.changed == ("limits.requests_per_minute",)


async def test_a_deleted_file_changes_nothing_until_it_is_back(follower: Follower) -> None:
    follower.path.unlink()
    last = await follower.look()
    assert last is not None
    assert last.rejected == ("the file cannot be read any more (No such file or directory)",)
    assert follower.taken == []
    assert (await follower.write("[limits]\nrequests_per_minute = 1\n")).rejected == ()


async def test_the_environment_overrides_a_changed_file(follower: Follower) -> None:
    follower.environ["BOT_LIMITS__REQUESTS_PER_MINUTE"] = "20"
    assert (await follower.write("[limits]\nrequests_per_minute = 1\n")).changed == ()


async def test_settings_that_need_a_restart_are_named_and_unchanged(follower: Follower) -> None:
    last = await follower.write('[logs]\nformat = "json"\nlevel = "debug"\n[adapters.discord]\nthreads = false\n')
    assert last.changed == ("logs.level",)
    assert last.needs_restart == ("logs.format", "adapters.discord.threads")
    assert follower.live.current.logs == LogsSection(level="debug")
    last = await follower.write('[logs]\nformat = "json"\n')
    assert last.needs_restart == ("logs.format",), "still pending"


async def test_a_changed_engine_section_changes_the_model(follower: Follower) -> None:
    last = await follower.write('[engine]\nquantization = "int8"\n')
    assert last == ReloadResult(NOON, changed=("engine.quantization",))
    assert [section.quantization for section in follower.wanted] == ["int8"]
    assert follower.live.current.engine.quantization == "int8"


async def test_a_failed_model_change_is_reported_until_the_engine_section_changes(follower: Follower) -> None:
    async def fail(section: EngineSection) -> str | None:
        return "there is no such folder"

    follower.change = fail
    last = await follower.write('[engine]\nmodel = "/nowhere"\n')
    assert last.failure == "there is no such folder"
    assert follower.live.current.engine.model == "demo"
    last = await follower.write('[engine]\nmodel = "/nowhere"\n[limits]\nrequests_per_minute = 1\n')
    assert last.failure == "there is no such folder"
    assert len(follower.wanted) == 1, "another setting does not trigger a retry"
    follower.live.reload_now()
    await follower.look()
    assert len(follower.wanted) == 2, "a requested reload does"
    assert (await follower.write("")).failure == "there is no such folder", "the failure of the previous change"


async def test_a_changed_prefix_changes_its_table_and_a_changed_base_needs_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[models.club]\nbase = "engine"\nptuning = "a"\n', encoding="utf-8")
    follower = Follower(path)
    await follower.at_rest()

    last = await follower.write('[models.club]\nbase = "engine"\nptuning = "b"\n')
    assert (follower.names, last.changed) == (["club"], ("models.club.ptuning",))
    last = await follower.write('[models.club]\nmodel = "demo"\nptuning = "b"\n')
    assert (follower.names, last.needs_restart) == (["club"], ("models.club.base",))


async def test_each_model_changes_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[models.big]\nmodel = "/a"\n[models.small]\nmodel = "/b"\n', encoding="utf-8")
    follower = Follower(path)
    await follower.at_rest()

    async def fail_c(section: EngineSection) -> str | None:
        return "no folder /c" if section.model == "/c" else None

    follower.change = fail_c
    last = await follower.write(
        '[models.big]\nmodel = "/c"\n[models.small]\nmodel = "/b"\nfallback = "engine"\n[models.new]\nmodel = "/d"\n'
    )
    assert set(follower.names) == {"big", "small"}
    assert last.changed == ("models.big.model", "models.small.fallback")
    assert "models.new.model" in last.needs_restart
    assert last.failure == "no folder /c"
    assert follower.live.current.models["small"].fallback == "engine"
    assert follower.live.current.models["big"].model == "/a"
    follower.live.reload_now()
    await follower.look()
    assert follower.names[2:] == ["big"], "a requested reload tries again what failed"
    follower.task.cancel()
    await asyncio.wait([follower.task])


async def test_a_newer_model_change_replaces_one_in_progress(
    follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = asyncio.Event()

    async def load(section: EngineSection) -> str | None:
        if section.quantization == "int8":
            await gone.wait()
            return "superseded by a newer change"
        gone.set()
        return None

    follower.change = load
    await follower.write('[engine]\nquantization = "int8"\n')
    follower.live.reload_now()
    await follower.look()
    assert len(follower.wanted) == 1, "the same model is already loading"
    last = await follower.write('[engine]\nquantization = "int4"\n')
    assert last.failure is None
    assert follower.live.current.engine.quantization == "int4"
    assert [record.message for record in caplog.records if "replaced by a later edit" in record.message]


async def test_watching_ends_with_the_error_when_no_model_is_left(follower: Follower) -> None:
    async def fail(section: EngineSection) -> str | None:
        raise EngineUnavailable("no model is left")

    follower.change = fail
    follower.path.write_text('[engine]\nquantization = "int8"\n', encoding="utf-8")
    await follower.look()
    with pytest.raises(ExceptionGroup) as caught:
        await follower.task
    assert caught.group_contains(EngineUnavailable, match="no model is left")


# Effects of new settings on the components.


async def test_new_limits_count_earlier_requests(harness: Harness) -> None:
    for _ in range(3):
        assert harness.access.refusal(a_message(), str) is None
    harness.access.reconfigure(AccessSection(), LimitsSection(requests_per_minute=3))
    assert "asking too fast" in (harness.access.refusal(a_message(), str) or "")
    harness.access.reconfigure(AccessSection(deny_users=("discord:1",)), LimitsSection(requests_per_minute=4))
    assert harness.access.refusal(a_message(), str) is None
    assert not harness.access.admits(a_message())
    harness.access.spend(a_message(), Usage(5, 5))
    harness.access.reconfigure(AccessSection(), LimitsSection(tokens_per_hour=10))
    assert "limit per hour" in (harness.access.refusal(a_message(), str) or "")


async def test_the_next_answer_uses_the_new_settings(harness: Harness) -> None:
    conversation = ConversationSection(system_prompt="Be kind.", language="zh")
    harness.settings.reconfigure(Config(conversation=conversation, sampling=SamplingSection(temperature=0)))
    await harness.ask(a_message())
    [request] = harness.engine.requests
    assert request.messages[0].content == "Be kind."
    assert request.params.temperature == 0
    assert harness.settings.translator_for(a_message())("Stopped.") == "已停止。"


async def test_the_prompt_is_rebuilt_for_a_model_with_a_shorter_context(tmp_path: Path) -> None:
    class Shrinking(ScriptedEngine):
        """Its context shrinks from 200 to 60 tokens at the first request."""

        def shrink(self) -> None:
            self._context_length = 60

    engine = Shrinking("x" * 30, context_length=200)
    async with make_harness(tmp_path, engine, conversation=ConversationSection(answer_tokens=10)) as harness:
        await harness.ask(a_message("y" * 30))
        generate = engine.generate

        def shrunk(request: object) -> object:
            engine.shrink()
            return generate(request)  # type: ignore[arg-type]  # as it was given

        engine.generate = shrunk  # type: ignore[assignment,method-assign]  # of this one engine
        events = await harness.ask(a_message("z" * 30))
    assert "left out: 1" in notice_of(events)
    assert len(engine.requests[-1].messages) == 1


async def test_a_changed_retention_takes_effect_at_once(tmp_path: Path) -> None:
    class Watched(SqlStore):
        async def expire(self, before: datetime) -> int:
            expired.put_nowait(before)
            return 0

    expired: asyncio.Queue[datetime] = asyncio.Queue()
    async with (
        Watched(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}") as store,
        Retention(store, 0, ManualClock()) as retention,
    ):
        retention.reconfigure(30)
        first = await expired.get()
        retention.reconfigure(30)
        retention.reconfigure(7)
        assert round((await expired.get() - first) / timedelta(days=1)) == 23
        assert expired.empty()


def test_log_levels_removed_from_the_settings_are_reset() -> None:
    names = ("", "bot", "bot.engine", "alembic")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        first = LogsSection(levels={"bot.engine": "debug", "alembic": "info"})
        set_levels(first, LogsSection())
        assert logging.getLogger("bot.engine").level == logging.DEBUG
        set_levels(LogsSection(level="error"), first)
        assert logging.getLogger("bot.engine").level == logging.NOTSET
        assert logging.getLogger("bot").level == logging.ERROR
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


async def test_status_shows_admins_the_result_of_the_last_reload(harness: Harness, follower: Follower) -> None:
    async def fail(section: EngineSection) -> str | None:
        return "there is no such folder"

    follower.change = fail
    harness.access.reconfigure(AccessSection(admins=(MEI.key,)), LimitsSection())
    intake = Intake(
        harness.access, harness.engine, harness.store, harness.settings, today=lambda: NOON, watcher=follower.live
    )

    async def status(author: Author = MEI) -> str:
        exchange = await intake.accept(a_message("/status", author=author))
        assert exchange is not None
        async with intake.answers.stream(exchange) as events:
            return "\n".join([event.text async for event in events if isinstance(event, Notice)])

    assert "Settings reloaded" not in await status()
    await follower.write('[engine]\nmodel = "/nowhere"\n[logs]\nformat = "json"\n[adapters.discord]\nthreads = false\n')
    said = await status()
    assert "Settings reloaded: 2026-11-20 12:00:00 UTC" in said
    assert "Changed: engine.model" in said
    assert "Needs a restart: logs.format, adapters.discord.threads" in said
    assert "The model was not changed: there is no such folder" in said
    await follower.write("[limits]\nrequests_per_minute = -1\n")
    assert "Reload rejected, keeping the previous settings: line 2, limits.requests_per_minute: " in await status()
    assert "Settings reloaded" not in await status(Author("discord", "2", "Li"))
