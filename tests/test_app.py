"""The parts put together: they serve, end in good order, and one sentence says why they cannot."""

import asyncio
import io
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from bot import app
from bot.adapters.base import Adapter
from bot.adapters.console_settings import ConsoleSection
from bot.clock import Clock
from bot.config import AdapterSection, Config, EngineSection, StorageSection
from bot.dispatch import Dispatcher
from bot.engine.base import silent
from bot.errors import LoginRefused
from bot.storage.sql import SqlStore
from tests.house import a_house
from tests.messages import a_message


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        engine=EngineSection(backend="echo"),
        storage=StorageSection(url=SecretStr(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}")),
        adapters={"console": ConsoleSection()},
    )


def standing_in(monkeypatch: pytest.MonkeyPatch, adapter: Adapter) -> None:
    def open_adapter(name: str, settings: AdapterSection, clock: Clock) -> Adapter:
        return adapter

    monkeypatch.setattr(app, "open_adapter", open_adapter)


async def test_it_serves_until_its_adapters_have_ended(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(sys, "stdout", screen)
    await app.serve(config, silent)
    assert screen.getvalue() == "hello\n"


async def test_a_refused_token_ends_it_with_that_one_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        async def run(self, dispatcher: Dispatcher) -> None:
            raise LoginRefused("Discord does not know this token")

    standing_in(monkeypatch, Refused())
    with pytest.raises(LoginRefused, match="does not know this token"):
        await app.run(config, silent)


async def test_a_fault_of_ours_is_not_hidden(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        async def run(self, dispatcher: Dispatcher) -> None:
            raise ZeroDivisionError

    standing_in(monkeypatch, Broken())
    with pytest.raises(ExceptionGroup):
        await app.run(config, silent)


async def test_sigterm_ends_it_without_an_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        async def run(self, dispatcher: Dispatcher) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    standing_in(monkeypatch, Waiting())
    await app.serve(config, silent)


async def test_ctrl_c_is_passed_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        async def run(self, dispatcher: Dispatcher) -> None:
            task.cancel()  # as the event loop does on SIGINT
            await asyncio.Event().wait()

    standing_in(monkeypatch, Waiting())
    task = asyncio.create_task(app.serve(config, silent))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_texts_are_deleted_once_they_are_too_old(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with a_house(tmp_path) as house:
        await house.ask(replace(a_message("long ago"), sent_at=datetime.now(UTC) - timedelta(days=8)))
        await house.ask(replace(a_message("lately"), sent_at=datetime.now(UTC) - timedelta(days=6)))
    gone = asyncio.Event()

    class Waiting:
        async def run(self, dispatcher: Dispatcher) -> None:
            await gone.wait()

    class Watched(SqlStore):
        async def expire(self, before: datetime) -> int:
            count = await super().expire(before)
            gone.set()
            return count

    standing_in(monkeypatch, Waiting())
    monkeypatch.setattr(app, "SqlStore", Watched)
    kept = config.storage.model_copy(update={"retention_days": 7})
    await app.run(config.model_copy(update={"storage": kept}), silent)
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"long ago" not in files
    assert b"lately" in files
