"""Slack: the real library against a workspace of our own, with the real store behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bot.domain import Action
from tests.adapters.platform import Seen, Trouble
from tests.adapters.servers.slack import SlackServer
from tests.fakes.clock import FastClock
from tests.house import House, a_house


@asynccontextmanager
async def running(house: House, server: SlackServer) -> AsyncIterator[None]:
    """The adapter, connected."""
    task = asyncio.create_task(server.adapter(FastClock()).run(house.dispatcher))
    task.add_done_callback(lambda _: server.changed())
    try:
        await server.until(lambda: server.sockets > 0 or task.done())
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server
        assert server.violations == []


def bots(seen: list[Seen]) -> list[str]:
    return [message.markdown for message in seen if message.author == "bot"]


async def test_a_mention_is_answered_in_a_thread_of_its_own(house: House, server: SlackServer) -> None:
    house.engine.add("**你好**，世界")
    async with running(house, server):
        question = await server.say("hello")
        await server.until(lambda: bots(server.seen()) == ["**你好**，世界"])
    answer = server.seen()[1]
    assert answer.reply_to == question
    assert len(house.engine.requests) == 1
