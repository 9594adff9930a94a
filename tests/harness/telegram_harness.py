"""Helpers of the Telegram tests: run the adapter, wait for its messages."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bot.domain import Action
from bot.util.clock import Clock
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.platform import Seen
from tests.harness.servers.telegram import TelegramPlatform


@asynccontextmanager
async def running(telegram: TelegramPlatform, harness: Harness, clock: Clock | None = None) -> AsyncIterator[None]:
    """Run the adapter until the block ends; it has processed its backlog."""
    adapter = asyncio.create_task(telegram.adapter(clock or FastClock()).run(harness.intake))
    try:
        polls = telegram.polls
        await telegram.until(lambda: telegram.polls > polls + 1 or adapter.done())
        yield
    finally:
        adapter.cancel()
        with suppress(asyncio.CancelledError):
            await adapter


def replies(telegram: TelegramPlatform, channel: str = "general", thread: str | None = None) -> list[Seen]:
    return [seen for seen in telegram.seen(channel, thread) if seen.author == "bot"]


def texts(telegram: TelegramPlatform, channel: str = "general", thread: str | None = None) -> list[str]:
    return [seen.visible for seen in replies(telegram, channel, thread)]


def shown(pieces: list[Seen]) -> str:
    """Return the text of these messages without whitespace."""
    return "".join(re.sub(r"\s", "", piece.visible) for piece in pieces)


async def done(telegram: TelegramPlatform, *expected: str, channel: str = "general", thread: str | None = None) -> None:
    """Wait until the bot's messages have these texts and all replies are complete."""

    def is_done() -> bool:
        said = replies(telegram, channel, thread)
        return [seen.visible for seen in said] == list(expected) and not any(
            Action.STOP in seen.actions for seen in said
        )

    try:
        await telegram.until(is_done)
    except TimeoutError:
        raise AssertionError(f"{texts(telegram, channel, thread)} instead of {list(expected)}") from None
