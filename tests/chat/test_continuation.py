"""Several messages as one question: pieces of a paste, albums, a comment with a file or a forward."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.chat.continuation import Continuations
from bot.config.schema import Config
from bot.delivery.replies import Replies
from bot.domain import Attachment, Author, Exchange, IncomingMessage, Scope, Status
from tests.harness.fakes import FakeMessenger, FastClock
from tests.harness.harness import Harness, make_harness, notice_of, set_paused, text_of
from tests.harness.messages import NOON, a_message

LONGEST = 100


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path) as harness:
        prepare(harness)
        yield harness


def prepare(harness: Harness) -> None:
    harness.intake.continuations.longest["slack"] = harness.intake.continuations.longest["discord"] = LONGEST


def said(text: str, id: str, seconds: float = 0.0, **facts: Any) -> IncomingMessage:
    return replace(a_message(text), id=id, sent_at=NOON + timedelta(seconds=seconds), **facts)


def asked(harness: Harness) -> str:
    return str(harness.engine.requests[-1].messages[-1].content)


PIECES = [said("a" * LONGEST, "1"), said("b" * LONGEST, "2", 0.4), said("the end", "3", 0.8)]
WHOLE = f"{'a' * LONGEST}\n{'b' * LONGEST}\nthe end"


async def accept(harness: Harness, *messages: IncomingMessage) -> Exchange:
    exchange = None
    for message in messages:
        exchange = await harness.intake.accept(message)
    assert exchange is not None
    return exchange


async def test_the_pieces_of_a_paste_are_one_question(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    harness.engine.add("four")
    assert text_of(await harness.replied(exchange)) == "four"
    assert asked(harness) == WHOLE
    stored = await harness.stored(exchange)
    assert (stored.status, stored.message.text, len(stored.message.continuations)) == (
        Status.DELIVERED,
        "a" * LONGEST,
        2,
    )


async def test_a_piece_that_comes_again_changes_nothing(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    harness.engine.add("four")
    await harness.replied(exchange)
    for message in PIECES:
        assert await harness.intake.accept(message) is None


async def test_the_next_run_goes_on_with_the_question(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as harness:
        prepare(harness)
        await accept(harness, PIECES[0])
    async with make_harness(tmp_path) as harness:
        prepare(harness)
        for message in PIECES:
            await harness.intake.store(message)
        [exchange] = await harness.intake.recover(PIECES[0].channel.platform)
        harness.engine.add("four")
        await harness.replied(exchange)
        assert asked(harness) == WHOLE


async def test_two_questions_of_one_second_stay_two(harness: Harness) -> None:
    first, second = [await accept(harness, said("one?", "1")), await accept(harness, said("two?", "2"))]
    assert first.id != second.id


@pytest.mark.parametrize(
    "facts",
    [
        {"author": replace(a_message().author, id="9", name="Ben")},
        {"channel": replace(a_message().channel, channel="elsewhere")},
        {"sent_at": NOON + timedelta(seconds=9)},
        {"text": "/help"},
        {"quoted": "what somebody said", "quoted_id": "0"},
    ],
    ids=["another person", "another channel", "later", "a command", "a reply"],
)
async def test_unrelated_messages_are_not_added(harness: Harness, facts: dict[str, Any]) -> None:
    first = await accept(harness, PIECES[0])
    second = await harness.intake.accept(replace(PIECES[2], **facts))
    assert second is not None
    assert second.id != first.id


@pytest.mark.parametrize("end", [":wave:", ":blob:", ":+1::skin-tone-3:"])
async def test_a_question_that_ends_with_an_emoji_is_whole(harness: Harness, end: str) -> None:
    exchange = await accept(harness, said(f"how tall is Everest? {end}", "1"))
    assert await harness.intake.accept_continuation(said("Ben, tea?", "2", 1.0)) is None
    await harness.replied(exchange)
    assert asked(harness) == f"how tall is Everest? {end}"


async def test_a_file_right_after_a_question_belongs_to_it(harness: Harness) -> None:
    question = said("what does it say?", "1")
    file = said("", "2", 1.0, files=(Attachment("a.txt", text="words"),))
    exchange = await accept(harness, question)
    joined = await harness.intake.accept_continuation(file)
    assert joined is not None
    assert joined.id == exchange.id
    harness.engine.add("four")
    await harness.replied(joined)
    assert asked(harness) == "a.txt:\nwords\n\nwhat does it say?"


async def test_a_reply_with_a_file_is_a_question_of_its_own(harness: Harness) -> None:
    exchange = await accept(harness, said("which language is it?", "1"))
    file = Attachment("a.txt", text="words", id="F1")
    await harness.replied(exchange)
    reply = await accept(harness, said("", "2", 1.0, files=(file,), quoted="what Ben said", quoted_id="0"))
    assert reply.id != exchange.id
    await harness.replied(reply)
    assert "what Ben said" in asked(harness)
    await harness.intake.delete(reply.message.channel, "0")
    assert "what Ben said" not in str(await harness.stored(reply))


async def test_an_album_that_replies_quotes_the_message_once(harness: Harness) -> None:
    reply: dict[str, Any] = {"album": "7", "quoted": "what Ben said", "quoted_id": "0"}
    files = Attachment("a.txt", text="words"), Attachment("b.txt", text="of Ben", is_quoted=True)
    exchange = await accept(harness, said("is it so?", "1", **reply), said("", "2", 1.0, files=files, **reply))
    assert [(each.text, each.files) for each in exchange.message.continuations] == [("", files[:1])]


async def test_a_bare_mention_waits_for_the_text_that_follows(harness: Harness) -> None:
    await accept(harness, said("", "1"))
    joined = await harness.intake.accept_continuation(said("why is the sky blue?", "2", 2.0))
    assert joined is not None
    harness.engine.add("four")
    await harness.replied(joined)
    assert asked(harness) == "why is the sky blue?"


async def test_chatter_after_a_question_is_no_part_of_it(harness: Harness) -> None:
    await accept(harness, said("why is the sky blue?", "1"))
    assert await harness.intake.accept_continuation(said("Ben, lunch?", "2", 1.0)) is None


async def test_a_forward_after_a_comment_is_quoted(harness: Harness) -> None:
    await accept(harness, said("is that true?", "1"))
    forward = said("", "2", 1.0, quoted="the moon is cheese", is_forward=True)
    joined = await harness.intake.accept_continuation(forward)
    assert joined is not None
    harness.engine.add("four")
    await harness.replied(joined)
    assert asked(harness) == "> the moon is cheese\n\nis that true?"


async def test_an_answer_is_made_again_when_a_part_comes_late(harness: Harness) -> None:
    exchange = await accept(harness, said("translate this:", "1"))
    harness.engine.add("what?")
    await harness.replied(exchange)
    joined = await harness.intake.accept_continuation(said("guten Tag", "2", 2.5))
    assert joined is not None
    assert joined.id == exchange.id
    harness.engine.add("good day")
    await harness.replied(joined)
    assert asked(harness) == "translate this:\nguten Tag"
    answer = (await harness.stored(exchange)).answer
    assert answer is not None
    assert answer.text == "good day"


@pytest.mark.parametrize(
    ("limits", "notice"),
    [
        ({"quotas": {"user": {"tokens_per_day": 1}}}, "You have used up your quota (tokens per day: 1)"),
        ({"limits": {"max_message_chars": 20}}, "Your message is too long: 25 characters, the limit is 20."),
    ],
    ids=["quota", "length"],
)
async def test_an_answer_stays_where_a_late_part_is_refused(harness: Harness, limits: Any, notice: str) -> None:
    exchange = await accept(harness, said("translate this:", "1"))
    harness.engine.add("good day")
    await harness.replied(exchange)
    config = Config(**limits)
    harness.settings.reconfigure(config)
    harness.access.reconfigure(config.access, config.limits)
    joined = await harness.intake.accept_continuation(said("guten Tag", "2", 2.5))
    assert joined is not None
    events = await harness.replied(joined)
    assert text_of(events) == "good day"
    assert notice_of(events).startswith(notice)
    assert len(harness.engine.requests) == 1


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "being answered"])
async def test_a_question_in_two_messages_counts_as_one(tmp_path: Path, is_answered: bool) -> None:
    once = {"quotas": {"user": {"answers_per_day": 1}}, "limits": {"requests_per_minute": 1}}
    config = Config(**once)  # type: ignore[arg-type]
    async with make_harness(tmp_path, limits=config.limits) as harness:
        prepare(harness)
        harness.settings.reconfigure(config)
        harness.engine.add("what?" if is_answered else ["what", asyncio.Event()], "good day")
        async with Replies(harness.intake, FakeMessenger(harness.clock), FastClock(1000)) as replies:
            replies.start(await accept(harness, said("translate this:", "1")))
            await harness.engine.asked(1)
            if is_answered:
                await replies.wait_idle()
            joined = await harness.intake.accept_continuation(said("guten Tag", "2", 2.5))
            assert joined is not None
            replies.start(joined)
            await replies.wait_idle()
        answer = (await harness.stored(joined)).answer
        assert answer is not None
        assert (answer.text, answer.notice) == ("good day", "")
        use = await harness.store.usage(Scope("user", "discord:1"), NOON.date())
        assert sum(each.answers for each in use.values()) == 1


async def test_a_deleted_part_leaves_the_question(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    await harness.intake.delete(exchange.message.channel, "2")
    harness.engine.add("four")
    await harness.replied(exchange)
    assert asked(harness) == f"{'a' * LONGEST}\nthe end"
    assert await harness.intake.accept(PIECES[1]) is None


async def test_the_parts_go_with_their_question(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    await harness.intake.delete(exchange.message.channel, "1")
    assert (await harness.stored(exchange)).message.further == ()


async def test_an_edited_part_is_answered_again(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    harness.engine.add("four")
    await harness.replied(exchange)
    edited = await harness.intake.edit(replace(PIECES[2], text="another end"))
    assert edited is not None
    assert edited.id == exchange.id
    harness.engine.add("five")
    await harness.replied(edited)
    assert asked(harness) == WHOLE.replace("the end", "another end")
    assert await harness.intake.edit(replace(PIECES[2], text="another end")) is None


@pytest.mark.parametrize(("id", "expected"), [("F1", "words"), ("F2", "other")])
async def test_an_edited_part_keeps_only_files_that_it_still_has(harness: Harness, id: str, expected: str) -> None:
    file = Attachment("a.txt", size=5, text="words", id="F1")
    exchange = await accept(harness, said("which language is it?", "1"), said("", "2", 1.0, files=(file,)))
    await harness.replied(exchange)
    edited = await harness.intake.edit(said("look", "2", files=(replace(file, text="other", id=id),)))
    assert edited is not None
    assert [each.text for part in edited.message.continuations for each in part.files] == [expected]


@pytest.mark.parametrize(
    "rules",
    [{"access": {"allow_users": ["discord:7"]}}, {"access": {"deny_channels": ["discord:c1"]}}],
    ids=["another person", "elsewhere"],
)
async def test_an_edited_part_of_a_person_who_is_denied_since_is_deleted(harness: Harness, rules: Any) -> None:
    exchange = await accept(harness, *PIECES)
    await harness.replied(exchange)
    harness.access.reconfigure(Config(**rules).access, harness.access.limits)
    assert await harness.intake.edit(replace(PIECES[2], text="my door code is 7734")) is None
    stored = await harness.stored(exchange)
    assert [each.text for each in stored.message.continuations] == ["b" * LONGEST]
    assert stored.answer is not None


async def test_an_answer_stays_where_the_edit_of_a_part_is_refused(harness: Harness) -> None:
    exchange = await accept(harness, *PIECES)
    harness.engine.add("four")
    await harness.replied(exchange)
    set_paused(harness.access)
    edited = await harness.intake.edit(replace(PIECES[1], text="b"))
    assert edited is not None
    events = await harness.replied(edited)
    assert (text_of(events), notice_of(events)) == ("four", "An admin has paused me. Please ask again later.")
    assert (await harness.stored(exchange)).message.continuations[0].text == "b"


@pytest.mark.parametrize("text", ["list these words, please", "and which of these?"])
async def test_an_edited_question_is_whole(harness: Harness, text: str) -> None:
    exchange = await accept(harness, said("which of these is a fruit:", "1"))
    edited = await harness.intake.edit(said(text, "1"))
    assert edited is not None
    harness.engine.add("yes")
    await harness.replied(edited)
    following = await accept(harness, said("good morning", "2", 2.0))
    assert following.id != exchange.id


async def test_a_question_is_remembered_for_a_minute(harness: Harness) -> None:
    continuations = Continuations(harness.store, harness.clock, NOON)
    continuations.longest["discord"] = LONGEST
    first, following = said("a" * LONGEST, "1", 100.0), said("b" * LONGEST, "3", 100.4)
    exchange = await accept(harness, first)
    continuations.note(exchange, first)
    assert await continuations.find(following) == exchange
    harness.clock.jump(61.0)
    other = said("from somebody else", "2", 100.2, author=Author("discord", "2", "Ben"))
    continuations.note(await accept(harness, other), other)
    assert await continuations.find(following) is None
