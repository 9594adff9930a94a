"""Helpers of the Slack tests: run the adapter, wait for its messages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bot.domain import ChannelKey, Exchange, Status
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.platform import TIMEOUT, Fault, Seen
from tests.harness.servers.slack import SlackServer


@asynccontextmanager
async def running(harness: Harness, server: SlackServer) -> AsyncIterator[None]:
    """Run the adapter until the block ends; an error that ends it is raised."""
    task = asyncio.create_task(server.adapter(FastClock()).run(harness.intake))
    connected = asyncio.create_task(server.connected())
    try:
        await asyncio.wait([task, connected], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        task.cancel()
        connected.cancel()
        await asyncio.gather(task, connected, return_exceptions=True)
    if not task.cancelled():
        task.result()


def bots(seen: list[Seen]) -> list[str]:
    return [message.markdown for message in seen if message.author == "bot"]


async def answered(server: SlackServer, *texts: str, channel: str = "general") -> None:
    """Wait until the bot's messages in a channel have these texts."""
    try:
        await server.until(lambda: bots(server.seen(channel)) == list(texts))
    except TimeoutError:
        assert bots(server.seen(channel)) == list(texts)


def asked(harness: Harness, number: int) -> list[str]:
    """Return the messages of the model's request number 0, 1, …"""
    return [message.content for message in harness.engine.requests[number].messages]


def trouble_at(*numbers: int, kind: Any = "lost", seconds: float = 0.0) -> Callable[[int, str], Fault | None]:
    return lambda number, name: Fault(kind, seconds) if number in numbers else None


async def becomes(harness: Harness, status: Status, channel: str, message_id: str) -> Exchange:
    """Wait until the exchange of a message has this status; return it."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            exchange = await harness.store.find(ChannelKey("slack", channel), message_id)
            if exchange is not None and exchange.status is status:
                return exchange
