"""The adapter at work on the loopback Telegram, and what is seen of it there."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bot.domain import Action
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.platform import Seen
from tests.harness.servers.telegram import TelegramPlatform


@asynccontextmanager
async def running(telegram: TelegramPlatform, harness: Harness) -> AsyncIterator[None]:
    """The adapter at work, and caught up."""
    adapter = asyncio.create_task(telegram.adapter(FastClock()).run(harness.intake))
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
    """All that stands in these messages, without any whitespace."""
    return "".join(re.sub(r"\s", "", piece.visible) for piece in pieces)


async def done(telegram: TelegramPlatform, *expected: str, channel: str = "general", thread: str | None = None) -> None:
    """Wait until these are the bot's messages there, and none grows any more."""

    def is_done() -> bool:
        said = replies(telegram, channel, thread)
        return [seen.visible for seen in said] == list(expected) and not any(
            Action.STOP in seen.actions for seen in said
        )

    try:
        await telegram.until(is_done)
    except TimeoutError:
        raise AssertionError(f"{texts(telegram, channel, thread)} instead of {list(expected)}") from None
