"""Attached pictures: fetched from the platform, scaled down, shown to a model that sees, deleted."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.domain import Attachment, Exchange, Fallback, IncomingMessage, Kind
from bot.errors import PicturesRefused
from tests.adapters.test_files import Chat, answer, asked, chat
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import a_message
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.telegram_harness import running as running_telegram
from tests.reading.hostile_pictures import drawn, png

__all__ = ["chat"]

CAT = ("cat.png", drawn("PNG", (640, 480)), "image/png")
CANNOT_SEE = "I cannot see pictures, so I skipped cat.png."


def sides(harness: Harness) -> list[list[tuple[int, int]]]:
    """Return the sides of the pictures with each message of the last prompt."""
    messages = harness.engine.requests[-1].messages
    return [[(each.width, each.height) for each in message.pictures] for message in messages]


async def test_a_picture_is_shown_to_a_model_that_sees(chat: Chat) -> None:
    chat[1].engine.most_pictures = 4
    chat[1].engine.add("cat")
    await chat[2]("what is it?", *CAT)
    assert await answer(chat, "cat") == "cat"
    assert asked(chat) == "what is it?"
    assert sides(chat[1]) == [[(640, 480)]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
async def test_a_picture_without_words_is_the_question(chat: Chat, kind: str) -> None:
    chat[1].engine.most_pictures = 4
    chat[1].engine.add("cat")
    await chat[2]("", f"cat.{kind.lower()}", drawn(kind), f"image/{kind.lower()}")
    await answer(chat, "cat")
    assert (asked(chat), sides(chat[1])) == ("", [[(64, 48)]])


async def test_a_picture_alone_is_answered_with_a_line(chat: Chat) -> None:
    await chat[2]("", *CAT)
    assert await answer(chat, "I") == CANNOT_SEE.replace(" ", "")
    assert chat[0].shelf.asked == []


async def test_a_picture_in_a_quoted_message_is_shown(chat: Chat) -> None:
    chat[1].engine.most_pictures = 4
    pointed = await chat[2]("my cat", *CAT, direct=False, author="Ben", mention=False)
    await chat[2]("what is it?", direct=False, reply_to=pointed)
    await chat[1].engine.asked(1)
    assert "> my cat" in asked(chat)
    assert sides(chat[1])[-1] == [(640, 480)]


@pytest.mark.parametrize(
    ("file", "notice"),
    [
        (("a.png", png((b"IDAT", b""), size=(9000, 9000)), "image/png"), "I did not read a.png: too large"),
        (("a.jpg", drawn("JPEG")[:99], "image/jpeg"), "I could not read a.jpg: the file is damaged."),
        (("a.heic", b"....ftypheic", "image/heic"), "I cannot read files of this kind: a.heic."),
    ],
)
async def test_a_picture_that_cannot_be_read_is_named_in_one_line(
    chat: Chat, file: tuple[str, bytes, str], notice: str
) -> None:
    chat[1].engine.most_pictures = 4
    chat[1].engine.add("four")
    await chat[2]("what is it?", *file)
    assert (await answer(chat, "four")).startswith(f"four{notice}".replace(" ", ""))
    assert sides(chat[1]) == [[]]


async def test_a_picture_is_not_fetched_elsewhere(chat: Chat) -> None:
    chat[0].shelf.elsewhere = "http://127.0.0.1:9/stolen"
    chat[1].engine.most_pictures = 4
    chat[1].engine.add("four")
    await chat[2]("what is it?", *CAT)
    assert "thefilecouldnotbefetched" in await answer(chat, "four")
    assert len(chat[0].shelf.asked) == 1


async def test_of_a_telegram_photo_the_largest_size_is_shown(tmp_path: Path) -> None:
    async with TelegramPlatform() as telegram, make_harness(tmp_path) as harness:
        harness.engine.most_pictures = 4
        async with running_telegram(telegram, harness):
            photo = telegram.photo(drawn("JPEG", (800, 600)), drawn("JPEG", (80, 60)))
            await telegram.say("what is it?", direct=True, attached=photo)
            await harness.engine.asked(1)
        assert sides(harness) == [[(800, 600)]]


# Without a platform


@pytest.fixture
def seeing(harness: Harness) -> Harness:
    """Return a chat whose model sees four pictures, and whose platform has one for each source: that many pixels wide."""
    harness.engine.most_pictures = 4
    harness.intake.files.sources["discord"] = fetch
    return harness


async def fetch(file: Attachment) -> AsyncIterator[bytes]:
    yield drawn("PNG", (int(file.source), 10))


def showing(text: str, *widths: int, **facts: Any) -> IncomingMessage:
    files = tuple(Attachment(f"{width}.png", "image/png", width, str(width)) for width in widths)
    return replace(a_message(text, **facts), files=files)


async def test_earlier_pictures_are_shown_again_as_far_as_they_are_seen(seeing: Harness) -> None:
    await seeing.ask(showing("one", 1, 2))
    await seeing.ask(showing("two", 3))
    await seeing.ask(showing("three", 4, 5))
    assert sides(seeing) == [[(1, 10)], [], [(3, 10)], [], [(4, 10), (5, 10)]]
    assert seeing.engine.requests[-1].messages[0].content == "[2.png: a picture that is not shown again]\n\none"


async def test_a_picture_that_is_quoted_again_is_shown_once(seeing: Harness) -> None:
    await seeing.ask(showing("what is it?", 7))
    quoted = Attachment("7.png", "image/png", 7, "7", is_quoted=True)
    await seeing.ask(replace(a_message("and now?", quoted="what is it?", quoted_id="1"), files=(quoted,)))
    assert sides(seeing) == [[], [], [(7, 10)]]


@pytest.mark.parametrize("words", ["", "our holidays"])
async def test_a_forwarded_picture_is_a_part_of_the_question(seeing: Harness, words: str) -> None:
    seeing.intake.continuations.longest["discord"] = 2000
    await seeing.accept(a_message("where is this?"))
    shared = Attachment("7.png", "image/png", 7, "7", is_quoted=True)
    forward = replace(a_message("", quoted=words or None, quoted_id="700"), files=(shared,), is_forward=True)
    exchange = await seeing.accept(forward)
    await seeing.replied(exchange)
    assert sides(seeing) == [[(7, 10)]]
    await seeing.ask(a_message("and how old?"))
    assert sides(seeing)[0] == [(7, 10)]


async def test_pictures_beyond_the_limit_are_named(seeing: Harness) -> None:
    events = await seeing.ask(showing("what are they?", 1, 2, 3, 4, 5, 6))
    assert sides(seeing) == [[(1, 10), (2, 10), (3, 10), (4, 10)]]
    assert notice_of(events) == "I did not look at 5.png, 6.png: too many pictures at once."


async def test_pictures_beyond_the_context_are_named(seeing: Harness) -> None:
    text = "a" * 2030  # a picture is ten tokens, of 2,048
    events = await seeing.ask(showing(text, 1, 2))
    assert sides(seeing) == [[(1, 10)]]
    assert notice_of(events) == "I did not look at 2.png: too many pictures at once."


async def test_a_server_that_refuses_pictures_is_asked_without_them(seeing: Harness) -> None:
    seeing.engine.add([PicturesRefused(0)], "four")
    events = await seeing.ask(showing("what is it?", 1))
    assert (text_of(events), notice_of(events)) == ("four", "I cannot see pictures, so I skipped 1.png.")
    assert [[message.pictures for message in request.messages] for request in seeing.engine.requests][1:] == [[()]]


async def test_a_server_that_takes_fewer_pictures_gets_the_first_ones(seeing: Harness) -> None:
    seeing.engine.add([PicturesRefused(1)], "four")
    events = await seeing.ask(showing("what are they?", 1, 2))
    assert sides(seeing) == [[(1, 10)]]
    assert notice_of(events) == "I did not look at 2.png: too many pictures at once."


async def test_a_refused_picture_without_words_is_answered_with_a_line(seeing: Harness) -> None:
    seeing.engine.add([PicturesRefused(0)])
    events = await seeing.ask(showing("", 1))
    assert (text_of(events), notice_of(events)) == ("", "I cannot see pictures, so I skipped 1.png.")
    assert len(seeing.engine.requests) == 1


async def test_a_model_that_sees_no_more_says_so_when_it_answers_again(seeing: Harness) -> None:
    exchange = await seeing.accept(showing("what is it?", 1))
    await seeing.replied(exchange)
    seeing.engine.most_pictures = 0
    again = await seeing.exchanges.requeue(exchange)
    assert again is not None
    assert notice_of(await seeing.replied(again)) == "I cannot see pictures, so I skipped 1.png."


async def test_another_model_may_see_the_picture_when_it_answers_again(seeing: Harness) -> None:
    seeing.engine.most_pictures = 0
    exchange = await seeing.accept(showing("", 1))
    assert notice_of(await seeing.replied(exchange)) == "I cannot see pictures, so I skipped 1.png."
    seeing.engine.most_pictures = 4
    for _ in range(2):
        again = await seeing.exchanges.requeue(await seeing.stored(exchange))
        assert again is not None
        assert notice_of(await seeing.replied(again)) == ""
        assert sides(seeing) == [[(1, 10)]]
    assert (await seeing.stored(exchange)).message.files == (Attachment("1.png", "image/png", 1, is_picture=True),)


async def test_a_fallback_that_sees_nothing_says_so(seeing: Harness) -> None:
    def blind(request: object) -> list[Any]:
        seeing.engine.most_pictures = 0
        return [Fallback("small"), "four"]

    seeing.engine.add(blind)
    events = await seeing.ask(showing("what is it?", 1))
    assert notice_of(events) == "I cannot see pictures, so I skipped 1.png.\nAnswered by small."


@pytest.mark.parametrize("is_read", [False, True])
async def test_after_a_kill_the_question_is_answered_once_with_the_picture(tmp_path: Path, is_read: bool) -> None:
    async with make_harness(tmp_path) as before:
        exchange = await stored_question(before, showing("what is it?", 7))
        if is_read:
            before.intake.files.sources["discord"] = fetch
            files = await before.intake.files.read(exchange.message, most_pictures=4)
            assert await before.store.record_files(exchange, files)
    async with make_harness(tmp_path) as harness:
        harness.engine.most_pictures = 4
        if not is_read:
            harness.intake.files.sources["discord"] = fetch
        (owed,) = await harness.intake.recover("discord")
        assert notice_of(await harness.replied(owed)) == ""
        assert sides(harness) == [[(7, 10)]]
        assert len(harness.engine.requests) == 1


async def test_a_picture_that_is_gone_after_a_kill_is_named(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        await stored_question(before, showing("what is it?", 7))
    async with make_harness(tmp_path) as harness:
        harness.engine.most_pictures = 4
        (owed,) = await harness.intake.recover("discord")
        assert notice_of(await harness.replied(owed)) == "I could not read 7.png: the file could not be fetched."


async def test_an_edit_keeps_the_pictures_that_it_has(seeing: Harness) -> None:
    exchange = await seeing.accept(showing("what are they?", 1, 2))
    await seeing.replied(exchange)
    edited = showing("what is it?", 2, id=exchange.message.id)
    again = await seeing.intake.edit(edited)
    assert again is not None
    await seeing.replied(again)
    assert sides(seeing) == [[(2, 10)]]
    assert await pictures(seeing, again) == [(2, 10)]


async def test_a_picture_of_a_deleted_message_is_shown_no_more(seeing: Harness) -> None:
    exchange = await seeing.accept(showing("what is it?", 1))
    await seeing.replied(exchange)
    await seeing.intake.delete(exchange.message.channel, exchange.message.id)
    await seeing.ask(showing("and now?"))
    assert sides(seeing) == [[]]


async def test_a_deletion_while_a_request_waits_takes_the_picture_out_of_its_prompt(seeing: Harness) -> None:
    quoting = showing("what is it?", quoted="my cat", quoted_id="77")
    quoted = Attachment("7.png", "image/png", 7, "7", is_quoted=True)
    exchange = await seeing.accept(replace(quoting, files=(quoted,)))
    seeing.engine.go_on.clear()
    async with seeing.intake.answers.stream(exchange) as stream:
        await seeing.engine.asked(1)
        assert sides(seeing) == [[(7, 10)]]
        await seeing.intake.delete(exchange.message.channel, "77")
        await seeing.engine.asked(2)
        seeing.engine.go_on.set()
        assert text_of([event async for event in stream]) == "ok"
    assert sides(seeing) == [[]]
    assert (await seeing.stored(exchange)).message.quoted is None


async def stored_question(harness: Harness, message: IncomingMessage) -> Exchange:
    exchange = await harness.store.enqueue(message, Kind.CHAT)
    assert exchange is not None
    return exchange


async def pictures(harness: Harness, exchange: Exchange) -> list[tuple[int, int]]:
    history = await harness.store.history(exchange, 5, pictures=4)
    found = [file.picture for file in history.now.message.files]
    return [(each.width, each.height) for each in found if each is not None]
