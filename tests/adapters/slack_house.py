"""What the tests of Slack share: the adapter at work, and what can be seen of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bot.domain import ChannelKey, Exchange, Status
from tests.adapters.platform import PATIENCE, Seen, Trouble
from tests.adapters.servers.slack import SlackServer
from tests.fakes.clock import FastClock
from tests.house import House


@asynccontextmanager
async def running(house: House, server: SlackServer) -> AsyncIterator[None]:
    """The adapter, connected; what ends it is raised."""
    task = asyncio.create_task(server.adapter(FastClock()).run(house.dispatcher))
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
    """Wait until the bot's messages in a channel are these."""
    try:
        await server.until(lambda: bots(server.seen(channel)) == list(texts))
    except TimeoutError:
        assert bots(server.seen(channel)) == list(texts)


def asked(house: House, number: int) -> list[str]:
    """What the model was shown at its request number 0, 1, …"""
    return [message.content for message in house.engine.requests[number].messages]


def trouble_at(*numbers: int, kind: Any = "lost", seconds: float = 0.0) -> Callable[[int, str], Trouble | None]:
    return lambda number, name: Trouble(kind, seconds) if number in numbers else None


async def becomes(house: House, status: Status, channel: str, message_id: str) -> Exchange:
    """Wait until the store has this status of a message."""
    async with asyncio.timeout(PATIENCE):
        while True:
            exchange = await house.store.find(ChannelKey("slack", channel), message_id)
            if exchange is not None and exchange.status is status:
                return exchange
