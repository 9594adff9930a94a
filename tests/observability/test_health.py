"""Readiness: every component works or gives the reason."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.domain import EngineLoad
from bot.errors import StoreError
from bot.observability.health import CHECK_LASTS, Components, Health, engine_fault
from bot.storage.sql import SqlStore
from bot.util.clock import Clock
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.storage import temporary_store

AGE = 60.0


class Platform:
    is_connected = True
    is_standby = False

    @property
    def fault(self) -> str | None:
        return None if self.is_connected else "not connected"


class FaultyStore(SqlStore):
    """Counts its checks, and fails or hangs as a test says."""

    fault: StoreError | None = None
    checks = 0
    go_on: asyncio.Event | None = None

    async def check(self) -> None:
        self.checks += 1
        if self.go_on is not None:
            await self.go_on.wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyStore]:
    async with FaultyStore(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}") as store:
        yield store


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def parts(store: FaultyStore, engine: ScriptedEngine) -> Components:
    return Components(store, engine, {"discord": Platform(), "slack": Platform()})


async def faults(parts: Components, clock: Clock) -> dict[str, str]:
    return {
        each.component: each.reason for each in await Health(parts, AGE, clock).readiness() if each.reason is not None
    }


async def test_a_program_with_all_components_running_is_ready(parts: Components, clock: Clock) -> None:
    found = await Health(parts, AGE, clock).readiness()
    names = ("program", "store", "engine", "discord", "slack")
    assert [(each.component, each.reason) for each in found] == [(name, None) for name in names]


async def test_missing_components_are_opening_or_loading(clock: Clock) -> None:
    assert await faults(Components(), clock) == {"store": "opening", "engine": "loading"}


@pytest.mark.parametrize(
    ("load", "fault"),
    [
        (None, "loading"),
        (EngineLoad(0, 0), None),
        (EngineLoad(1, 0, since_progress=59.9), None),
        (EngineLoad(1, 0, since_progress=60.0), "no step has ended for 60 s"),
        (EngineLoad(0, 0, down="its worker died"), "its worker died"),
        (EngineLoad(0, 0, down="the engine was closed", is_changing=True), "changing the model"),
    ],
)
def test_an_engine_is_ready_unless_loading_down_or_stalled(load: EngineLoad | None, fault: str | None) -> None:
    assert engine_fault(load, AGE) == fault


async def test_a_disconnected_platform_is_named(parts: Components, clock: Clock) -> None:
    gone = Platform()
    gone.is_connected = False
    parts.adapters = {**parts.adapters, "telegram": gone}
    assert await faults(parts, clock) == {"telegram": "not connected"}


async def test_a_program_that_is_stopping_is_not_ready(parts: Components, clock: Clock) -> None:
    parts.is_stopping = True
    assert await faults(parts, clock) == {"program": "stopping"}


async def test_the_store_check_is_cached_for_some_seconds(
    parts: Components, store: FaultyStore, clock: ManualClock
) -> None:
    health = Health(parts, AGE, clock)

    async def reason() -> str | None:
        return {each.component: each.reason for each in await health.readiness()}["store"]

    store.fault = StoreError("the disk is full")
    assert [await reason() for _ in range(3)] == ["the disk is full"] * 3
    assert store.checks == 1
    store.fault = None
    await clock.advance(CHECK_LASTS)
    assert await reason() is None
    assert store.checks == 2


async def test_concurrent_requests_share_one_check(parts: Components, store: FaultyStore, clock: ManualClock) -> None:
    health = Health(parts, AGE, clock)
    store.go_on = asyncio.Event()
    asking = [asyncio.create_task(health.readiness()) for _ in range(10)]
    await clock.settle()
    store.go_on.set()
    await asyncio.gather(*asking)
    assert store.checks == 1


async def test_an_unresponsive_store_does_not_block_the_check(
    parts: Components, store: FaultyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.observability.health.CHECK_SECONDS", 0.01)
    store.go_on = asyncio.Event()
    assert await faults(parts, clock) == {"store": "it did not take a write within 0.01 s"}


async def test_a_check_writes_to_the_file(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        log = tmp_path / "bot.db-wal"
        before = log.stat().st_size
        await store.check()
        assert log.stat().st_size > before


async def test_a_database_that_cannot_be_written_fails_the_check(tmp_path: Path) -> None:
    path = tmp_path / "bot.db"
    async with SqlStore(f"sqlite+aiosqlite:///{path}", busy_timeout=0.05) as store:
        another = sqlite3.connect(path, isolation_level=None)
        another.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="lock"):
            await store.check()
        another.close()
        await store.check()
