"""Telegram: what a message points at, parts that cannot be read, edits, clocks."""

from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.domain import ChannelKey, IncomingMessage
from tests.harness.harness import Harness
from tests.harness.servers.telegram import BOT_ID, TelegramPlatform
from tests.harness.telegram_harness import done, replies, running, texts

TASKS = {"title": "采购", "tasks": [{"id": 1, "text": "茶"}, {"id": 2, "text": 5}, {"id": 3, "text": "rice"}]}
LINK = {"type": "text_link", "offset": 3, "length": 2, "url": "https://example.org/menu"}
POLL = {"id": "1", "question": "Tea or coffee?", "options": [{"text": "tea"}, {"text": "coffee"}]}


async def stored(telegram: TelegramPlatform, harness: Harness, id: str) -> IncomingMessage:
    chat = telegram.find(id).chat.id
    await telegram.until(lambda: not telegram.pending)
    kept = await harness.store.find(ChannelKey("telegram", str(chat)), id)
    assert kept is not None
    return kept.message


# Pointing


async def test_a_reply_quotes_what_it_replies_to(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("forty-two")
    async with running(telegram, harness):
        news = await telegram.say("the moon is full", author="Ben", mention=False)
        first = await stored(telegram, harness, await telegram.say("is that so?", reply_to=news))
        await done(telegram, "forty-two")
        own = replies(telegram)[0].id
        second = await stored(telegram, harness, await telegram.say("why?", mention=False, reply_to=own))
    assert (first.text, first.quoted, first.quoted_id) == ("is that so?", "the moon is full", news)
    assert (second.text, second.quoted, second.quoted_id) == ("why?", "forty-two", own)


@pytest.mark.parametrize(
    ("facts", "quoted"),
    [
        ({"quote": {"text": "a part", "position": 0}, "external_reply": {"origin": {"type": "user"}}}, "a part"),
        ({"external_reply": {"origin": {"type": "user"}, "poll": POLL}}, "Tea or coffee?\n- tea\n- coffee"),
        ({"reply_to_message": {"message_id": 5, "poll": POLL}}, "Tea or coffee?\n- tea\n- coffee"),
        ({"reply_to_message": {"message_id": 5, "caption": "my cat", "photo": []}}, "my cat"),
        ({"reply_to_message": {"message_id": 5, "location": {"latitude": 48.2, "longitude": -11}}}, "48.2, -11.0"),
        ({"reply_to_message": {"message_id": 5, "venue": {"title": "Zoo", "address": "Main St 1"}}}, "Zoo, Main St 1"),
        ({"reply_to_message": {"message_id": 5, "contact": {"first_name": "Ben", "phone_number": "1"}}}, "Ben, 1"),
        ({"reply_to_message": {"message_id": 5, "checklist": TASKS}}, "采购\n- 茶\n- rice"),
        ({"external_reply": {"origin": {"type": "user"}, "checklist": TASKS}}, "采购\n- 茶\n- rice"),
        ({"reply_to_message": {"message_id": 5, "game": {"title": "Go", "description": "9 × 9"}}}, "Go, 9 × 9"),
        ({"reply_to_message": {"message_id": 5, "invoice": {"title": "Mug", "total_amount": 5}}}, "Mug"),
        ({"reply_to_message": {"message_id": 5, "audio": {"title": "Air", "performer": "Bach"}}}, "Air, Bach"),
        (
            {"reply_to_message": {"message_id": 5, "text": "看😀这里", "entities": [LINK]}},
            "看😀这里 (https://example.org/menu)",
        ),
        (
            {"reply_to_message": {"message_id": 5, "caption": "看😀这里!", "caption_entities": [LINK]}},
            "看😀这里 (https://example.org/menu)!",
        ),
        (
            {
                "quote": {"text": "看😀这里", "position": 0, "entities": [LINK]},
                "reply_to_message": {"message_id": 5, "text": "x"},
            },
            "看😀这里 (https://example.org/menu)",
        ),
        ({"reply_to_message": {"message_id": 5, "dice": {"emoji": "x", "value": 1}}}, None),
        ({"reply_to_message": {"message_id": 5, "forum_topic_created": {}}}, None),
        ({"reply_to_message": {"message_id": 7, "text": "x"}, "message_thread_id": 7, "is_topic_message": True}, None),
    ],
)
async def test_all_kinds_of_pointing_are_read(
    telegram: TelegramPlatform, harness: Harness, facts: dict[str, Any], quoted: str | None
) -> None:
    async with running(telegram, harness):
        id = await telegram.say("what is this?", direct=True, **facts)
        await telegram.until(lambda: not telegram.pending)
        topic = "7" if "is_topic_message" in facts else None
        kept = await harness.store.find(ChannelKey("telegram", str(telegram.private("Mei").id), topic), id)
    assert kept is not None
    assert (kept.message.text, kept.message.quoted) == ("what is this?", quoted)


@pytest.mark.parametrize(
    ("words", "entity", "read"),
    [
        ("read this, please", {"offset": 14, "length": 4}, "read this (https://example.org/x), please"),
        ("在 这里", {"offset": 11, "length": 2}, "在 这里 (https://example.org/x)"),
        ("example.org/x", {"offset": 9, "length": 13}, "example.org/x"),
        ("example.org/x/", {"offset": 9, "length": 14}, "example.org/x/"),
        ("see x", {"offset": 13, "length": 1}, "see x (https://example.org/x)"),
        ("read this", {"offset": 14, "length": 99}, "read this (https://example.org/x)"),
        ("read this", {"offset": -1, "length": 4}, "read this"),
        ("read this", {"offset": 14, "length": "x"}, "read this"),
    ],
)
async def test_the_address_behind_a_word_is_read(
    telegram: TelegramPlatform, harness: Harness, words: str, entity: dict[str, Any], read: str
) -> None:
    entities = [
        {"type": "mention", "offset": 0, "length": 8},
        {"type": "text_link", "url": "https://example.org/x", **entity},
    ]
    async with running(telegram, harness):
        kept = await stored(telegram, harness, await telegram.say(words, entities=entities))
    assert kept.text == read


@pytest.mark.parametrize("words", ["the news of today", "/forget me"])
async def test_a_forward_is_quoted_and_no_command(telegram: TelegramPlatform, harness: Harness, words: str) -> None:
    origin = {"type": "user", "date": 1, "sender_user": {"id": BOT_ID, "is_bot": True, "first_name": "x"}}
    async with running(telegram, harness):
        in_private = await telegram.say(words, direct=True, forward_origin=origin)
        in_group = await telegram.say(words, author="Ben", mention=False, forward_origin=origin)
        asked = await telegram.say("is it true?", reply_to=in_group)
        first, second = [await stored(telegram, harness, id) for id in (in_private, asked)]
        group = ChannelKey("telegram", str(telegram.group("general").id))
        assert await harness.store.find(group, in_group) is None
    assert (first.text, first.quoted) == ("", words)
    assert (second.text, second.quoted) == ("is it true?", words)


async def test_a_poll_sent_to_the_bot_is_read(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        kept = await stored(telegram, harness, await telegram.say("", direct=True, poll=POLL))
    assert (kept.text, kept.quoted) == ("", "Tea or coffee?\n- tea\n- coffee")


# Parts that cannot be read


@pytest.mark.parametrize(
    "part",
    [
        {"poll": {"id": 1}},
        {"reply_to_message": {"message_id": 5, "poll": {"id": "1", "options": 7}}},
        {"reply_to_message": 5},
        {"reply_to_message": {"message_id": "x", "text": 5, "from": [], "chat": None}},
        {"entities": "x"},
        {"entities": [5]},
        {"entities": [{"type": "mention", "offset": -1, "length": 3}]},
        {"quote": []},
        {"external_reply": {"origin": 3}},
        {"forward_origin": "x"},
        {"via_bot": 4},
        {"sticker": 1, "photo": {}, "link_preview_options": 7},
        {"hologram": {"deep": [[[]]]}},
        {"date": "soon"},
        {"date": 10**30},
        {"media_group_id": 5},
        {"sender_chat": []},
    ],
    ids=str,
)
async def test_the_rest_of_a_message_is_answered(
    telegram: TelegramPlatform, harness: Harness, part: dict[str, Any]
) -> None:
    with capture_logs() as logs:
        async with running(telegram, harness):
            await telegram.say("hello everybody", **part)
            await done(telegram, "ok")
    assert harness.engine.requests[0].messages[-1].content == "Mei: hello everybody"
    assert "hello everybody" not in str(logs)


async def test_a_part_that_cannot_be_read_is_logged(telegram: TelegramPlatform, harness: Harness) -> None:
    with capture_logs() as logs:
        async with running(telegram, harness):
            await telegram.say("hello", direct=True, reply_to_message={"message_id": 5, "text": ["secret"]})
            await done(telegram, "ok", channel="Mei")
    (entry,) = [entry for entry in logs if entry.get("part")]
    assert (entry["part"], entry["type"]) == ("update.message.reply_to_message.text", "list")


async def test_a_sent_message_that_the_library_cannot_read_is_known(
    telegram: TelegramPlatform, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = telegram.facts_of
    broken = {"poll": {"id": "1"}, "reply_to_message": {"message_id": 1, "poll": 5}}
    monkeypatch.setattr(telegram, "facts_of", lambda message, **how: facts(message, **how) | broken)
    async with running(telegram, harness):
        await telegram.say("hello", direct=True, poll=None, reply_to_message=None)
        await done(telegram, "ok", channel="Mei")


# Edits and clocks


async def test_an_edit_that_newly_mentions_the_bot_is_a_question(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("four", "six")
    async with running(telegram, harness):
        old = await telegram.say("2 + 2?", mention=False)
        telegram.find(old).mention = "@glm_bot "
        await telegram.edit(old, "2 + 2?")
        await done(telegram, "four")
        await telegram.edit(old, "3 + 3?")
        await done(telegram, "six")
        telegram.now -= timedelta(hours=3)
        await telegram.edit(old := await telegram.say("long ago", mention=False), "no mention")
        telegram.find(old).mention = "@glm_bot "
        await telegram.edit(old, "long ago")
        telegram.now += timedelta(hours=3)
        await telegram.say("the last word", direct=True)
        await done(telegram, "ok", channel="Mei")
    assert texts(telegram) == ["six"]


@pytest.mark.parametrize("words", ["/s nothing", "/roll", "/roll@dice_bot 6", "nothing, thanks"])
async def test_an_edit_without_the_mention_replaces_the_old_words(
    telegram: TelegramPlatform, harness: Harness, words: str
) -> None:
    harness.engine.add("noted")
    async with running(telegram, harness):
        id = await telegram.say("my code is 4711")
        await done(telegram, "noted")
        telegram.find(id).mention = ""
        await telegram.edit(id, words)
        kept = await stored(telegram, harness, id)
        await telegram.say("what did I say?")
        await telegram.until(lambda: "what did I say?" in str(harness.engine.requests[-1].messages))
    assert kept.text == words
    assert "4711" not in str(harness.engine.requests[-1].messages)


async def test_an_edit_of_an_unknown_message_to_another_bots_command_is_ignored(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        await telegram.edit(await telegram.say("good morning", mention=False), "/weather today")
        await telegram.say("the last word")
        await done(telegram, "ok")
    assert len(harness.engine.requests) == 1


@pytest.mark.parametrize("caption", ["", "for Ben"])
async def test_an_edit_that_mentions_the_bot_below_a_file_is_a_question(
    telegram: TelegramPlatform, harness: Harness, caption: str
) -> None:
    async with running(telegram, harness):
        notes = telegram.file("notes.txt", b"buy rice")
        id = await telegram.say(caption, mention=False, attached=notes)
        telegram.find(id).mention = "@glm_bot"
        await telegram.edit(id, "")
        await done(telegram, "ok")
    assert "buy rice" in harness.engine.requests[0].messages[-1].content


@pytest.mark.parametrize("hours", [2, 48])
async def test_a_host_whose_clock_is_ahead_answers_new_questions(
    telegram: TelegramPlatform, harness: Harness, hours: int
) -> None:
    telegram.clock -= timedelta(hours=hours)
    telegram.now = telegram.clock - timedelta(minutes=1)
    await telegram.say("asked while the bot was away", direct=True)
    telegram.now = telegram.clock - timedelta(hours=hours + 3)
    await telegram.say("asked long ago", direct=True, author="Ben")
    async with running(telegram, harness):
        await done(telegram, "ok", channel="Mei")
        await telegram.until(lambda: texts(telegram, "Ben")[0].startswith("I was offline"))
