"""Telegram from message to last edit: the real library against a loopback Bot API."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.chat.commands import menu
from bot.domain import Action
from tests.adapters import busy_group
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import Fault
from tests.harness.servers.telegram import BOT, BOT_ID, Refused, TelegramPlatform
from tests.harness.telegram_harness import done, replies, running, texts


async def test_a_mention_in_a_group_is_answered_as_a_reply(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("你好")
    async with running(telegram, harness):
        question = await telegram.say("hello")
        await done(telegram, "你好")
    (reply,) = replies(telegram)
    assert (reply.reply_to, reply.actions) == (question, frozenset({Action.RETRY}))
    assert harness.engine.requests[0].messages[-1].content == "Mei: hello"


async def test_every_direct_message_is_answered(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")
    assert harness.engine.requests[0].messages[-1].content == "hello"


# Addressing


async def test_messages_that_do_not_address_the_bot_are_ignored(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello everybody", mention=False)
        await telegram.say("@other_bot hello", mention=False)
        await telegram.say("/weather", mention=False)
        await telegram.say("/clear@other_bot", mention=False)
        await telegram.say("/clear@other_bot", direct=True)
        await telegram.say("the last word")
        await done(telegram, "ok")
    assert len(harness.engine.requests) == 1


async def test_messages_of_bots_and_of_the_bot_itself_are_ignored(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello", author="news_bot")
        await telegram.say(
            "hello", sender_chat={"id": -1001, "type": "channel", "title": "News"}, is_automatic_forward=True
        )
        await telegram.say("the last word")
        await done(telegram, "ok")


async def test_words_sent_through_an_inline_bot_are_the_users(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("a poem", via_bot=telegram.person("inline_bot"), direct=True)
        await done(telegram, "ok", channel="Mei")
        await telegram.say("not for the bot", via_bot=telegram.person("inline_bot"), mention=False)
        await telegram.say("a haiku", via_bot=telegram.person("inline_bot"))
        await done(telegram, "ok")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["a poem", "Mei: a haiku"]


async def test_an_anonymous_admin_is_answered(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say(
            "hello", author="Anonymous_bot", sender_chat={"id": -100_7, "type": "supergroup", "title": "general"}
        )
        await done(telegram, "ok")
    assert harness.engine.requests[0].messages[-1].content == "general: hello"


async def test_a_reply_to_one_of_its_messages_is_answered(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("first")
        await done(telegram, "ok")
        await telegram.say("second", mention=False, reply_to=replies(telegram)[0].id)
        await done(telegram, "ok", "ok")
    assert [message.content for message in harness.engine.requests[1].messages] == ["Mei: first", "ok", "Mei: second"]


async def test_a_mention_anywhere_in_the_text_is_removed(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("😀 tell me, @GLM_bot who is @mei_lin?", mention=False)
        await done(telegram, "ok")
    assert harness.engine.requests[0].messages[-1].content == "Mei: 😀 tell me, who is @mei_lin?"


async def test_a_mention_by_name_counts_too(telegram: TelegramPlatform, harness: Harness) -> None:
    named = [
        {"type": "text_mention", "offset": 0, "length": 7, "user": {"id": BOT_ID, "is_bot": True, "first_name": "x"}}
    ]
    async with running(telegram, harness):
        await telegram.say("ChatGLM hello", mention=False, entities=named)
        await done(telegram, "ok")
    assert harness.engine.requests[0].messages[-1].content == "Mei: hello"


async def test_a_mention_quotes_the_message_it_replies_to(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        news = await telegram.say("the moon is full", author="Ben", mention=False)
        await telegram.say("is that so?", reply_to=news)
        await telegram.say("and this?", reply_to=news, quote={"text": "moon", "position": 4})
        await done(telegram, "ok", "ok")
    asked = [request.messages[-1].content for request in harness.engine.requests]
    assert asked == ["> the moon is full\n\nMei: is that so?", "> moon\n\nMei: and this?"]


async def test_a_topic_is_a_conversation_that_continues_without_mentions(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        await telegram.say("not for the bot", thread="moon", mention=False)
        await telegram.say("hello", thread="moon")
        await done(telegram, "ok", thread="moon")
        await telegram.say("and more", thread="moon", mention=False)
        await done(telegram, "ok", "ok", thread="moon")
        await telegram.say("elsewhere", thread="sun")
        await done(telegram, "ok", thread="sun")
    counts = [len(request.messages) for request in harness.engine.requests]
    assert counts == [1, 3, 1]


async def test_without_the_threads_setting_topics_need_mentions(harness: Harness) -> None:
    async with TelegramPlatform(threads=False) as telegram, running(telegram, harness):
        await telegram.say("hello", thread="moon")
        await done(telegram, "ok", thread="moon")
        await telegram.say("and more", thread="moon", mention=False)
        await telegram.say("again", thread="moon")
        await done(telegram, "ok", "ok", thread="moon")
        assert len(harness.engine.requests) == 2


async def test_an_attachment_gets_one_notice_and_so_does_an_album(telegram: TelegramPlatform, harness: Harness) -> None:
    photo: dict[str, Any] = {"photo": [{"file_id": "f", "file_unique_id": "u", "width": 1, "height": 1}]}
    async with running(telegram, harness):
        for _ in range(3):
            await telegram.say("", direct=True, media_group_id="a1", **photo)
        telegram.now += timedelta(minutes=1)
        await telegram.say("", direct=True, **photo, caption="what is it?")
        skipped = "I cannot see pictures, so I skipped photo.jpg."
        await telegram.until(lambda: sorted(texts(telegram, "Mei")) == [skipped, f"ok\n\n{skipped}"])
    assert harness.engine.requests[0].messages[-1].content == "what is it?"


async def test_service_messages_are_ignored(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("", direct=True, new_chat_title="new")
        await telegram.say("hello", direct=True)
        await done(telegram, "ok", channel="Mei")


# Commands and buttons


async def test_start_lists_the_commands(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("/start ref123", direct=True)
        await telegram.until(lambda: any("/clear" in text for text in texts(telegram, "Mei")))
    assert harness.engine.requests == []


async def test_the_menu_of_commands_is_set_in_both_languages(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        pass
    assert {each["command"] for each in telegram.menus[""]} == {command.name for command in menu()}
    assert {"command": "help", "description": "列出所有命令"} in telegram.menus["zh"]


async def test_a_command_in_a_group_is_for_the_bot_it_names(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "ok")
        await telegram.command("clear")
        await done(telegram, "ok", "Deleted: everything said here (1).")
        await telegram.say("clear")
        await done(telegram, "ok", "Deleted: everything said here (1).", "There was nothing to delete here.")


async def test_an_unknown_command_that_mentions_the_bot_is_answered(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        await telegram.say(f"@{BOT} /halp", mention=False)
        await done(telegram, "Unknown command /halp; did you mean /help?")


async def test_notices_are_in_the_language_of_the_authors_app(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        telegram.language = "zh-hans"
        await telegram.say("/stop", direct=True)
        await done(telegram, "这里没有正在进行的回答。", channel="Mei")


async def test_stop_keeps_the_partial_answer(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add(["half", asyncio.Event()])
    async with running(telegram, harness):
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: texts(telegram, "Mei") == ["half"])
        await telegram.press(replies(telegram, "Mei")[0].id, Action.STOP)
        await done(telegram, "half\n\n(stopped)", channel="Mei")
    assert list(telegram.answers.values()) == [""]


async def test_regenerate_answers_again_in_the_same_message(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("one", "two")
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "one")
        await telegram.press(replies(telegram)[0].id, Action.RETRY)
        await done(telegram, "two")


async def test_a_press_by_another_user_gets_a_notice(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "ok")
        await telegram.press(replies(telegram)[0].id, Action.RETRY, author="Ben")
        await telegram.until(lambda: bool(telegram.answers))
    assert list(telegram.answers.values()) == ["Only the person who asked, and admins, may do that."]
    assert len(harness.engine.requests) == 1


async def test_an_expired_button_press_is_still_applied(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("one", "two")
    telegram.broken["answerCallbackQuery"] = Refused(400, "Bad Request: query is too old and response timeout expired")
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "one")
        await telegram.press(replies(telegram)[0].id, Action.RETRY)
        await done(telegram, "two")


async def test_a_slow_acknowledgement_of_a_press_delays_no_update(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.answering.clear()
    harness.engine.add("one", ["half", asyncio.Event()])
    async with running(telegram, harness):
        await telegram.say("hello", direct=True)
        await done(telegram, "one", channel="Mei")
        await telegram.say("hello")
        await telegram.until(lambda: texts(telegram) == ["half"])
        await telegram.press(replies(telegram, "Mei")[0].id, Action.RETRY, author="Ben")
        await telegram.press(replies(telegram)[0].id, Action.STOP)
        await done(telegram, "half\n\n(stopped)")
        assert telegram.answers == {}
        telegram.answering.set()
        await telegram.until(lambda: len(telegram.answers) == 2)


async def test_the_bot_stops_while_a_press_is_being_acknowledged(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.answering.clear()
    async with running(telegram, harness):
        await telegram.say("hello")
        await done(telegram, "ok")
        await telegram.press(replies(telegram)[0].id, Action.RETRY, author="Ben")
        await telegram.until(lambda: any(name == "answerCallbackQuery" for name, _ in telegram.calls))
    telegram.answering.set()
    assert telegram.answers == {}


# Drafts


async def test_a_draft_is_streamed_in_a_private_chat_and_becomes_a_message(harness: Harness) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["**half**", go_on, " and half"])
    async with TelegramPlatform(drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == ["half"])
        assert replies(telegram, "Mei") == []
        go_on.set()
        await done(telegram, "half and half", channel="Mei")
        assert telegram.drafts == {}


async def test_a_draft_shows_the_end_of_a_long_answer_and_is_refreshed(harness: Harness) -> None:
    harness.engine.add(["a" * 4000 + "\n\n" + "b" * 4000, asyncio.Event()])
    async with TelegramPlatform(drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-2:] == ["b" * 4000] * 2)


@pytest.mark.parametrize("trouble", [Fault("429", 2), Fault("500"), Fault("timeout")])
async def test_a_refused_draft_does_not_turn_into_edits(harness: Harness, trouble: Fault) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    async with TelegramPlatform(drafts=True) as telegram, running(telegram, harness):
        telegram.script = lambda number, name: trouble if name == "sendMessageDraft" and number == 1 else None
        await telegram.say("hello", direct=True)
        await harness.engine.asked(1)
        await telegram.until(lambda: sum(name == "sendMessageDraft" for name, _ in telegram.calls) >= 2)
        assert not any(name in ("sendMessage", "editMessageText") for name, _ in telegram.calls)
        go_on.set()
        await done(telegram, "half and half", channel="Mei")
        assert telegram.violations == []


async def test_commands_and_groups_have_no_drafts(harness: Harness) -> None:
    async with TelegramPlatform(drafts=True) as telegram, running(telegram, harness):
        await telegram.say("/status", direct=True)
        await telegram.say("hello")
        await done(telegram, "ok")
        await telegram.until(lambda: any("scripted" in text for text in texts(telegram, "Mei")))
        assert not any(name == "sendMessageDraft" for name, _ in telegram.calls)


async def test_a_kill_before_the_message_sends_nothing_twice(tmp_path: Path) -> None:
    async with TelegramPlatform(drafts=True) as telegram:
        async with make_harness(tmp_path) as before, running(telegram, before):
            before.engine.add(["half", asyncio.Event()])
            await telegram.say("hello", direct=True)
            await telegram.until(lambda: bool(telegram.drafts))
        async with make_harness(tmp_path) as after, running(telegram, after):
            await done(telegram, "ok", channel="Mei")


# Edits


async def test_an_edited_question_is_answered_again_in_the_same_message(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    harness.engine.add("four", "six")
    async with running(telegram, harness):
        question = await telegram.say("2 + 2?")
        await done(telegram, "four")
        await telegram.edit(question, "3 + 3?")
        await done(telegram, "six")
        await telegram.edit(question, "3 + 3?")
        await telegram.say("unknown", mention=False)
        await telegram.edit(await telegram.say("unknown", mention=False), "still unknown")
        await telegram.say("the last word")
        await done(telegram, "six", "ok")


async def test_in_a_topic_what_is_for_another_person_is_left_alone(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    telegram.reads_all = True
    async with running(telegram, harness):
        await telegram.say("hello", thread="moon")
        await done(telegram, "ok", thread="moon")
        bens = await telegram.say("lunch at @cafe, anybody?", author="Ben", thread="moon", mention=False)
        await telegram.say("gladly", thread="moon", mention=False, reply_to=bens)
        await telegram.say("", thread="moon", mention=False, sticker={"emoji": "🙂"})
        await telegram.say("and you?", thread="moon", mention=False)
        await done(telegram, "ok", "ok", thread="moon")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["Mei: hello", "Mei: and you?"]


# The limit of a group


async def test_a_busy_group_is_answered_within_its_limit_of_calls() -> None:
    waits = await busy_group.measure(factor=40)
    assert waits.violations == ()
    assert waits.calls["429"] == 0


async def test_typing_is_shown_while_the_first_message_has_to_wait(
    telegram: TelegramPlatform, harness: Harness
) -> None:
    async with running(telegram, harness):
        telegram.script = lambda number, name: Fault("429", 3) if number == 0 else None
        await telegram.say("hello")
        await done(telegram, "ok")
        names = [name for name, _ in telegram.calls if name in ("sendMessage", "sendChatAction")]
        assert names[-1] == "sendMessage"
        assert "sendChatAction" in names  # perhaps before the first call: on a busy machine that waits too
