"""Metrics: correct counts, readable by Prometheus, no user data."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.http import OperationsSection
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.delivery.replies import Replies
from bot.domain import Author, ChannelKey
from bot.errors import (
    ChannelGone,
    EngineBusy,
    EngineFailed,
    MarkupRefused,
    MessageGone,
    PlatformUnavailable,
    PromptTooLong,
    RateLimited,
    StoreError,
)
from bot.observability.collectors import ComponentsCollector, measure_loop_lateness
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.observability.metrics import PREFIX, Metrics
from bot.storage.sql import SqlStore
from tests.harness.fakes import FakeMessenger, FastClock, ManualClock, ScriptedEngine
from tests.harness.fakes.messenger import Failure
from tests.harness.messages import a_message
from tests.harness.scripted_model import ScriptedModel, ask, events
from tests.harness.scripted_model import serving as running

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


class Platform:
    is_connected = True
    is_standby = False

    @property
    def fault(self) -> str | None:
        return None if self.is_connected else "not connected"


@dataclass(frozen=True)
class Harness:
    clock: FastClock
    metrics: Metrics
    engine: ScriptedEngine
    messenger: FakeMessenger
    intake: Intake
    parts: Components

    async def reply(self, text: str = "hello", author: str = "1") -> None:
        """Send a message and deliver its whole reply."""
        message = a_message(text, channel=ChannelKey("fake", f"c{author}"), author=Author("fake", author, "Mei"))
        exchange = await self.intake.accept(message)
        assert exchange is not None
        async with Replies(self.intake, self.messenger, self.clock) as replies:
            replies.start(exchange)
            await replies.wait_idle()

    def __call__(self, name: str, **labels: str) -> float:
        """A figure's value now; 0 where nothing was counted yet."""
        return self.metrics.registry.get_sample_value(f"{PREFIX}_{name}", labels) or 0.0


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path) as harness:
        yield harness


@asynccontextmanager
async def make_harness(folder: Path, limits: LimitsSection | None = None) -> AsyncIterator[Harness]:
    clock, metrics, engine, bounds = FastClock(), Metrics(), ScriptedEngine(), limits or LimitsSection()
    settings = ChatSettings(ConversationSection(catch_up_minutes=10_000_000), answer_seconds=bounds.answer_seconds)
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}", clock, metrics) as store:
        # Not the fast clock, whose minute is a second: the next message would come too late to be refused.
        access = Access(AccessSection(), bounds, ManualClock())
        parts = Components(store, engine, {"fake": Platform()})
        metrics.registry.register(ComponentsCollector(parts))
        intake = Intake(access, engine, store, settings, clock=clock, metrics=metrics)
        yield Harness(clock, metrics, engine, FakeMessenger(clock), intake, parts)


async def test_a_reply_is_counted_on_its_whole_way(harness: Harness) -> None:
    harness.engine.add(["one ", "two ", "three"])
    await harness.reply()
    assert harness("exchanges_total", platform="fake", kind="chat", outcome="stop") == 1
    assert harness("requests_total", outcome="stop") == 1
    assert harness("first_token_seconds_count") == 1
    assert harness("reply_changes_total", platform="fake") == 4
    assert harness("platform_calls_total", platform="fake", verb="send", outcome="ok") == 1
    edits = harness("platform_calls_total", platform="fake", verb="edit", outcome="ok")
    assert edits == sum(call.verb == "edit" for call in harness.messenger.calls)
    assert harness("platform_call_seconds_count", platform="fake", verb="edit") == edits
    assert harness("store_seconds_count", method="enqueue") == 1
    assert harness("store_seconds_count", method="complete") == 1


async def test_the_time_to_the_first_text_is_measured(harness: Harness) -> None:
    thinking = asyncio.Event()
    harness.engine.add([thinking, "ok"])
    replying = asyncio.create_task(harness.reply())
    await harness.clock.sleep(3.0)
    before = harness("first_token_seconds_count")
    thinking.set()
    await replying
    assert before == 0
    assert harness("first_token_seconds_count") == 1
    assert harness("first_token_seconds_sum") > 0


@pytest.mark.parametrize(
    ("error", "outcome", "exchange"),
    [
        (EngineBusy(1, 1), "busy", "refused"),
        (PromptTooLong(9, 8), "too_long", "refused"),
        (EngineFailed("out of memory"), "failed", "error"),
    ],
)
async def test_a_request_that_fails_is_counted_by_what_failed_it(
    harness: Harness, error: Exception, outcome: str, exchange: str
) -> None:
    harness.engine.add(["and", error])
    await harness.reply()
    assert harness("requests_total", outcome=outcome) == 1
    assert harness("exchanges_total", platform="fake", kind="chat", outcome=exchange) == 1


async def test_a_reply_that_is_broken_off_is_counted_as_such(harness: Harness) -> None:
    harness.engine.add(["a", asyncio.Event()])
    exchange = await harness.intake.accept(a_message("hello", channel=ChannelKey("fake", "c1")))
    assert exchange is not None
    async with harness.intake.answers.stream(exchange) as stream:
        await anext(stream)
    assert harness("exchanges_total", platform="fake", kind="chat", outcome="broken_off") == 1
    assert harness("requests_total", outcome="closed") == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RateLimited(2.0), "wait"),
        (MarkupRefused("*"), "markup"),
        (MessageGone("m1"), "gone"),
        (ChannelGone("c1"), "gone"),
        (PlatformUnavailable("cut off"), "unavailable"),
    ],
)
async def test_a_call_is_counted_by_what_the_platform_answered(
    harness: Harness, error: Exception, outcome: str
) -> None:
    harness.messenger.script = lambda number, verb: Failure(error)
    with pytest.raises(type(error)), harness.metrics.platform_call("fake", "delete", harness.clock):
        await harness.messenger.delete(ChannelKey("fake", "c1"), "m1")
    assert harness("platform_calls_total", platform="fake", verb="delete", outcome=outcome) == 1


