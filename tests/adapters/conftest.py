"""The platforms of the tests: each ends without a call that the real one forbids."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform


@pytest.fixture
async def platform() -> AsyncIterator[DiscordPlatform]:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        yield platform
    assert platform.violations == []


@pytest.fixture
def impatient(platform: DiscordPlatform) -> None:
    """The bot gives calls up soon: for tests whose server does not answer one."""
    platform.call_seconds = 0.5


@pytest.fixture
async def bot(platform: DiscordPlatform, tmp_path: Path) -> AsyncIterator[DiscordBot]:
    async with run_discord_bot(platform, tmp_path) as bot:
        yield bot


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramPlatform]:
    async with TelegramPlatform() as platform:
        yield platform
    assert platform.violations == []
