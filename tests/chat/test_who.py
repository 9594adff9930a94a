"""`who`: who may ask in a place; others get a sentence, and may still use commands."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from bot.chat.intake import ButtonResult
from bot.config.schema import AccessSection, Config
from bot.domain import Action, Author, ChannelKey, Exchange, IncomingMessage
from bot.errors import PlatformUnavailable, RateLimited
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, MEI, a_message

ADA, BEN = Author("discord", "9", "Ada"), Author("discord", "2", "Ben", frozenset({"r1"}))
TOPIC = ChannelKey(CHANNEL.platform, CHANNEL.channel, "t1")
REFUSED = "You may not ask me here."


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path, access=AccessSection(admins=(ADA.key,))) as harness:
        yield harness


def configure(harness: Harness, who: Any, *, also: Any = MappingProxyType({}), **tables: Any) -> None:
    harness.settings.reconfigure(Config(**{"channels": {str(CHANNEL): {"who": who, **also}}, **tables}))


def said(author: Author, text: str = "hello", channel: ChannelKey = CHANNEL) -> IncomingMessage:
    return a_message(text, author=author, channel=channel, is_direct=False, server="s1")


async def reply_to(harness: Harness, message: IncomingMessage) -> str:
    events = await harness.ask(message)
    return text_of(events) or notice_of(events)


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ("everyone", [MEI, BEN, ADA]),
        (["discord:1"], [MEI, ADA]),
        (["discord:r1"], [BEN, ADA]),
        (["discord:1", "discord:r1"], [MEI, BEN, ADA]),
        ([], [ADA]),
    ],
    ids=str,
)
async def test_only_these_people_are_answered(harness: Harness, who: Any, allowed: list[Author]) -> None:
    configure(harness, who)
    for author in (MEI, BEN, ADA):
        assert await reply_to(harness, said(author)) == ("ok" if author in allowed else REFUSED)
        assert await reply_to(harness, said(author, channel=ChannelKey("discord", "c2"))) == "ok"
    assert len(harness.engine.requests) == 3 + len(allowed)


async def test_the_narrowest_place_counts(harness: Harness) -> None:
    configure(harness, [], servers={"discord:s1": {"who": "everyone"}}, threads={str(TOPIC): {"who": "everyone"}})
    assert await reply_to(harness, said(MEI)) == REFUSED
    assert await reply_to(harness, said(MEI, channel=TOPIC)) == "ok"


async def test_managers_are_asked_about_each_time(harness: Harness) -> None:
    managers = {MEI.id}

    async def is_manager(message: IncomingMessage) -> bool:
        if message.author == BEN:
            raise PlatformUnavailable("gone")
        return message.author.id in managers

    harness.access.reconfigure(AccessSection(settings_by="admins"), harness.access.limits)
    harness.access.register_managers("discord", is_manager)
    configure(harness, "managers")
    assert await reply_to(harness, said(MEI)) == "ok"
    managers.clear()
    assert await reply_to(harness, said(MEI)) == "Only admins and those who manage this channel may ask me here."
    assert await reply_to(harness, said(BEN)) == "I could not check your permissions. Please ask again."
    assert await reply_to(harness, replace(said(MEI), is_direct=True)) == "ok"


async def test_people_who_talk_beside_the_bot_cost_the_platform_no_call_for_each_message(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.intake, "_clock", harness.clock)
    managers, asked = {MEI.id}, list[str]()

    async def is_manager(message: IncomingMessage) -> bool:
        asked.append(message.author.id)
        if len(asked) > 3:
            raise RateLimited(30.0)
        return message.author.id in managers

    async def listens(author: Author) -> bool:
        return await harness.intake.listens(said(author), threads=False)

    harness.access.register_managers("discord", is_manager)
    configure(harness, "managers", also={"answer": "all"})
    assert [await listens(BEN) for _ in range(20)] == [False] * 20
    assert await listens(MEI)
    assert asked == [BEN.id, MEI.id]
    managers.add(BEN.id)
    await harness.clock.advance(60)
    assert await listens(BEN)
    configure(harness, "everyone", also={"answer": "all"})
    assert await listens(BEN)


async def test_commands_are_carried_out_for_others_too(harness: Harness) -> None:
    configure(harness, [])
    assert "/forget" in await reply_to(harness, said(MEI, "/help"))
    assert await reply_to(harness, said(MEI, "/forget me")) == "I have no messages of yours."


async def answered(harness: Harness, question: IncomingMessage) -> Exchange:
    harness.engine.add("a good answer")
    exchange = await harness.accept(question)
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    return exchange


async def test_a_person_who_may_not_ask_any_more_keeps_the_answer(harness: Harness) -> None:
    question = said(MEI)
    exchange = await answered(harness, question)
    configure(harness, [])
    assert await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI) == ButtonResult(notice=REFUSED)
    assert await reply_to(harness, said(MEI, "/retry")) == REFUSED
    edited = await harness.intake.edit(replace(question, text="hello again"))
    assert edited is not None
    events = await harness.replied(edited)
    assert (text_of(events), notice_of(events)) == ("a good answer", REFUSED)
    assert (await harness.stored(exchange)).message.text == "hello again"
    assert len(harness.engine.requests) == 1


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "unreachable"])
async def test_another_answer_waits_for_a_platform_that_says_who_manages(harness: Harness, is_silent: bool) -> None:
    reachable = asyncio.Event()

    async def is_manager(message: IncomingMessage) -> bool:
        if is_silent:
            await reachable.wait()
        elif not reachable.is_set():
            raise PlatformUnavailable("gone")
        return True

    configure(harness, "managers")
    harness.access.register_managers("discord", is_manager)
    reachable.set()
    exchange = await answered(harness, said(MEI))
    reachable.clear()
    result = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)
    assert result == ButtonResult(notice="I could not check your permissions. Please ask again.")
    kept = (await harness.stored(exchange)).answer
    assert kept is not None
    assert kept.text == "a good answer"
    reachable.set()
    again = (await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)).again
    assert again is not None
    reachable.clear()  # that it may be answered was said
    assert text_of(await harness.replied(again)) == "ok"
