"""`answer = "thread"`: each mention is answered in a thread of its own, which is opened for it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bot.config.places import PlaceSection
from bot.config.schema import AccessSection, Config, LimitsSection
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.errors import StoreError
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness, set_paused
from tests.harness.platform import TIMEOUT, Fault
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_world import BOT
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform

NO_PERMISSION = "I cannot open threads here: I lack the permissions Create Public Threads and Send Messages in Threads."
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NO_CONTENT = (
    "Discord shows me only messages that mention me: switch on the Message Content Intent (Developer Portal, Bot)."
)
NO_TOPICS = "This group has no topics, so I answer mentions here. Its settings can turn topics on."
PRIVACY = (
    "Privacy mode hides messages from me, perhaps even some that mention me: send /setprivacy to @BotFather, choose "
    "Disable, and add me to the group again."
)
NO_RIGHT = "I cannot open topics here: make me an administrator of the group who may manage topics."


def configure(harness: Harness, platform: str, **more: Any) -> None:
    harness.settings.reconfigure(Config(platforms={platform: PlaceSection(answer="thread", **more)}))


def asked(harness: Harness) -> list[list[str]]:
    """Return what the model read for each answer."""
    return [[each.content.rpartition(": ")[2] for each in request.messages] for request in harness.engine.requests]


def number(kind: str, name: str) -> Callable[[int, str], Fault | None]:
    """Return a script in which the first call of this name meets a fault."""
    met: list[str] = []

    def script(number: int, called: str) -> Fault | None:
        if called != name or met:
            return None
        met.append(called)
        return Fault(kind, 1.0)  # type: ignore[arg-type]

    return script


async def test_on_discord(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await bot.shows("ok", thread="what is a shell")
        await platform.say("what is a kernel", author="Ben")
        await bot.shows("ok", thread="what is a kernel")
        await platform.say("and this", thread="what is a shell", mention=False)
        await bot.shows("ok", "ok", thread="what is a shell")
        await bot.shows()
        assert asked(bot.harness) == [
            ["what is a shell"],
            ["what is a kernel"],
            ["what is a shell", "ok", "and this"],
        ]
    assert platform.violations == []


async def test_on_discord_two_people_talk_undisturbed_in_it(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await bot.shows("ok", thread="what is a shell")
        here: dict[str, Any] = {"thread": "what is a shell", "mention": False}
        first = await platform.say(
            "", author="Ben", sticker_items=[{"id": "1", "name": "wave", "format_type": 1}], **here
        )
        await platform.say("no, it is not", author="Ben", reply_to=first, **here)
        await platform.say("<@1> look", mentions=[platform.person("Ben")], thread="what is a shell")
        await platform.say("and a kernel", **here)
        await bot.shows("ok", "ok", thread="what is a shell")
        assert asked(bot.harness)[-1] == ["what is a shell", "ok", "and a kernel"]


async def test_on_discord_commands_and_refusals_need_no_thread(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        set_paused(bot.harness.access)
        await platform.say("what is a shell")
        await bot.shows("An admin has paused me. Please ask again later.")
        await platform.say("/model")
        await platform.until(lambda: len(bot.shown()) == 2)
        assert not [call for call in platform.calls if call.endswith("/threads")]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["429", "500", "timeout", "lost"])
async def test_on_discord_a_thread_is_opened_once_whatever_fails(
    platform: DiscordPlatform, tmp_path: Path, kind: str
) -> None:
    platform.script = number(kind, "thread")
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await bot.shows("ok", thread="what is a shell")
        await bot.all_is_delivered()
        assert bot.shown() == []
    assert platform.violations == []


async def test_on_discord_a_message_that_is_delivered_again_opens_nothing(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        question = await platform.say("what is a shell")
        platform.send_event("MESSAGE_CREATE", platform.messages[int(question)])
        await bot.shows("ok", thread="what is a shell")
        platform.send_event("MESSAGE_CREATE", platform.messages[int(question)])
        await platform.disconnect(resumable=False)
        await platform.say("what is a kernel")
        await bot.shows("ok", thread="what is a kernel")
        await bot.all_is_delivered()
        assert (bot.shown(), bot.shown(thread="what is a shell")) == ([], ["ok"])
        assert len([call for call in platform.calls if call.endswith("/threads")]) == 2


async def kill_at(bot: DiscordBot, call: str, *, after: bool) -> None:
    """Kill the bot before or after the platform carries out the first call of this name."""
    reached = asyncio.Event()

    def script(number: int, called: str) -> Fault | None:
        if called != call or reached.is_set():
            return None
        reached.set()
        return Fault("lost" if after else "500")

    bot.platform.script = script
    await bot.platform.say("what is a shell")
    await reached.wait()
    bot.running.cancel()
    await asyncio.gather(bot.running, return_exceptions=True)
    bot.platform.script = lambda number, name: None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["thread", "send", "edit"])
async def test_on_discord_a_kill_leaves_one_answer(
    platform: DiscordPlatform, tmp_path: Path, call: str, after: bool
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await kill_at(bot, call, after=after)
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await bot.shows("ok", thread="what is a shell")
        await bot.all_is_delivered()
        assert (bot.shown(), bot.shown(thread="what is a shell")) == ([], ["ok"])
    assert platform.violations == []


async def test_on_discord_an_older_database_finds_the_answer_in_its_thread(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    async with run_discord_bot(platform, tmp_path / "one") as bot:
        configure(bot.harness, "discord")
        await platform.say("hi", channel="random", author="Tom")
        await bot.shows("ok", thread="hi", channel="random")
        await platform.say("what is a shell")
        await bot.shows("ok", thread="what is a shell")
        await bot.all_is_delivered()
    platform.forget_nonces()
    async with run_discord_bot(platform, tmp_path / "two") as bot:
        configure(bot.harness, "discord")
        await platform.say("and this", thread="what is a shell")
        await bot.shows("ok", "ok", thread="what is a shell")
        await bot.all_is_delivered()
        assert bot.shown() == []
        assert asked(bot.harness) == [["what is a shell", "ok", "and this"]]


async def test_on_discord_changes_while_the_bot_was_away_are_seen(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        edited = await platform.say("what is a shell")
        await bot.shows("ok", thread="what is a shell")
        deleted = await platform.say("what is a kernel")
        await bot.shows("ok", thread="what is a kernel")
        await platform.say("stays")
        await bot.shows("ok", thread="stays")
        await bot.all_is_delivered()
        await platform.disconnect(resumable=False)
        bot.engine.add("changed")
        await platform.edit(edited, "what is a snail shell")
        await platform.delete(deleted)
        await bot.shows("changed", thread="what is a shell")
        await bot.all_is_delivered()
        rows = {row.message.text for row in await bot.harness.store.said_since("discord", _LONG_AGO)}
        assert rows == {"what is a snail shell", "stays"}


async def test_on_discord_without_the_permission_the_channel_gets_the_answer(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    platform.bot_permissions &= ~(payloads.THREADS | payloads.ADMINISTRATOR)
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await bot.shows(f"ok\n\n{NO_PERMISSION}")
        await platform.say("and a kernel")
        await bot.shows(f"ok\n\n{NO_PERMISSION}", "ok")
    assert platform.violations == []


@pytest.mark.parametrize("code", [50013, 160006, 50024])
async def test_on_discord_a_refused_thread_leaves_the_answer_to_the_channel(
    platform: DiscordPlatform, tmp_path: Path, code: int
) -> None:
    platform.refused_titles = [code, code]
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await platform.until(lambda: bot.shown()[-1:] != [] and bot.shown()[-1].startswith("ok\n\n"))
        assert ("I cannot open threads" in bot.shown()[-1]) == (code == 50013)


@pytest.mark.parametrize("is_locked", [False, True])
async def test_on_discord_a_thread_that_a_person_has_made_is_used_unless_it_is_locked(
    platform: DiscordPlatform, tmp_path: Path, is_locked: bool
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hello")
        await bot.shows("ok")
        configure(bot.harness, "discord")
        platform.hides_threads = True
        question = await platform.say("what is a shell", mention=False)
        platform.make_thread("general", "shells", question)
        platform.locked |= {int(question)} if is_locked else set()
        platform.messages[int(question)]["mentions"] = [platform.bot]
        await platform.edit(question, f"<@{BOT}> what is a shell")
        sentence = "ok\n\nThe thread of your message is locked, so I answer here."
        await bot.shows(*(["ok", sentence] if is_locked else ["ok"]))
        await bot.shows(*([] if is_locked else ["ok"]), thread="shells")


async def test_on_discord_words_that_a_filter_refuses_name_no_thread(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.refused_titles = [200000]
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord")
        await platform.say("what is a shell")
        await bot.shows("ok", thread="💬")


CONTEXT = "> Ben: tea at five?\n\nMei: what did he say?"


async def test_on_discord_earlier_messages_are_read_where_the_question_was_written(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        configure(bot.harness, "discord", context_messages=5)
        await platform.say("tea at five?", author="Ben", mention=False)
        await platform.say("what did he say?")
        await bot.engine.asked(1)
        await bot.all_is_delivered()
        await platform.say("with Ann", author="Ben", thread="what did he say?", mention=False)
        await bot.engine.asked(2)
        await platform.command("ask who was it?")
        await bot.engine.asked(3)
    assert [request.messages[-1].content for request in bot.engine.requests] == [
        CONTEXT,
        "Ben: with Ann",
        "> Ben: tea at five?\n\nMei: who was it?",
    ]


async def test_on_telegram_earlier_messages_are_read_where_the_question_was_written(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        telegram.group("general").is_forum = True
        configure(harness, "telegram", context_messages=5)
        await telegram.say("tea at five?", author="Ben", mention=False)
        await telegram.say("what did he say?")
        await harness.engine.asked(1)
    assert [each.content for each in harness.engine.requests[0].messages] == [CONTEXT]


async def test_on_telegram(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        telegram.group("general").is_forum = True
        configure(harness, "telegram")
        question = await telegram.say("what is a shell")
        topic = "what is a shell"
        await telegram.until(lambda: answers(telegram, topic) == ["ok"])
        assert telegram.seen(thread=topic)[0].reply_to == question
        await telegram.say("and this", thread=topic, mention=False)
        first = await telegram.say("@Ben_the_builder, you?", thread=topic, mention=False)
        await telegram.say("no, you", author="Ben", thread=topic, mention=False, reply_to=first)
        await telegram.until(lambda: answers(telegram, topic) == ["ok", "ok"])
        await telegram.say("what is a kernel", author="Ben")
        await telegram.until(lambda: answers(telegram, "what is a kernel") == ["ok"])
        assert answers(telegram) == []
    assert asked(harness) == [["what is a shell"], ["what is a shell", "ok", "and this"], ["what is a kernel"]]


async def test_on_telegram_a_group_without_topics_is_answered_as_with_mention(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        configure(harness, "telegram")
        await telegram.say("what is a shell")
        await telegram_harness.done(telegram, "ok")


async def test_on_telegram_without_the_right_the_group_gets_the_answer(harness: Harness) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        telegram.group("general").is_forum, telegram.manages_topics = True, False
        configure(harness, "telegram")
        await telegram.say("what is a shell")
        await telegram.until(lambda: answers(telegram) == [f"ok\n\n{NO_RIGHT}"])


@pytest.mark.parametrize("call", ["createForumTopic", "sendMessage"])
@pytest.mark.parametrize("kind", ["429", "500", "timeout", "lost"])
async def test_on_telegram_there_is_one_answer_whatever_fails(harness: Harness, call: str, kind: str) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        telegram.script = number(kind, call)
        group = telegram.group("general")
        group.is_forum = True
        configure(harness, "telegram")
        await telegram.say("what is a shell")
        await telegram.until(lambda: [text for name in group.topics for text in answers(telegram, name)] == ["ok"])
        assert len(group.topics) == (2 if (call, kind) == ("createForumTopic", "lost") else 1)
        assert answers(telegram) == []
    assert telegram.violations == []


async def test_on_telegram_one_topic_is_opened_while_the_database_fails(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, move = [StoreError("locked")] * 3, harness.store.move

    async def failing(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return await move(*arguments)

    monkeypatch.setattr(harness.store, "move", failing)
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        group = telegram.group("general")
        group.is_forum = True
        configure(harness, "telegram")
        await telegram.say("what is a shell")
        await telegram.until(lambda: [text for name in group.topics for text in answers(telegram, name)] == ["ok"])
        assert (failures, len(group.topics), answers(telegram)) == ([], 1, [])


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("call", ["createForumTopic", "sendMessage", "editMessageText"])
async def test_on_telegram_a_kill_leaves_one_answer(tmp_path: Path, call: str, is_lost: bool) -> None:
    async with TelegramPlatform() as telegram:
        group, reached = telegram.group("general"), asyncio.Event()
        group.is_forum = True

        def script(number: int, called: str) -> Fault | None:
            if called != call or reached.is_set():
                return None
            reached.set()
            return Fault("lost" if is_lost else "500")

        def shown() -> list[str]:
            return [text for name in group.topics for text in answers(telegram, name)]

        telegram.script = script
        # An answer that is whole before its message is due is sent at once, without an edit.
        is_growing = asyncio.Event()
        slow = ScriptedEngine(default=["o", is_growing, "k"])
        async with make_harness(tmp_path, slow) as harness, telegram_harness.running(telegram, harness):
            configure(harness, "telegram")
            await telegram.say("what is a shell")
            await telegram.until(lambda: bool(shown()) or reached.is_set())
            is_growing.set()
            await reached.wait()
        async with make_harness(tmp_path) as harness, telegram_harness.running(telegram, harness):
            configure(harness, "telegram")
            await telegram.until(lambda: shown() == ["ok"])
            async with asyncio.timeout(TIMEOUT):
                while await harness.store.claim_owed("telegram"):
                    pass
        assert (shown(), answers(telegram)) == (["ok"], [])
        assert len(group.topics) == (2 if is_lost and call == "createForumTopic" else 1)


def answers(telegram: TelegramPlatform, thread: str | None = None) -> list[str]:
    return [seen.visible for seen in telegram.seen(thread=thread) if seen.author == "bot"]


async def test_on_slack_every_mention_opens_a_thread_already(harness: Harness) -> None:
    async with SlackServer() as server, slack_harness.running(harness, server):
        configure(harness, "slack")
        first = await server.say("what is a shell")
        await slack_harness.answered(server, "ok")
        await server.say("<@U0000BEN>, you?", thread=first, mention=False)
        await server.say("and this", thread=first, mention=False)
        await slack_harness.answered(server, "ok", "ok")
        await server.say("what is a kernel")
        await slack_harness.answered(server, "ok", "ok", "ok")
    assert asked(harness) == [["what is a shell"], ["what is a shell", "ok", "and this"], ["what is a kernel"]]


async def told(harness: Harness, platform: str, channel: str, server: str | None = "1") -> str:
    """Return what is answered to an admin who sets it in a channel; `/status` repeats what is missing."""
    admin = Author(platform, "1", "Root")
    harness.access.reconfigure(AccessSection(admins=(admin.key,)), LimitsSection())
    message = IncomingMessage("1", ChannelKey(platform, channel), admin, "", _LONG_AGO, server)
    answer = await harness.intake.forms.carry_out(replace(message, text="/settings answer thread"))
    first, _, missing = answer.partition("\n\n")[2].partition("\n\n")
    assert first == "- `answer` = thread (for this channel, set in the chat)"
    status = await harness.intake.forms.carry_out(replace(message, text="/status"))
    assert all(line in status for line in missing.split("\n\n"))
    return missing


async def test_setting_it_lists_missing_permissions_on_discord(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.bot_permissions &= ~payloads.ADMINISTRATOR
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        assert await told(bot.harness, "discord", str(platform.channel("general"))) == ""
    platform.bot_permissions &= ~payloads.THREADS
    platform.allows_content = False
    (tmp_path / "two").mkdir()
    async with run_discord_bot(platform, tmp_path / "two") as bot:
        await platform.say("hi")
        await platform.until(lambda: len(bot.shown()) == 2)
        assert (
            await told(bot.harness, "discord", str(platform.channel("general"))) == f"{NO_CONTENT}\n\n{NO_PERMISSION}"
        )


@pytest.mark.parametrize(
    ("is_forum", "manages", "missing"),
    [(True, True, ""), (True, False, f"{PRIVACY}\n\n{NO_RIGHT}"), (False, True, NO_TOPICS)],
)
async def test_setting_it_lists_missing_permissions_on_telegram(
    harness: Harness, is_forum: bool, manages: bool, missing: str
) -> None:
    async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
        group = telegram.group("general")
        group.is_forum, telegram.manages_topics = is_forum, manages
        assert await told(harness, "telegram", str(group.id)) == missing


async def test_setting_it_lists_missing_permissions_on_slack(harness: Harness) -> None:
    async with SlackServer() as server, slack_harness.running(harness, server):
        channel = server.workspace.channel("general")
        assert await told(harness, "slack", channel) == ""
        server.scopes.discard("groups:history")
        assert "add the scopes channels:history and groups:history" in await told(harness, "slack", channel)
