"""Discord messages and threads, and the replies to them."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from bot.delivery.markdown.blocks import is_balanced
from bot.domain import Action, ChannelKey
from bot.errors import StoreError
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import MESSAGE_CONTENT
from tests.harness.servers.discord_world import BOT, BOT_ROLE, GUILD


async def test_a_mention_gets_a_reply(bot: DiscordBot) -> None:
    bot.engine.add("Hello, Mei!")
    question = await bot.platform.say("hi")
    await bot.shows("Hello, Mei!")
    assert bot.platform.seen()[1].reply_to == question
    assert bot.engine.requests[0].messages[-1].content == "Mei: hi"


async def test_an_answer_is_streamed(bot: DiscordBot) -> None:
    more = asyncio.Event()
    bot.engine.add(["Once upon", more, " a time."])
    await bot.platform.say("a tale")
    await bot.shows("Once upon")
    more.set()
    await bot.shows("Once upon a time.")


async def test_a_long_answer_is_split_with_balanced_fences(bot: DiscordBot) -> None:
    code = "\n".join(f"line {number} = '值'" for number in range(300))
    bot.engine.add(f"Here:\n```py\n{code}\n```\nDone.")
    await bot.platform.say("code")
    await bot.platform.until(lambda: bot.shown() != [] and bot.shown()[-1].endswith("Done."))
    shown = bot.shown()
    assert len(shown) > 2
    assert all(is_balanced(text) for text in shown)
    assert "".join(shown).count("'值'") == 300


async def test_messages_without_a_mention_and_of_bots_are_ignored(bot: DiscordBot) -> None:
    await bot.platform.say("not for you", mention=False)
    await bot.platform.say("for another bot", author="other bot")
    await bot.platform.say("a webhook's", webhook_id="5")
    await bot.platform.say("joined", type=7)
    await bot.platform.say("for you")
    await bot.shows("ok")
    assert len(bot.engine.requests) == 1


async def test_a_direct_message_is_answered(bot: DiscordBot) -> None:
    await bot.platform.say("hello", direct=True)
    await bot.shows("ok", channel="Mei")
    assert bot.engine.requests[0].messages[-1].content == "hello"


async def test_a_reply_to_the_bot_is_answered_with_the_history(bot: DiscordBot) -> None:
    await bot.platform.say("one")
    await bot.shows("ok")
    await bot.platform.say("two", reply_to=bot.platform.seen()[1].id)
    await bot.shows("ok", "ok")
    await bot.platform.say("three", reply_to=bot.platform.seen()[1].id, mention=False)
    await bot.shows("ok", "ok", "ok")
    asked = [message.content for message in bot.engine.requests[2].messages][::2]
    assert [text.splitlines()[-1] for text in asked] == ["Mei: one", "Mei: two", "Mei: three"]


async def test_a_mention_in_a_reply_quotes_the_message(bot: DiscordBot) -> None:
    quoted = await bot.platform.say("the earth is flat", author="Jo", mention=False)
    await bot.platform.say("is that so?", reply_to=quoted)
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "> the earth is flat\n\nMei: is that so?"


async def test_ids_are_replaced_by_names(bot: DiscordBot) -> None:
    jo = bot.platform.person("Jo")
    general = bot.platform.channel("general")
    await bot.platform.say(
        f"tell <@{BOT}> and <@!{jo['id']}> in <#{general}> about <@&{BOT_ROLE}>, <:blob:123> and <@177777777777777777>",
        mention=True,
        mentions=[jo, bot.platform.bot],
    )
    await bot.shows("ok")
    assert (
        bot.engine.requests[0].messages[-1].content == "Mei: tell and @Jo in #general about , :blob: and @unknown-user"
    )


async def test_a_thread_with_a_mention_continues_without_mentions(bot: DiscordBot) -> None:
    await bot.platform.say("not yet", thread="tea", mention=False)
    await bot.platform.say("one", thread="tea")
    await bot.shows("ok", thread="tea")
    await bot.platform.say("two", thread="tea", mention=False)
    await bot.shows("ok", "ok", thread="tea")
    assert bot.shown() == []
    assert [message.content for message in bot.engine.requests[1].messages] == ["Mei: one", "ok", "Mei: two"]


async def test_with_threads_off_a_thread_needs_mentions(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path, threads=False) as bot:
        await platform.say("one", thread="tea")
        await platform.say("two", thread="tea", mention=False)
        await platform.say("three", thread="tea")
        await bot.shows("ok", "ok", thread="tea")
        assert len(bot.engine.requests) == 2


async def test_without_the_intent_only_mentions_and_direct_messages_are_answered(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    platform.allows_content = False
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one", thread="tea")
        await bot.shows("ok", thread="tea")
        await platform.say("hidden", thread="tea", mention=False)
        await platform.say("hidden", thread="tea", mention=False, reply_to=platform.seen("general", "tea")[1].id)
        await platform.say("read", direct=True)
        await bot.shows("ok", channel="Mei")
        assert len(bot.engine.requests) == 2
        assert platform.identified[0]["intents"] & MESSAGE_CONTENT == 0


async def test_a_mention_of_the_bots_role_is_answered(bot: DiscordBot) -> None:
    await bot.platform.say(f"<@&{BOT_ROLE}> hi", mention=False, mention_roles=[str(BOT_ROLE)])
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "Mei: hi"


async def test_a_message_without_text_gets_a_notice(bot: DiscordBot) -> None:
    await bot.platform.say("")
    await bot.platform.until(lambda: len(bot.shown()) == 1 and "only read text" in bot.shown()[0])
    assert bot.engine.requests == []


async def test_mentions_in_an_answer_notify_only_the_asker(bot: DiscordBot) -> None:
    bot.engine.add("@everyone <@&100000000000000003> `@here` https://example.org")
    await bot.platform.say("call all")
    await bot.shows("@everyone <@&100000000000000003> `@here` https://example.org")
    # The server reports any `parse` in allowed_mentions as a violation.
    sent = [body for name, body in bot.platform.attempts if name == "send"]
    assert sent[0]["flags"] & 4, "links get no preview"
    assert sent[0]["allowed_mentions"]["replied_user"] is True


async def test_an_edited_question_is_answered_again_in_the_same_reply(bot: DiscordBot) -> None:
    bot.engine.add("Paris", "Rome")
    question = await bot.platform.say("capital of France?")
    await bot.shows("Paris")
    await bot.platform.edit(question, "capital of Italy?")
    await bot.shows("Rome")
    assert bot.engine.requests[1].messages[-1].content == "Mei: capital of Italy?"


async def test_a_link_preview_is_not_an_edit(bot: DiscordBot) -> None:
    question = await bot.platform.say("https://example.org")
    await bot.shows("ok")
    message = bot.platform.messages[int(question)]
    bot.platform.send_event("MESSAGE_UPDATE", {**message, "embeds": [{"type": "link"}]})
    await bot.platform.say("next")
    await bot.shows("ok", "ok")
    assert len(bot.engine.requests) == 2


async def test_a_deleted_question_is_stopped_and_forgotten(bot: DiscordBot) -> None:
    bot.engine.add(["half an", asyncio.Event()])
    question = await bot.platform.say("my secret", thread="tea")
    await bot.shows("half an", thread="tea")
    await bot.platform.delete(question)
    await bot.platform.until(lambda: len(bot.engine.closed) == 1)
    await bot.platform.say("next", thread="tea")
    await bot.platform.until(lambda: len(bot.engine.requests) == 2)
    assert [message.content for message in bot.engine.requests[1].messages] == ["Mei: next"]


async def test_questions_deleted_in_bulk_are_forgotten(bot: DiscordBot) -> None:
    first, second = await bot.platform.say("one"), await bot.platform.say("two")
    await bot.shows("ok", "ok")
    where = {"channel_id": str(bot.platform.channel("general")), "guild_id": str(GUILD)}
    bot.platform.send_event("MESSAGE_DELETE_BULK", {"ids": [first, second], **where})
    await bot.platform.say("three")
    await bot.shows("ok", "ok", "ok")
    assert [message.content for message in bot.engine.requests[2].messages] == ["Mei: three"]


async def test_a_hundred_unknown_messages_are_deleted_in_one_transaction(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bot.platform.say("one")
    await bot.shows("ok")
    await bot.all_is_delivered()
    calls: list[int] = []
    delete = bot.harness.store.delete_messages

    async def counted(channel: ChannelKey, ids: Collection[str], *, is_expected: bool = False) -> None:
        calls.append(len(ids))
        await delete(channel, ids, is_expected=is_expected)

    monkeypatch.setattr(bot.harness.store, "delete_messages", counted)
    where = {"channel_id": str(bot.platform.channel("general")), "guild_id": str(GUILD)}
    bot.platform.send_event("MESSAGE_DELETE_BULK", {"ids": [str(10**17 + n) for n in range(100)], **where})
    await bot.platform.say("two")
    await bot.shows("ok", "ok")
    assert calls == [100]


async def test_a_shorter_answer_deletes_surplus_messages(bot: DiscordBot) -> None:
    bot.engine.add("long " * 600, "short")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: len(bot.shown()) == 2 and bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[2].id, Action.RETRY)
    await bot.shows("short")


async def test_a_deleted_reply_is_sent_again(bot: DiscordBot) -> None:
    more = asyncio.Event()
    bot.engine.add(["half", more, " and half"])
    await bot.platform.say("hi")
    await bot.shows("half")
    await bot.platform.delete(bot.platform.seen()[1].id)
    more.set()
    await bot.shows("half and half")


async def test_a_bug_drops_only_its_own_message(bot: DiscordBot, monkeypatch: pytest.MonkeyPatch) -> None:
    bot.harness.raise_on("bad", monkeypatch)
    await bot.platform.say("bad")
    await bot.platform.say("good")
    await bot.shows("ok")


async def test_a_thread_missing_in_the_cache_is_fetched(bot: DiscordBot) -> None:
    bot.platform.hides_threads = True
    await bot.platform.say("one", thread="tea")
    await bot.shows("ok", thread="tea")
    question = await bot.platform.say("two", thread="tea")
    await bot.shows("ok", "ok", thread="tea")
    await bot.platform.delete(question)
    await bot.platform.say("three", thread="tea")
    await bot.shows("ok", "ok", "ok", thread="tea")
    assert [message.content for message in bot.engine.requests[2].messages] == ["Mei: one", "ok", "Mei: three"]
    assert await bot.harness.intake.has_history(
        ChannelKey("discord", str(bot.platform.channel("general")), str(bot.platform.thread("general", "tea")))
    )


async def test_a_message_of_an_inaccessible_thread_is_skipped(bot: DiscordBot) -> None:
    bot.platform.hides_threads = True
    bot.platform.forbidden.add(bot.platform.thread("general", "tea"))
    await bot.platform.say("one", thread="tea")
    await bot.platform.say("two")
    await bot.shows("ok")


async def test_a_message_waits_until_the_database_is_available(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue, failures = bot.harness.store.enqueue, [StoreError("locked")] * 3

    async def failing(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await enqueue(*arguments, **options)

    monkeypatch.setattr(bot.harness.store, "enqueue", failing)
    await bot.platform.say("one")
    await bot.platform.say("two")
    await bot.shows("I can't save messages right now. Yours is queued and will be answered.", "ok", "ok")
    assert [request.messages[-1].content for request in bot.engine.requests] == ["Mei: one", "Mei: two"]
