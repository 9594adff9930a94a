"""Fixtures of the Discord tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.servers.discord import DiscordPlatform


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
