"""A bot that shares its database: the others know which platform it serves, and it knows what was set at the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from pydantic import SecretStr

from bot import __version__, app, cluster
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.access import OPERATOR
from bot.chat.intake import Intake
from bot.chat.rules import Rules
from bot.chat.settings import Choices
from bot.config.cluster import ClusterSection
from bot.config.schema import AdapterSection, Config, EngineSection, StorageSection
from bot.domain import Notice
from bot.engine.base import silent
from bot.storage import standby
from bot.storage.bots import SharedBots
from bot.storage.sql import SqlStore
from bot.util.clock import Clock
from tests.chaos.processes import until
from tests.harness.messages import NOON, a_message
from tests.harness.platform import TIMEOUT
from tests.harness.postgres import PostgresServer


class Serving:
    """An adapter that only hands out its intake."""

    is_connected = True

    def __init__(self) -> None:
        self.intake: asyncio.Future[Intake] = asyncio.get_running_loop().create_future()

    async def run(self, intake: Intake) -> None:
        self.intake.set_result(intake)
        await asyncio.Event().wait()


@asynccontextmanager
async def sharing_bot(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Intake]:
    """Run a bot that serves Telegram, without its times of grace; a machine that stands still ends no test."""
    adapter = Serving()

    def open_adapter(name: str, settings: AdapterSection, clock: Clock) -> Serving:
        return adapter

    monkeypatch.setattr(app, "open_adapter", open_adapter)
    monkeypatch.setattr(cluster, "_OTHERS_INTERVAL", 0.02)
    monkeypatch.setattr(standby, "HolderWatch", lambda lock: nullcontext())
    monkeypatch.setitem(standby.in_turn.__wrapped__.__kwdefaults__, "grace", 0.0)  # type: ignore[attr-defined]
    config = Config(
        engine=EngineSection(backend="echo"),
        storage=StorageSection(url=SecretStr(url)),
        cluster=ClusterSection(enabled=True, share=True),
        adapters={"telegram": TelegramSection(token=SecretStr("1:token"))},
    )
    running = asyncio.create_task(app.run(config, silent))
    try:
        async with asyncio.timeout(TIMEOUT):
            either: list[asyncio.Future[Any]] = [running, adapter.intake]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running
            yield adapter.intake.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_status_and_the_other_bots_name_the_platforms_of_each(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.database())
    bots = SharedBots(url, ["discord", "telegram"])
    async with sharing_bot(url, monkeypatch) as intake:
        [bot] = await asyncio.to_thread(bots.read)
        assert (bot.version, bot.platforms) == (__version__, ("telegram",))
        line = f"Bot {bot.name}, version {__version__}: telegram"
        while line not in await status(intake):
            pass  # each look reads and writes the database
    assert await asyncio.to_thread(bots.read) == []
    bots.close()


async def test_a_pause_at_another_bot_reaches_it(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.url(postgres.database())
    async with sharing_bot(url, monkeypatch) as intake, SqlStore(url) as store:
        elsewhere = Choices(store, Rules(), lambda: NOON)
        await elsewhere.pause(OPERATOR)
        await until(lambda: intake.access.is_paused)
        await elsewhere.resume(OPERATOR)
        await until(lambda: not intake.access.is_paused)


async def status(intake: Intake) -> str:
    """Return what /status tells the operator."""
    exchange = await intake.accept(a_message("/status", author=OPERATOR))
    assert exchange is not None
    async with intake.answers.stream(exchange) as events:
        said = "".join([event.text async for event in events if isinstance(event, Notice)])
    await intake.exchanges.complete(exchange)
    return said
