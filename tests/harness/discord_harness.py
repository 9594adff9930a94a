"""The Discord adapter on the loopback server, and its visible messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.config.schema import AccessSection, FeedbackSection, LimitsSection
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform

# The speed of the bot's clock.
FACTOR = 50.0


@dataclass(frozen=True, slots=True)
class DiscordBot:
    """A running adapter with its platform."""

    platform: DiscordPlatform
    harness: Harness
    running: asyncio.Task[None]

    @property
    def engine(self) -> ScriptedEngine:
        return self.harness.engine

    def shown(self, channel: str = "general", thread: str | None = None) -> list[str]:
        """Return the bot's messages in a channel."""
        return [seen.markdown for seen in self.platform.seen(channel, thread) if seen.author == "bot"]

    async def shows(self, *texts: str, channel: str = "general", thread: str | None = None) -> None:
        """Wait until the bot's messages in a channel are these."""
        try:
            await self.platform.until(lambda: self.shown(channel, thread) == list(texts))
        except TimeoutError:
            assert self.shown(channel, thread) == list(texts)

    async def all_is_delivered(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            while await self.harness.store.claim_owed("discord"):
                pass


@asynccontextmanager
async def run_discord_bot(
    platform: DiscordPlatform,
    folder: Path,
    access: AccessSection | None = None,
    *,
    today: datetime | None = None,
    engine: ScriptedEngine | None = None,
    takes_votes: bool = False,
    **settings: Any,
) -> AsyncIterator[DiscordBot]:
    """Run the adapter with these settings; wait until it is connected or has ended."""
    limits = LimitsSection(
        requests_per_minute=0, requests_per_minute_channel=0, waiting_per_user=0, waiting_per_channel=0
    )
    async with make_harness(folder, engine, today=today or datetime.now(UTC), limits=limits, access=access) as harness:
        harness.settings.feedback = FeedbackSection(enabled=takes_votes)
        running = asyncio.create_task(platform.adapter(FastClock(FACTOR), **settings).run(harness.intake))
        await platform.until(lambda: platform.is_connected or running.done())
        try:
            yield DiscordBot(platform, harness, running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
