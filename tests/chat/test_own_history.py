"""`history = "member"`: each person's prompt has their own turns only, and /clear deletes those of its author."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.config.places import PlaceSection
from bot.config.schema import AccessSection, Config
from bot.domain import Author, ChannelKey, Finished, FinishReason, IncomingMessage
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, MEI, a_message

BEN, ADA = Author("discord", "2", "Ben"), Author("discord", "9", "Ada")
TOPIC = ChannelKey(CHANNEL.platform, CHANNEL.channel, "t1")


@pytest.fixture(params=["everyone", "admins"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    access = AccessSection(admins=(ADA.key,), clear_by=request.param)
    async with make_harness(tmp_path, access=access) as harness:
        configure(harness)
        yield harness


def configure(harness: Harness, **channel: str) -> None:
    harness.settings.reconfigure(
        Config(channels={str(CHANNEL): PlaceSection.model_validate({"history": "member", **channel})})
    )


def said(text: str, author: Author = MEI, channel: ChannelKey = CHANNEL) -> IncomingMessage:
    return a_message(text, author=author, channel=channel, is_direct=False, server="s1")


async def seen_by(harness: Harness, author: Author, channel: ChannelKey = CHANNEL) -> list[str]:
    """Ask a question; return the earlier questions that its prompt has."""
    await harness.ask(said("and now?", author, channel))
    asked = [each.content for each in harness.engine.requests[-1].messages if each.role == "user"]
    return [each.partition(": ")[2] for each in asked[:-1]]


async def test_a_prompt_has_only_turns_of_its_author(harness: Harness) -> None:
    for text, author in (("one", MEI), ("two", BEN), ("three", MEI)):
        await harness.ask(said(text, author))
    assert await seen_by(harness, MEI) == ["one", "three"]
    assert await seen_by(harness, BEN) == ["two"]
    assert await seen_by(harness, ADA) == []
    configure(harness, history="shared")
    assert await seen_by(harness, ADA) == ["one", "two", "three", *["and now?"] * 3]


async def test_clear_deletes_what_its_author_said_and_stops_their_answer_only(harness: Harness) -> None:
    await harness.ask(said("one"))
    await harness.ask(said("two", BEN))
    hold = asyncio.Event()
    harness.engine.add(["…", hold], ["…", hold, "whole"])
    hers = asyncio.create_task(harness.ask(said("three", MEI, TOPIC)))
    await harness.engine.asked(3)
    his = asyncio.create_task(harness.ask(said("four", BEN)))
    await harness.engine.asked(4)
    told = notice_of(await harness.ask(said("/clear")))
    assert told == "Deleted: everything you said here, and my answers (2)."
    assert isinstance(last := (await hers)[-1], Finished)
    assert last.reason is FinishReason.CANCELLED
    hold.set()
    assert text_of(await his) == "…whole"
    assert await seen_by(harness, MEI) == []
    assert await seen_by(harness, BEN) == ["two", "four"]


async def test_an_admins_clear_deletes_the_whole_conversation(harness: Harness) -> None:
    await harness.ask(said("one"))
    await harness.ask(said("two", BEN))
    assert "(2)" in notice_of(await harness.ask(said("/clear", ADA)))
    assert await seen_by(harness, MEI) == await seen_by(harness, BEN) == []


async def test_it_is_switched_on_in_the_chat(harness: Harness) -> None:
    harness.settings.reconfigure(Config())
    await harness.ask(said("one"))
    told = notice_of(await harness.ask(said("/settings history member", ADA)))
    assert "`history` = member (for this channel, set in the chat)" in told
    assert await seen_by(harness, BEN) == []
    assert await seen_by(harness, MEI) == ["one"]
