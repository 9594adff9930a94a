"""Messages that a question links to, as its text is now, and what was said before it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bot.config.schema import ConversationSection
from bot.domain import ChannelKey, Finished, FinishReason, FurtherKind, FurtherMessage, IncomingMessage
from tests.chat.test_edits import BEN, edited
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import CHANNEL, NOON, a_message

PLANS = ChannelKey("discord", "c2")
LINK = "https://example.org/{}"
SAID = {"lunch": "lunch is at noon", "launch": "the launch is on Friday"}


@pytest.fixture
def reads() -> list[str]:
    """The questions before which the channel was read."""
    return []


@pytest.fixture
async def harness(tmp_path: Path, reads: list[str]) -> AsyncIterator[Harness]:
    """A chat where links to `SAID` are followed, and one message was written before each question."""
    async with make_harness(tmp_path) as harness:

        async def linked(question: IncomingMessage) -> list[FurtherMessage]:
            names = [name for name in SAID if LINK.format(name) in question.text]
            return [FurtherMessage(name, PLANS.channel, BEN, SAID[name], NOON, FurtherKind.LINKED) for name in names]

        async def before(question: IncomingMessage, count: int) -> list[FurtherMessage]:
            reads.append(question.id)
            return [FurtherMessage("0", CHANNEL.channel, BEN, "hello all", NOON, FurtherKind.BEFORE)]

        harness.intake.context.linked["discord"] = linked
        harness.intake.context.before["discord"] = before
        yield harness


def asked(harness: Harness) -> list[str]:
    return str(harness.engine.requests[-1].messages[-1].content).split("\n\n")[0].splitlines()


@pytest.mark.parametrize("count", [0, 5])
async def test_an_edited_question_is_answered_with_what_it_links_to_now(
    harness: Harness, reads: list[str], count: int
) -> None:
    harness.settings.conversation = ConversationSection(context_messages=count)
    said_before = ["> Ben: hello all"] * (count > 0)
    question = a_message("when is it?", is_direct=False)
    await harness.ask(question)
    for names in [["launch"], ["lunch"], ["launch", "lunch"], []]:
        text = " ".join(["when is it?", *map(LINK.format, names)])
        await harness.replied(await edited(harness, question, text))
        read = sorted([*said_before, *(f"> Ben: {SAID[name]}" for name in names)])
        assert sorted(each for each in asked(harness) if each.startswith(">")) == read
    assert reads == [question.id] * (count > 0), "what was said before it stays"


async def test_a_link_in_a_later_part_of_a_question_is_followed(harness: Harness) -> None:
    harness.intake.continuations.longest["discord"] = 2000
    harness.settings.conversation = ConversationSection(context_messages=5)
    first = a_message("is this true:", is_direct=False)
    await harness.ask(first)
    part = replace(a_message(LINK.format("lunch"), is_direct=False), sent_at=first.sent_at + timedelta(seconds=1))
    joined = await harness.intake.accept(part)
    assert joined is not None
    await harness.replied(joined)
    assert asked(harness) == ["> Ben: hello all", "> Ben: lunch is at noon"]


async def test_a_question_that_is_stopped_while_the_channel_is_read_ends_at_once(harness: Harness) -> None:
    harness.settings.conversation = ConversationSection(context_messages=5)
    begun = asyncio.Event()

    async def read(question: IncomingMessage, count: int) -> list[FurtherMessage]:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    harness.intake.context.before["discord"] = read
    question = a_message("what is it?", is_direct=False)
    asking = asyncio.create_task(harness.ask(question))
    await begun.wait()
    exchange = await harness.store.find(question.channel, question.id)
    assert exchange is not None
    harness.exchanges.stop(exchange)
    async with asyncio.timeout(3):
        assert await asking == [Finished(FinishReason.CANCELLED)]
