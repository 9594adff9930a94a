"""Quotations: what the prompt shows of them, how they are cut, and what a deletion does to a prompt that waits."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bot.chat.settings import ChatSettings
from bot.config.schema import ConversationSection, LimitsSection
from bot.domain import Author, ChannelKey, Finished, FurtherKind, FurtherMessage, IncomingMessage, Queued
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, NOON, a_message
from tests.storage import bytes_in

BEN = Author("discord", "2", "Ben")
THREAD = replace(CHANNEL, thread="t1")


def last_prompt(harness: Harness) -> list[str]:
    return [message.content for message in harness.engine.requests[-1].messages]


async def answered(harness: Harness, text: str, *parts: str, author: Author = BEN) -> None:
    """Have a question answered in messages with these ids."""
    exchange = await harness.accept(a_message(text, author=author))
    for number, part in enumerate(parts):
        await harness.record_part(exchange, number, part)
    await harness.replied(exchange)


# In the prompt.


async def test_a_quotation_without_a_text_is_the_question(harness: Harness) -> None:
    await harness.ask(a_message("", quoted="What is the capital of France?", quoted_id="b1"))
    await harness.ask(a_message(" ", quoted="/clear"))
    assert last_prompt(harness) == ["What is the capital of France?", "ok", "/clear"]
    assert "there was none" in notice_of(await harness.ask(a_message("", quoted=" \n")))


async def test_an_older_answer_that_is_pointed_at_is_quoted(harness: Harness) -> None:
    harness.engine.add("Paris.", "A blue whale is 30 m long.")
    await answered(harness, "capital of France?", "m1", "m2")
    await answered(harness, "how long is a blue whale?", "m3")
    question = a_message("how many live there?", quoted="Paris.", quoted_id="m2", quotes_bot=True)
    await harness.ask(question)
    assert last_prompt(harness)[-1] == "> Paris.\n\nhow many live there?"
    await harness.ask(a_message("and here?"))
    assert last_prompt(harness)[-3] == "> Paris.\n\nhow many live there?", "as it was asked"


@pytest.mark.parametrize("part", ["m1", "m2"])
async def test_the_last_answer_is_not_quoted_again(harness: Harness, part: str) -> None:
    harness.engine.add("Paris.")
    await answered(harness, "capital of France?", "m1", "m2")
    await harness.ask(a_message("how many live there?", quoted="Paris.", quoted_id=part, quotes_bot=True))
    assert last_prompt(harness) == ["capital of France?", "Paris.", "how many live there?"]


async def test_a_selected_part_of_the_last_answer_is_quoted(harness: Harness) -> None:
    harness.engine.add("**北京**、**上海**和广州都是大城市。")
    await answered(harness, "说三个大城市", "m1")
    await harness.ask(a_message("那里有多少人？", quoted="上海", quoted_id="m1", quotes_bot=True))
    assert last_prompt(harness)[-1] == "> 上海\n\n那里有多少人？"
    await harness.ask(a_message("then?", quoted="北京、上海和广州都是大城市。", quoted_id="m1", quotes_bot=True))
    assert last_prompt(harness)[-1].startswith("> 北京")  # no longer the last one


async def test_an_answer_that_the_prompt_leaves_out_is_quoted(tmp_path: Path) -> None:
    pointing = a_message("how many live there?", quoted="Paris.", quoted_id="m1", quotes_bot=True)
    for conversation, limit in ((ConversationSection(history_turns=0), 2048), (ConversationSection(), 80)):
        engine = ScriptedEngine("Paris.", context_length=limit)
        async with make_harness(tmp_path / str(limit), engine, conversation=conversation) as harness:
            await answered(harness, "What is the capital of France?", "m1")
            await harness.ask(pointing)
            assert last_prompt(harness) == ["> Paris.\n\nhow many live there?"]


async def test_after_a_clear_an_answer_that_is_pointed_at_is_quoted(harness: Harness) -> None:
    harness.engine.add("Paris.")
    await answered(harness, "capital of France?", "m1")
    await harness.ask(a_message("/clear"))
    await harness.ask(a_message("how many live there?", quoted="Paris.", quoted_id="m1", quotes_bot=True))
    assert last_prompt(harness) == ["> Paris.\n\nhow many live there?"]


# Cut.


async def test_a_quotation_longer_than_the_limit_is_cut_with_a_notice(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(max_message_chars=20)) as harness:
        events = await harness.ask(a_message("summarize", quoted="0123456789abcdef"))
        assert last_prompt(harness) == ["> 0123456789a\n\nsummarize"]
        assert "first 11 characters" in notice_of(events)
        assert text_of(events) == "ok"
        assert "leaves no room" in notice_of(await harness.ask(a_message("a" * 20, quoted="0")))
        assert last_prompt(harness)[-1] == "a" * 20
        assert "21 characters" in notice_of(await harness.ask(a_message("a" * 21, quoted="0")))
        await harness.ask(a_message("", quoted="x" * 30))
        assert last_prompt(harness)[-1] == "x" * 20


async def test_the_context_drops_history_first_then_cuts_the_quotation_then_refuses(tmp_path: Path) -> None:
    # A token of the scripted engine is a character: 100 of context less 40 for the answer leave 60.
    engine = ScriptedEngine(context_length=100)
    async with make_harness(tmp_path, engine, conversation=ConversationSection(answer_tokens=40)) as harness:
        await harness.ask(a_message("h" * 20))
        events = await harness.ask(a_message("q" * 8, quoted="0" * 48))
        assert last_prompt(harness) == ["> " + "0" * 48 + "\n\n" + "q" * 8]
        assert "left out: 1" in notice_of(events)
        assert "quotation" not in notice_of(events)
        events = await harness.ask(a_message("q" * 8, quoted="0" * 5000))
        assert last_prompt(harness) == ["> " + "0" * 48 + "\n\n" + "q" * 8]
        assert "first 48 characters" in notice_of(events)
        assert "leaves no room" in notice_of(await harness.ask(a_message("q" * 90, quoted="0" * 5000)))
        assert "100 tokens" in notice_of(await harness.ask(a_message("q" * 100, quoted="0" * 5000)))
        assert len(last_prompt(harness)[-1]) == 90, "the last one was not asked"


# Deletions while a prompt waits.

Deletion = Callable[[Harness, IncomingMessage], Awaitable[object]]
DELETIONS: dict[str, Deletion] = {
    "deleted": lambda harness, secret: harness.intake.delete(secret.channel, secret.id),
    "edited": lambda harness, secret: harness.intake.edit(replace(secret, text="nothing")),
    "cleared": lambda harness, _: harness.ask(a_message("/clear", channel=THREAD, author=BEN)),
    "forgotten": lambda harness, secret: harness.ask(
        a_message("/forget me", author=secret.author, channel=ChannelKey("discord", "c2"))
    ),
}

# Of a message that is no question, by its author or an admin.
ELSEWHERE: dict[str, Deletion] = {
    "deleted": lambda harness, linked: harness.intake.delete(linked.channel, linked.id),
    "edited": lambda harness, linked: harness.intake.edit(replace(linked, text="never mind")),
    "cleared": lambda harness, linked: harness.ask(a_message("/clear", channel=linked.channel)),
    "forgotten": lambda harness, linked: harness.ask(a_message("/forget me", author=linked.author, channel=THREAD)),
}


@pytest.mark.parametrize(
    ("deletion", "is_quoted"),
    # A /clear covers all that has the text in its history, too.
    [
        (deletion, is_quoted)
        for deletion in DELETIONS
        for is_quoted in (True, False)
        if is_quoted or deletion != "cleared"
    ],
)
async def test_a_prompt_that_waits_for_the_engine_is_built_again_without_the_deleted_text(
    tmp_path: Path, deletion: str, *, is_quoted: bool
) -> None:
    engine = ScriptedEngine(max_batch_size=1)
    async with make_harness(tmp_path, engine) as harness:
        secret = a_message("my secret", channel=THREAD)
        await harness.ask(secret)
        engine.go_on.clear()
        before = asyncio.create_task(harness.ask(a_message("others first", channel=ChannelKey("discord", "c9"))))
        await engine.asked(2)
        quoting = a_message("is that so?", author=BEN, channel=THREAD)
        if is_quoted:
            quoting = replace(quoting, channel=replace(THREAD, thread="t2"), quoted="my secret", quoted_id=secret.id)
        exchange = await harness.accept(quoting)
        waiting = asyncio.create_task(harness.replied(exchange))
        await engine.asked(3)
        assert "my secret" in engine.requests[2].messages[0].content
        erasing = asyncio.create_task(_awaited(DELETIONS[deletion](harness, secret)))
        await engine.asked(4)
        engine.go_on.set()
        await erasing
        await before
        events = await waiting
        assert text_of(events) == "ok"
        assert isinstance(events[-1], Finished)
        assert all(isinstance(event, Queued) for event in events[:-2])
        asked = [request for request in engine.requests[3:] if request.messages[-1].content.endswith("is that so?")]
        assert [
            message.content for request in asked for message in request.messages if "secret" in message.content
        ] == []
    assert b"secret" not in bytes_in(tmp_path)


async def _awaited(work: Awaitable[object]) -> None:
    await work


@pytest.mark.parametrize("deletion", ELSEWHERE)
@pytest.mark.parametrize("is_earlier", [True, False], ids=["earlier question", "question"])
async def test_a_linked_message_leaves_a_prompt_that_waits(
    harness: Harness, deletion: str, *, is_earlier: bool
) -> None:
    plans = ChannelKey("discord", "c2")
    secret = a_message("the launch is on Friday", channel=plans, author=BEN)

    async def read(question: IncomingMessage) -> list[FurtherMessage]:
        if "/plans/" not in question.text:
            return []
        return [FurtherMessage(secret.id, plans.channel, BEN, secret.text, NOON, FurtherKind.LINKED)]

    harness.intake.context.linked["discord"] = read
    linking = a_message("is https://example.org/plans/1 true?")
    if is_earlier:
        await harness.ask(linking)
    harness.engine.go_on.clear()
    waiting = asyncio.create_task(harness.ask(a_message("and when?") if is_earlier else linking))
    await harness.engine.asked(1 + is_earlier)
    assert "Friday" in harness.engine.requests[-1].messages[0].content
    erasing = asyncio.create_task(_awaited(ELSEWHERE[deletion](harness, secret)))
    await harness.engine.asked(2 + is_earlier)
    harness.engine.go_on.set()
    await erasing
    assert text_of(await waiting) == "ok"
    assert "Friday" not in str(harness.engine.requests[1 + is_earlier :])


async def test_a_deletion_that_does_not_concern_a_prompt_costs_it_no_place_in_the_queue(harness: Harness) -> None:
    await harness.ask(a_message("hi"))
    harness.engine.go_on.clear()
    waiting = asyncio.create_task(harness.ask(a_message("and then?")))
    await harness.engine.asked(2)
    await harness.intake.delete(CHANNEL, "never seen")
    elsewhere = a_message("elsewhere", channel=THREAD)
    await harness.intake.store(elsewhere)
    await harness.intake.delete(CHANNEL, elsewhere.id)
    harness.engine.go_on.set()
    assert text_of(await waiting) == "ok"
    assert len(harness.engine.requests) == 2


async def test_an_answer_that_people_already_read_goes_on_after_a_deletion(harness: Harness) -> None:
    secret, go_on = a_message("my secret"), asyncio.Event()
    await harness.ask(secret)
    harness.engine.add(["It ", go_on, "is."])
    exchange = await harness.accept(a_message("is that so?", author=BEN))
    async with harness.intake.answers.stream(exchange) as stream:
        texts = []
        async for event in stream:
            texts.append(event)
            if text_of(texts) == "It ":
                await harness.intake.delete(secret.channel, secret.id)
                go_on.set()
    assert text_of(texts) == "It is."
    assert len(harness.engine.requests) == 2


async def test_a_question_whose_only_text_was_deleted_says_so(harness: Harness) -> None:
    harness.engine.go_on.clear()
    asked = asyncio.create_task(harness.ask(a_message("", quoted="my secret", quoted_id="b1")))
    await harness.engine.asked(1)
    await harness.intake.delete(CHANNEL, "b1")
    assert "was deleted" in notice_of(await asked)
    harness.engine.go_on.set()
    await harness.ask(a_message("hello"))
    assert last_prompt(harness) == ["hello"]


async def test_a_deletion_between_store_and_answer_takes_the_quotation_away(harness: Harness) -> None:
    exchange = await harness.accept(a_message("is that so?", quoted="my secret", quoted_id="b1"))
    await harness.intake.delete(CHANNEL, "b1")
    await harness.replied(exchange)
    assert last_prompt(harness) == ["is that so?"]


async def test_a_message_that_arrives_after_its_deletion_is_not_answered(harness: Harness, tmp_path: Path) -> None:
    await harness.intake.delete(CHANNEL, "b1", is_expected=True)
    assert await harness.intake.accept(a_message("my secret", id="b1")) is None
    await harness.intake.store(a_message("my secret", id="b1"))
    assert await harness.intake.recover("discord") == []
    assert b"secret" not in bytes_in(tmp_path)


def test_the_settings_limit_the_quotation() -> None:
    assert ChatSettings().max_message_chars == LimitsSection().max_message_chars
