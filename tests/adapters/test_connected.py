"""`is_connected` of each adapter."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.adapters.discord.adapter import DiscordAdapter
from tests.harness.fakes import FastClock
from tests.harness.harness import make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.platform_bench import PROFILES
from tests.harness.servers.discord import DiscordPlatform


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110  # no event reports the change
            await asyncio.sleep(0)


@pytest.mark.parametrize("name", PROFILES)
async def test_an_adapter_is_connected_after_the_login_and_until_the_connection_is_lost(
    name: str, tmp_path: Path
) -> None:
    async with make_harness(tmp_path) as harness, PROFILES[name].open() as platform:
        adapter = platform.adapter(FastClock(20.0))
        assert not adapter.is_connected
        running = asyncio.create_task(adapter.run(harness.intake))
        try:
            await until(lambda: adapter.is_connected and PROFILES[name].is_connected(platform))
            await platform.disconnect()
            await until(lambda: not adapter.is_connected)
            await until(lambda: adapter.is_connected)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_closed_discord_client_does_not_wait_for_its_servers(tmp_path: Path) -> None:
    def is_waiting() -> bool:
        return any("_delay_ready" in repr(task.get_coro()) for task in asyncio.all_tasks())

    async with make_harness(tmp_path) as harness, DiscordPlatform() as platform:
        adapter = DiscordAdapter(platform.settings(), FastClock(20.0), server_seconds=TIMEOUT)
        running = asyncio.create_task(adapter.run(harness.intake))
        await until(is_waiting)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not is_waiting()
