"""Telegram from a person's message to the last edit: the real library against a Bot API of our own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bot.domain import Action
from tests.adapters.platform import Seen
from tests.adapters.servers.telegram import BOT, TelegramPlatform
from tests.fakes.clock import FastClock
from tests.house import House


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramPlatform]:
    async with TelegramPlatform() as platform:
        yield platform
    assert platform.violations == []


@asynccontextmanager
async def running(telegram: TelegramPlatform, house: House) -> AsyncIterator[None]:
    """The adapter at work, and caught up."""
    adapter = asyncio.create_task(telegram.adapter(FastClock()).run(house.dispatcher))
    try:
        polls = telegram.polls
        await telegram.until(lambda: telegram.polls > polls + 1 or adapter.done())
        yield
        assert not adapter.done(), adapter.exception()
    finally:
        adapter.cancel()
        await asyncio.gather(adapter, return_exceptions=True)


def replies(telegram: TelegramPlatform, channel: str = "general", thread: str | None = None) -> list[Seen]:
    return [seen for seen in telegram.seen(channel, thread) if seen.author == "bot"]


def texts(telegram: TelegramPlatform, channel: str = "general", thread: str | None = None) -> list[str]:
    return [seen.visible for seen in replies(telegram, channel, thread)]


async def done(telegram: TelegramPlatform, *expected: str, channel: str = "general", thread: str | None = None) -> None:
    """Wait until these are the bot's messages there, and none grows any more."""

    def is_done() -> bool:
        said = replies(telegram, channel, thread)
        return [seen.visible for seen in said] == list(expected) and not any(
            Action.STOP in seen.actions for seen in said
        )

    try:
        await telegram.until(is_done, 5)
    except TimeoutError:
        raise AssertionError(f"{texts(telegram, channel, thread)} instead of {list(expected)}") from None


async def test_a_mention_in_a_group_is_answered_as_a_reply(telegram: TelegramPlatform, house: House) -> None:
    house.engine.add("你好")
    async with running(telegram, house):
        question = await telegram.say("hello")
        await done(telegram, "你好")
    (reply,) = replies(telegram)
    assert (reply.reply_to, reply.actions) == (question, frozenset({Action.RETRY}))
    assert house.engine.requests[0].messages[-1].content == "Mei: hello"


async def test_every_direct_message_is_answered(telegram: TelegramPlatform, house: House) -> None:
    async with running(telegram, house):
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")
    assert house.engine.requests[0].messages[-1].content == "hello"