async def test_rejected_messages_are_counted(tmp_path: Path) -> None:
    async with make_harness(tmp_path, LimitsSection(requests_per_minute=1)) as harness:
        await harness.reply()
        assert harness("refusals_total", kind="question") == 0
        await harness.reply()
        assert harness("refusals_total", kind="question") == 1
        assert harness("exchanges_total", platform="fake", kind="chat", outcome="refused") == 1
        assert harness("exchanges_total", platform="fake", kind="chat", outcome="error") == 0
        while not harness("refusals_total", kind="command"):
            await harness.reply("/help")


async def test_a_database_that_fails_is_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    url = f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}"
    async with SqlStore(url, metrics=metrics, busy_timeout=0.01, queue_timeout=0.01) as store:
        with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with suppress(StoreError):
                await store.check()
            other.execute("ROLLBACK")
    assert metrics.registry.get_sample_value(f"{PREFIX}_store_errors_total", {"method": "check"}) == 1
    assert metrics.registry.get_sample_value(f"{PREFIX}_store_seconds_count", {"method": "check"}) == 1


async def test_the_engine_counts_its_steps_and_the_time_that_requests_waited() -> None:
    async with running(ScriptedModel(slots=1)) as engine:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(events(engine, ask("hello")))
        load = engine.load
    assert (load.slots, load.tokens, load.steps, load.started) == (1, 18, 18, 3)
    assert load.waited > 0


async def test_gauges_of_components_are_read_on_each_scrape(harness: Harness) -> None:
    harness.engine.since_progress = 7.0
    assert harness("progress_age_seconds") == 7.0
    assert harness("slots") == 8
    assert harness("platform_connected", platform="fake") == 1
    cut_off = Platform()
    cut_off.is_connected = False
    harness.parts.adapters = {"fake": cut_off}
    assert harness("platform_connected", platform="fake") == 0


async def test_the_lateness_of_the_event_loop_is_measured() -> None:
    class Late(ManualClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.25)

    metrics, clock = Metrics(), Late()
    watching = asyncio.create_task(measure_loop_lateness(metrics, clock))
    await clock.advance(7.5)
    watching.cancel()
    assert metrics.registry.get_sample_value(f"{PREFIX}_loop_lateness_seconds_count") == 10
    assert metrics.registry.get_sample_value(f"{PREFIX}_loop_lateness_seconds_sum") == 2.5


def sample_names(families: Iterable[Metric]) -> set[str]:
    return {sample.name for family in families for sample in family.samples}


async def test_prometheus_own_parsers_read_the_page(harness: Harness) -> None:
    await harness.reply()
    app = create_app(Health(harness.parts, 60.0, harness.clock), harness.metrics.registry)
    async with serve_operations(OperationsSection(port=0), app) as port, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{port}/metrics"
        async with http.get(url) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            plain = sample_names(read_text(await answer.text()))
        async with http.get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            families = read_openmetrics(await answer.text())  # type: ignore[no-untyped-call]  # it says nothing
            modern = sample_names(families)
    assert f"{PREFIX}_exchanges_total" in plain & modern
    assert "process_resident_memory_bytes" in plain & modern


async def test_no_user_and_no_text_appears_in_the_metrics(harness: Harness) -> None:
    harness.engine.add("canary-answer")
    await harness.reply("canary-question", author="canary-author")
    page = generate_latest(harness.metrics.registry).decode()
    assert "canary" not in page
    assert "Mei" not in page


def test_the_model_has_no_metrics_before_it_is_loaded() -> None:
    registry = CollectorRegistry()
    registry.register(ComponentsCollector(Components()))
    assert "engine_info" not in generate_latest(registry).decode()


async def test_the_dashboard_shows_all_metrics_and_only_existing_ones(harness: Harness) -> None:
    harness.engine.add(["and", EngineFailed("out of memory")])
    await harness.reply()
    page = generate_latest(harness.metrics.registry).decode()
    names = {family.name for family in read_text(page)}
    # Labels that did not occur have no sample.
    missing = (
        *("store_errors_total", "refusals_total", "votes_total"),
        *("api_requests_total", "api_request_seconds_bucket"),
    )
    there = sample_names(read_text(page)) | {f"{PREFIX}_{name}" for name in missing}
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = {name for each in expressions for name in re.findall(rf"\b(?:{PREFIX}|process)_\w+", each)}
    assert used <= there, "drawn, but not there"
    ours = {name for name in names if name.startswith(PREFIX) and not name.endswith("_created")}
    assert not [name for name in ours if not any(each.startswith(name) for each in used)], "there, but not drawn"


def test_the_dashboard_can_be_narrowed_to_an_instance_and_marks_bad_values() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert "instance" in {variable["name"] for variable in dashboard["templating"]["list"]}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for selector in (
        found for each in expressions for found in re.findall(rf"\b(?:{PREFIX}|process)_\w+(.{{12}})", each)
    ):
        assert selector == '{instance=~"', selector
    marked = {panel["title"] for panel in dashboard["panels"] if "thresholds" in panel["fieldConfig"]["defaults"]}
    assert {"Time to first token", "Waiting", "Failed platform calls", "Database call duration"} <= marked


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]]
    cells = [(x, y) for p in panels for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
