"""Discord: the real library against a server of our own."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import discord
import pytest
from aiohttp import web
from discord.backoff import ExponentialBackoff

from bot.adapters import inspect
from bot.adapters.discord.adapter import open_adapter
from bot.adapters.discord.http import configure_endpoints, map_errors, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.settings import DiscordSection
from bot.chat.commands import menu
from bot.chat.i18n import translator
from bot.config.schema import AccessSection, LimitsSection
from bot.delivery.markdown.blocks import is_balanced
from bot.domain import Action, ChannelKey, Kind, Status
from bot.errors import ChannelGone, LoginRefused, MessageGone, PlatformUnavailable, RateLimited, StoreError
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import a_message
from tests.harness.platform import TIMEOUT, Fault
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import MESSAGE_CONTENT, TOKEN
from tests.harness.servers.discord_world import APPLICATION, BOT, BOT_ROLE, EPHEMERAL, GUILD

FACTOR = 50.0


@dataclass(frozen=True, slots=True)
class Bot:
    """The bot, running on a platform with people."""

    platform: DiscordPlatform
    harness: Harness
    running: asyncio.Task[None]

    @property
    def engine(self) -> ScriptedEngine:
        return self.harness.engine

    def shown(self, channel: str = "general", thread: str | None = None) -> list[str]:
        """What the bot says there."""
        return [seen.markdown for seen in self.platform.seen(channel, thread) if seen.author == "bot"]

    async def shows(self, *texts: str, channel: str = "general", thread: str | None = None) -> None:
        """Wait until this is what the bot says there."""
        try:
            await self.platform.until(lambda: self.shown(channel, thread) == list(texts))
        except TimeoutError:
            assert self.shown(channel, thread) == list(texts)

    async def all_is_delivered(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            while await self.harness.store.owed("discord"):
                pass


@asynccontextmanager
async def a_bot(
    platform: DiscordPlatform, folder: Path, access: AccessSection | None = None, **settings: Any
) -> AsyncIterator[Bot]:
    limits = LimitsSection(
        requests_per_minute=0, requests_per_minute_channel=0, waiting_per_user=0, waiting_per_channel=0
    )
    async with make_harness(folder, today=datetime.now(UTC), limits=limits, access=access) as harness:
        running = asyncio.create_task(platform.adapter(FastClock(FACTOR), **settings).run(harness.intake))
        await platform.until(lambda: platform.is_connected or running.done())
        try:
            yield Bot(platform, harness, running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def platform() -> AsyncIterator[DiscordPlatform]:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        yield platform
    assert platform.violations == []


@pytest.fixture
async def bot(platform: DiscordPlatform, tmp_path: Path) -> AsyncIterator[Bot]:
    async with a_bot(platform, tmp_path) as bot:
        yield bot


async def test_a_mention_is_answered_by_a_reply_that_grows(bot: Bot) -> None:
    bot.engine.add("Hello, Mei!")
    question = await bot.platform.say("hi")
    await bot.shows("Hello, Mei!")
    assert bot.platform.seen()[1].reply_to == question
    assert bot.engine.requests[0].messages[-1].content == "Mei: hi"


async def test_an_answer_is_shown_while_it_is_written(bot: Bot) -> None:
    more = asyncio.Event()
    bot.engine.add(["Once upon", more, " a time."])
    await bot.platform.say("a tale")
    await bot.shows("Once upon")
    more.set()
    await bot.shows("Once upon a time.")


async def test_a_long_answer_goes_on_in_further_messages(bot: Bot) -> None:
    code = "\n".join(f"line {number} = '值'" for number in range(300))
    bot.engine.add(f"Here:\n```py\n{code}\n```\nDone.")
    await bot.platform.say("code")
    await bot.platform.until(lambda: bot.shown() != [] and bot.shown()[-1].endswith("Done."))
    shown = bot.shown()
    assert len(shown) > 2
    assert all(is_balanced(text) for text in shown)
    assert "".join(shown).count("'值'") == 300


async def test_what_is_said_without_a_mention_is_left_alone(bot: Bot) -> None:
    await bot.platform.say("not for you", mention=False)
    await bot.platform.say("for another bot", author="other bot")
    await bot.platform.say("a webhook's", webhook_id="5")
    await bot.platform.say("joined", type=7)
    await bot.platform.say("for you")
    await bot.shows("ok")
    assert len(bot.engine.requests) == 1


async def test_a_direct_message_is_answered(bot: Bot) -> None:
    await bot.platform.say("hello", direct=True)
    await bot.shows("ok", channel="Mei")
    assert bot.engine.requests[0].messages[-1].content == "hello"


async def test_a_reply_to_the_bot_is_answered_with_its_history(bot: Bot) -> None:
    await bot.platform.say("one")
    await bot.shows("ok")
    await bot.platform.say("two", reply_to=bot.platform.seen()[1].id)
    await bot.shows("ok", "ok")
    await bot.platform.say("three", reply_to=bot.platform.seen()[1].id, mention=False)
    await bot.shows("ok", "ok", "ok")
    assert [message.content for message in bot.engine.requests[2].messages][::2] == [
        "Mei: one",
        "Mei: two",
        "Mei: three",
    ]


async def test_a_mention_in_a_reply_brings_the_quoted_text(bot: Bot) -> None:
    quoted = await bot.platform.say("the earth is flat", author="Jo", mention=False)
    await bot.platform.say("is that so?", reply_to=quoted)
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "> the earth is flat\n\nMei: is that so?"


async def test_ids_are_read_as_names(bot: Bot) -> None:
    jo = bot.platform.person("Jo")
    general = bot.platform.channel("general")
    await bot.platform.say(
        f"tell <@{BOT}> and <@!{jo['id']}> in <#{general}> about <@&{BOT_ROLE}>, <:blob:123> and <@177777777777777777>",
        mention=True,
        mentions=[jo, bot.platform.bot],
    )
    await bot.shows("ok")
    assert (
        bot.engine.requests[0].messages[-1].content
        == "Mei: tell and @Jo in #general about , :blob: and <@177777777777777777>"
    )


async def test_every_message_is_answered_in_a_thread_where_it_was_mentioned(bot: Bot) -> None:
    await bot.platform.say("not yet", thread="tea", mention=False)
    await bot.platform.say("one", thread="tea")
    await bot.shows("ok", thread="tea")
    await bot.platform.say("two", thread="tea", mention=False)
    await bot.shows("ok", "ok", thread="tea")
    assert bot.shown() == []
    assert [message.content for message in bot.engine.requests[1].messages] == ["Mei: one", "ok", "Mei: two"]


async def test_threads_can_be_left_alone(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with a_bot(platform, tmp_path, threads=False) as bot:
        await platform.say("one", thread="tea")
        await platform.say("two", thread="tea", mention=False)
        await platform.say("three", thread="tea")
        await bot.shows("ok", "ok", thread="tea")
        assert len(bot.engine.requests) == 2


async def test_without_the_intent_only_mentions_and_direct_messages_are_read(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    platform.allows_content = False
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one", thread="tea")
        await bot.shows("ok", thread="tea")
        await platform.say("hidden", thread="tea", mention=False)
        await platform.say("hidden", thread="tea", mention=False, reply_to=platform.seen("general", "tea")[1].id)
        await platform.say("read", direct=True)
        await bot.shows("ok", channel="Mei")
        assert len(bot.engine.requests) == 2
        assert platform.identified[0]["intents"] & MESSAGE_CONTENT == 0


async def test_a_mention_of_the_bots_role_is_a_mention(bot: Bot) -> None:
    await bot.platform.say(f"<@&{BOT_ROLE}> hi", mention=False, mention_roles=[str(BOT_ROLE)])
    await bot.shows("ok")
    assert bot.engine.requests[0].messages[-1].content == "Mei: hi"


async def test_a_picture_gets_a_sentence(bot: Bot) -> None:
    await bot.platform.say("")
    await bot.platform.until(lambda: len(bot.shown()) == 1 and "only read text" in bot.shown()[0])
    assert bot.engine.requests == []


async def test_what_the_model_says_pings_nobody(bot: Bot) -> None:
    bot.engine.add("@everyone <@&100000000000000003> `@here` https://example.org")
    await bot.platform.say("call all")
    await bot.shows("@everyone <@&100000000000000003> `@here` https://example.org")
    # Any `parse` in allowed_mentions would be a violation.
    sent = [body for name, body in bot.platform.attempts if name == "send"]
    assert sent[0]["flags"] & 4, "links get no preview"
    assert sent[0]["allowed_mentions"]["replied_user"] is True


async def test_the_commands_are_announced_in_both_languages(bot: Bot) -> None:
    await bot.platform.until(lambda: bool(bot.platform.commands))
    assert {command["name"] for command in bot.platform.commands} == {command.name for command in menu()}
    clear = next(command for command in bot.platform.commands if command["name"] == "clear")
    assert clear["description"] == "Forget this conversation"
    assert clear["description_localizations"]["zh-CN"] == translator("zh")("Forget this conversation")


async def test_a_slash_command_is_answered_as_its_response(bot: Bot) -> None:
    await bot.platform.say("remember")
    await bot.shows("ok")
    await bot.platform.command("clear")
    await bot.shows("ok", "Forgotten: everything said here (1).")
    await bot.all_is_delivered()


async def test_a_slash_command_speaks_the_language_of_who_used_it(bot: Bot) -> None:
    bot.platform.locales["Mei"] = "zh-CN"
    await bot.platform.command("clear", direct=True)
    await bot.shows(translator("zh")("There was nothing to forget here."), channel="Mei")


async def test_the_status_is_told_to_who_asked_alone(bot: Bot) -> None:
    await bot.platform.command("status")
    await bot.platform.until(lambda: "scripted" in "".join(bot.shown()))
    assert bot.platform.messages[int(bot.platform.seen()[0].id)]["flags"] & EPHEMERAL


async def test_retry_answers_the_question_again_in_place(bot: Bot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.say("hi")
    await bot.shows("first")
    await bot.platform.command("retry")
    await bot.shows("second", "I am answering the question again.")


async def test_retry_without_a_question_says_so(bot: Bot) -> None:
    await bot.platform.command("retry")
    await bot.platform.until(lambda: "no question of yours" in "".join(bot.shown()))


async def test_a_command_where_the_bot_does_not_answer_is_told_so(platform: DiscordPlatform, tmp_path: Path) -> None:
    access = AccessSection(deny_users=(f"discord:{platform.person('Mei')['id']}",))
    async with a_bot(platform, tmp_path, access=access) as bot:
        await platform.command("status")
        await bot.shows("I do not answer here.")


async def test_a_command_that_discord_no_longer_waits_for_is_answered_in_the_channel(bot: Bot) -> None:
    bot.platform.script = lambda number, name: bot.platform.expire()
    await bot.platform.command("clear")
    await bot.shows("There was nothing to forget here.")
    assert bot.platform.attempts[0][0] == "send"


async def test_a_command_whose_connection_was_replaced_is_answered_as_its_response(bot: Bot) -> None:
    bot.platform.script = lambda number, name: Fault("429", seconds=20.0) if number == 0 else None
    await bot.platform.command("status")
    await bot.platform.until(lambda: bot.platform.writes == 1)
    bot.platform.garble()
    await bot.platform.until(lambda: len(bot.platform.identified) == 2)
    await bot.platform.until(lambda: "scripted" in "".join(bot.shown()))
    assert bot.platform.messages[int(bot.platform.seen()[0].id)]["flags"] & EPHEMERAL


async def test_a_command_of_which_discord_answers_what_nobody_can_read_is_answered_in_the_channel(bot: Bot) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return web.Response(text="hello") if request.path.endswith("/callback") else None

    bot.platform.gate.guard = guard
    await bot.platform.command("clear")
    await bot.shows("There was nothing to forget here.")
    bot.platform.forget_interactions()


async def test_a_command_that_was_broken_off_in_a_wait_of_the_librarys_is_answered_as_its_response(bot: Bot) -> None:
    waiting: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/@original") or waiting:
            return None
        waiting.append(request.path)
        shown = next(reversed(bot.platform.messages.values()))
        limits = {"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset-After": "600", "X-Ratelimit-Reset": "0"}
        return web.Response(body=json.dumps(shown).encode(), content_type="application/json", headers=limits)

    bot.platform.gate.guard = guard
    await bot.platform.command("clear")
    await bot.shows("There was nothing to forget here.")
    assert len(waiting) == 1


async def test_a_command_that_comes_too_late_is_answered_in_the_channel(bot: Bot) -> None:
    bot.platform.is_late = True
    await bot.platform.command("help")
    await bot.platform.until(lambda: "`/clear`" in "".join(bot.shown()))
    assert bot.platform.attempts[0][0] == "send"


async def test_the_stop_button_ends_the_answer(bot: Bot) -> None:
    bot.engine.add(["half an", asyncio.Event()])
    await bot.platform.say("hi")
    await bot.shows("half an")
    await bot.platform.press(bot.platform.seen()[1].id, Action.STOP)
    await bot.shows("half an\n\n(stopped)")


async def test_the_retry_button_answers_anew_in_the_same_message(bot: Bot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[1].id, Action.RETRY)
    await bot.shows("second")


async def test_only_the_asker_may_press(bot: Bot) -> None:
    bot.engine.add("first")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[1].id, Action.RETRY, author="Jo")
    await bot.shows("first", "Only the person who asked, and admins, may do that.")
    assert bot.platform.messages[int(bot.platform.seen()[2].id)]["flags"] & EPHEMERAL


async def test_an_edited_question_is_answered_anew_in_the_same_reply(bot: Bot) -> None:
    bot.engine.add("Paris", "Rome")
    question = await bot.platform.say("capital of France?")
    await bot.shows("Paris")
    await bot.platform.edit(question, "capital of Italy?")
    await bot.shows("Rome")
    assert bot.engine.requests[1].messages[-1].content == "Mei: capital of Italy?"


async def test_a_preview_of_a_link_is_no_edit(bot: Bot) -> None:
    question = await bot.platform.say("https://example.org")
    await bot.shows("ok")
    message = bot.platform.messages[int(question)]
    bot.platform.tell("MESSAGE_UPDATE", {**message, "embeds": [{"type": "link"}]})
    await bot.platform.say("next")
    await bot.shows("ok", "ok")
    assert len(bot.engine.requests) == 2


async def test_a_deleted_question_is_stopped_and_forgotten(bot: Bot) -> None:
    bot.engine.add(["half an", asyncio.Event()])
    question = await bot.platform.say("my secret", thread="tea")
    await bot.shows("half an", thread="tea")
    await bot.platform.delete(question)
    await bot.platform.until(lambda: len(bot.engine.closed) == 1)
    await bot.platform.say("next", thread="tea")
    await bot.platform.until(lambda: len(bot.engine.requests) == 2)
    assert [message.content for message in bot.engine.requests[1].messages] == ["Mei: next"]


async def test_questions_deleted_in_bulk_are_forgotten(bot: Bot) -> None:
    first, second = await bot.platform.say("one"), await bot.platform.say("two")
    await bot.shows("ok", "ok")
    where = {"channel_id": str(bot.platform.channel("general")), "guild_id": str(GUILD)}
    bot.platform.tell("MESSAGE_DELETE_BULK", {"ids": [first, second], **where})
    await bot.platform.say("three")
    await bot.shows("ok", "ok", "ok")
    assert [message.content for message in bot.engine.requests[2].messages] == ["Mei: three"]


async def test_a_connection_that_resumes_misses_nothing(bot: Bot) -> None:
    await bot.platform.disconnect()
    await bot.platform.say("are you there?")
    await bot.shows("ok")
    assert bot.platform.resumed == 1


async def test_a_connection_that_does_not_resume_is_caught_up(bot: Bot) -> None:
    await bot.platform.say("before")
    await bot.platform.say("hello", direct=True)
    await bot.platform.say("among people", thread="tea", mention=False)
    await bot.platform.say("one", thread="tea")
    await bot.shows("ok")
    await bot.shows("ok", channel="Mei")
    await bot.shows("ok", thread="tea")
    await bot.platform.disconnect(resumable=False)
    await bot.platform.say("among people", thread="new", mention=False)
    await bot.platform.say("missed in a new thread", thread="new")
    await bot.platform.say("and what follows", thread="new", mention=False)
    await bot.platform.say("missed")
    await bot.platform.say("missed in a thread", thread="tea", mention=False)
    await bot.platform.say("missed in private", direct=True)
    await bot.platform.say("missed where it never was", channel="random")
    await bot.platform.say("not for the bot", mention=False)
    await bot.shows("ok", "ok")
    await bot.shows("ok", "ok", channel="Mei")
    await bot.shows("ok", "ok", thread="tea")
    await bot.shows("ok", channel="random")
    await bot.shows("ok", "ok", thread="new")
    assert len(bot.engine.requests) == 9


def let_the_library_wait(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """After a connection that failed; else it draws the time, and it comes to 17 minutes."""
    monkeypatch.setattr(ExponentialBackoff, "delay", lambda backoff: seconds)


async def test_after_a_short_outage_the_session_is_resumed(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    let_the_library_wait(monkeypatch, 0.01)
    bot.platform.is_away = True
    await bot.platform.disconnect()
    await bot.platform.say("are you there?")
    await bot.platform.until(lambda: bot.platform.turned_away > 3)
    bot.platform.is_away = False
    await bot.shows("ok")
    assert (bot.platform.resumed, len(bot.platform.identified)) == (1, 1)


async def test_after_a_long_outage_a_session_is_begun_however_long_the_library_would_wait(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_the_library_wait(monkeypatch, 1000.0)
    platform.cut_off_seconds = 0.1
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("before")
        await bot.shows("ok")
        platform.is_away = True
        await platform.disconnect()
        await platform.say("meanwhile")
        # The library tries once; who comes after that is another client.
        await platform.until(lambda: platform.turned_away > 2)
        platform.is_away = False
        await bot.shows("ok", "ok")
        assert (platform.resumed, len(platform.identified)) == (0, 2)


async def test_a_session_that_was_resumed_in_time_is_left_alone(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.cut_off_seconds = 0.2
    async with a_bot(platform, tmp_path) as bot:
        await platform.disconnect()
        await platform.until(lambda: platform.resumed == 1)
        await asyncio.sleep(0.3)  # until the time would be up
        await platform.say("hi")
        await bot.shows("ok")
        assert (platform.resumed, len(platform.identified)) == (1, 1)


async def test_what_was_said_while_it_was_not_running_is_answered_at_the_next_start(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
    missed = [await platform.say("two"), await platform.say("three", author="Jo")]
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok", "ok")
        contents = [request.messages[-1].content for request in bot.engine.requests]
        assert contents == ["Mei: two", "Jo: three"]
        assert sorted(seen.reply_to or "" for seen in platform.seen()[-2:]) == missed


async def test_a_reply_that_was_cut_off_is_edited_and_not_sent_again(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with a_bot(platform, tmp_path) as bot:
        bot.engine.add(["half an", asyncio.Event()])
        await platform.say("one")
        await bot.shows("half an")
    async with a_bot(platform, tmp_path) as bot:
        bot.engine.add("whole")
        await bot.shows("whole")


async def a_placeholder_that_is_not_noted(
    platform: DiscordPlatform, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The question that it replies to; the bot was killed before it could write its id down."""

    async def failing(*arguments: Any) -> None:
        raise StoreError("the power is gone")

    async with a_bot(platform, folder) as bot:
        monkeypatch.setattr(bot.harness.store, "record_part", failing)
        question = await platform.say("one")
        await bot.shows("…")
    return question


def sends(platform: DiscordPlatform) -> int:
    return len([name for name, _ in platform.attempts if name == "send"])


async def test_a_placeholder_whose_id_was_not_noted_is_found_when_its_nonce_is_forgotten(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_placeholder_that_is_not_noted(platform, tmp_path, monkeypatch)
    platform.forget_nonces()
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert sends(platform) == 1


async def test_a_placeholder_is_looked_for_until_discord_answers(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = await a_placeholder_that_is_not_noted(platform, tmp_path, monkeypatch)
    platform.forget_nonces()
    refusals = [web.Response(status=500), web.Response(status=429, headers={"Retry-After": "1"})]

    async def guard(request: web.Request) -> web.Response | None:
        return refusals.pop() if request.query.get("after") == question and refusals else None

    platform.gate.guard = guard
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert refusals == []
    assert sends(platform) == 1


async def test_where_nothing_may_be_read_a_placeholder_is_told_by_its_nonce(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_placeholder_that_is_not_noted(platform, tmp_path, monkeypatch)

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith("/messages"):
            return web.Response(status=403, body=b'{"code": 50001}', content_type="application/json")
        return None

    platform.gate.guard = guard
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok")
    assert sends(platform) == 2


async def test_an_excuse_is_not_taken_for_the_reply(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*arguments: Any) -> None:
        raise StoreError("the disk is full")

    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
        await bot.all_is_delivered()
        monkeypatch.setattr(bot.harness.store, "enqueue", failing)
        await platform.say("two")
        await platform.until(lambda: len(bot.shown()) == 2)
        before = bot.shown()
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows(*before, "ok")


async def test_catching_up_passes_over_what_it_may_not_read(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await platform.say("hi", direct=True)
        await bot.shows("ok", channel="Mei")
        await bot.shows("ok")
    await platform.say("two", channel="hidden")
    await platform.say("three")
    platform.forbidden |= {platform.channel("hidden"), platform.direct("Mei")}
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")


def readings(platform: DiscordPlatform, *channels: int) -> int:
    """How often the bot read what was said in these channels."""
    return sum(platform.calls.count(f"GET /channels/{channel}/messages") for channel in channels)


async def test_places_that_nothing_is_known_of_are_read_a_few_at_a_time(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    names = [f"person {number}" for number in range(7)]
    async with a_bot(platform, tmp_path) as bot:
        for name in names:
            await platform.say("one", author=name, direct=True)
            await bot.shows("ok", channel=name)
    directs = [platform.direct(name) for name in names]
    for name in names:
        await platform.say("two", author=name, direct=True)
    platform.reading.clear()
    async with a_bot(platform, tmp_path) as bot:
        await platform.until(lambda: readings(platform, *directs) > 1)
        await asyncio.sleep(0.05)  # for more than may come at once
        assert readings(platform, *directs) == 4
        platform.reading.set()
        for name in names:
            await bot.shows("ok", "ok", channel=name)


async def test_a_thread_that_was_archived_is_caught_up(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one", thread="tea")
        await bot.shows("ok", thread="tea")
    await platform.say("two", thread="tea", mention=False)
    platform.archived.add(platform.thread("general", "tea"))
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok", thread="tea")


async def test_of_old_places_only_direct_channels_are_asked_about(platform: DiscordPlatform, tmp_path: Path) -> None:
    thread, direct = platform.thread("general", "tea"), platform.direct("Jo")
    old = str(discord.utils.time_snowflake(datetime.now(UTC) - timedelta(days=8)))
    async with a_bot(platform, tmp_path) as bot:
        for place in (
            ChannelKey("discord", str(platform.channel("general")), str(thread)),
            ChannelKey("discord", str(direct)),
        ):
            kept = await bot.harness.store.enqueue(a_message("long ago", id=old, channel=place), Kind.CHAT)
            assert kept is not None
            await bot.harness.store.fail(kept.id, "long ago")
        await platform.say("one")
        await bot.shows("ok")
    platform.archived.add(thread)
    await platform.say("here I am again", author="Jo", direct=True)
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", channel="Jo")
    assert readings(platform, thread) == 0


async def test_a_place_that_is_gone_is_asked_about_once_and_again_when_it_is_back(bot: Bot) -> None:
    direct = bot.platform.direct("Mei")
    await bot.platform.say("one", direct=True)
    await bot.shows("ok", channel="Mei")
    bot.platform.forbidden.add(direct)
    for number in range(1, 4):
        await bot.platform.disconnect(resumable=False)
        await bot.platform.say(str(number))
        await bot.shows(*["ok"] * number)
    assert readings(bot.platform, direct) == 1
    bot.platform.forbidden.clear()
    await bot.platform.say("two", direct=True)
    await bot.shows("ok", "ok", channel="Mei")
    await bot.platform.disconnect(resumable=False)
    await bot.platform.say("three", direct=True)
    await bot.shows("ok", "ok", "ok", channel="Mei")


async def test_a_start_that_fails_is_tried_again(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.refusals = {"/users/@me": 2, f"/applications/{APPLICATION}/commands": 1}
    platform.silences = 2
    platform.closes_with = [4014, 4013]
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")


@pytest.mark.parametrize("ending", ["/users/@me", "/messages"], ids=["login", "catching up"])
async def test_a_call_that_discord_never_answers_is_made_again(
    platform: DiscordPlatform, tmp_path: Path, ending: str
) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("hello")
        await bot.shows("ok")
    await platform.say("are you there?")
    hanging: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith(ending) and not hanging:
            hanging.append(request.path)
            await platform.closing.wait()
        return None

    platform.gate.guard = guard
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")
    assert hanging


async def test_a_start_that_is_told_to_wait_waits(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.waits = {"/users/@me": 1, f"/applications/{APPLICATION}/commands": 1}
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        await platform.until(lambda: bool(platform.commands))


async def test_a_connection_that_is_garbled_is_begun_anew(bot: Bot) -> None:
    await bot.platform.say("one")
    await bot.shows("ok")
    bot.platform.garble()
    await bot.platform.until(lambda: len(bot.platform.identified) == 2)
    await bot.platform.say("two")
    await bot.shows("ok", "ok")


async def test_everything_goes_through_the_proxy(platform: DiscordPlatform, tmp_path: Path) -> None:
    elsewhere: dict[str, Any] = {
        "api_url": "http://discord.invalid/api/v10",
        "gateway_url": "ws://discord.invalid/gateway",
    }
    async with a_bot(platform, tmp_path, proxy=platform.url, **elsewhere) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        await platform.command("clear")
        await bot.shows("ok", "Forgotten: everything said here (1).")


async def test_a_wrong_token_ends_it_with_one_sentence(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.known_token = "another"
    async with a_bot(platform, tmp_path) as bot:
        with pytest.raises(LoginRefused, match="BOT_DISCORD__TOKEN"):
            await bot.running


async def test_a_bot_that_is_restarted_again_and_again_uses_not_all_sessions_of_the_day_up(
    platform: DiscordPlatform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    platform.sessions_left = {"total": 1000, "remaining": 2, "reset_after": 60_000, "max_concurrency": 1}
    before = time.monotonic()
    async with a_bot(platform, tmp_path):
        assert time.monotonic() - before >= 30.0 / FACTOR
        assert len(platform.identified) == 1
    assert [each.__dict__["seconds"] for each in caplog.records if "few sessions" in each.message] == [30]


async def test_a_count_of_sessions_that_nobody_can_read_keeps_no_bot_away(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    platform.sessions_left = None
    async with a_bot(platform, tmp_path):
        assert len(platform.identified) == 1


async def test_a_token_that_is_changed_while_it_runs_ends_it_too(bot: Bot) -> None:
    bot.platform.known_token = "another"
    await bot.platform.disconnect(resumable=False)
    with pytest.raises(LoginRefused):
        await bot.running


@pytest.mark.parametrize("kind", ["429", "500", "timeout", "lost"])
async def test_every_second_call_fails_and_every_word_arrives_once(
    platform: DiscordPlatform, tmp_path: Path, kind: Literal["429", "500", "timeout", "lost"]
) -> None:
    platform.script = lambda number, name: Fault(kind, seconds=3.0) if number % 2 == 0 else None
    words = [f"word{number} " * 40 for number in range(20)]
    async with a_bot(platform, tmp_path, call_seconds=0.3) as bot:
        bot.engine.add(list(words))
        await platform.say("go on")
        await platform.until(lambda: "".join(bot.shown()).count("word") == 800)
        await platform.until(lambda: platform.seen()[-1].actions == {Action.RETRY})
        assert "".join("".join(bot.shown()).split()) == "".join("".join(words).split())


async def test_a_refusal_of_all_calls_holds_back_every_channel(bot: Bot) -> None:
    bot.platform.is_global = True
    bot.platform.script = lambda number, name: Fault("429", seconds=20.0) if number == 0 else None
    await bot.platform.say("one")
    await bot.platform.until(lambda: bot.platform.writes == 1)
    await bot.platform.say("two", channel="random")
    await bot.shows("ok")
    await bot.shows("ok", channel="random")


@pytest.mark.parametrize("after", ["10", "Fri, 20 Nov 2026 12:00:10 GMT"])
async def test_a_refusal_that_says_nothing_else_holds_back_every_channel(bot: Bot, after: str) -> None:
    bot.platform.terse = after
    bot.platform.script = lambda number, name: Fault("429", seconds=10.0) if number == 0 else None
    await bot.platform.say("one")
    await bot.platform.until(lambda: bot.platform.writes == 1)
    await bot.platform.say("two", channel="random")
    await bot.shows("ok")
    await bot.shows("ok", channel="random")


async def test_an_answer_that_became_shorter_takes_messages_back(bot: Bot) -> None:
    bot.engine.add("long " * 600, "short")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: len(bot.shown()) == 2 and bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[2].id, Action.RETRY)
    await bot.shows("short")


async def test_a_message_of_the_bots_that_was_deleted_is_sent_anew(bot: Bot) -> None:
    more = asyncio.Event()
    bot.engine.add(["half", more, " and half"])
    await bot.platform.say("hi")
    await bot.shows("half")
    await bot.platform.delete(bot.platform.seen()[1].id)
    more.set()
    await bot.shows("half and half")


async def test_a_button_that_fails_is_left_to_discord_to_tell(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*arguments: Any) -> None:
        raise StoreError("locked")

    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    monkeypatch.setattr(bot.harness.store, "find_by_reply", failing)
    await bot.platform.press(bot.platform.seen()[1].id, Action.RETRY)
    await bot.platform.say("still there?")
    await bot.shows("ok", "ok")
    assert bot.platform.unanswered == 1
    bot.platform.forget_interactions()


async def test_a_button_that_is_not_ours_is_left_alone(bot: Bot) -> None:
    await bot.platform.say("hi")
    await bot.shows("ok")
    message = bot.platform.messages[int(bot.platform.seen()[1].id)]
    bot.platform.interact(3, {"custom_id": "other", "component_type": 2}, "Mei", "general", message=message)
    await bot.platform.say("still there?")
    await bot.shows("ok", "ok")
    bot.platform.forget_interactions()


async def test_an_event_that_cannot_be_read_costs_nothing(bot: Bot) -> None:
    unreadable: list[object] = [{}, {"id": "x"}, {"author": 5, "content": None}, [], "text", None]
    for broken in unreadable:
        for name in ("MESSAGE_CREATE", "MESSAGE_UPDATE", "MESSAGE_DELETE", "INTERACTION_CREATE", "GUILD_CREATE", "X"):
            bot.platform.tell(name, broken)
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert len(bot.platform.identified) == 1


async def test_a_fault_of_ours_costs_one_message(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    bot.harness.raise_on("bad", monkeypatch)
    await bot.platform.say("bad")
    await bot.platform.say("good")
    await bot.shows("ok")


async def test_a_thread_that_the_library_does_not_know_is_asked_for(bot: Bot) -> None:
    bot.platform.is_quiet = True
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


async def test_a_channel_that_is_gone_before_it_was_looked_at_is_passed_over(bot: Bot) -> None:
    bot.platform.is_quiet = True
    bot.platform.forbidden.add(bot.platform.thread("general", "tea"))
    await bot.platform.say("one", thread="tea")
    await bot.platform.say("two")
    await bot.shows("ok")


async def test_a_message_of_the_far_future_does_not_hide_what_is_missed(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("hello")
        await bot.shows("ok")
        forged = replace(
            a_message("q", channel=ChannelKey("discord", str(platform.channel("random")))), id=str(1 << 62)
        )
        await bot.harness.ask(forged)
    await platform.say("are you there?")
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")


async def test_catching_up_waits_when_discord_says_so(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with a_bot(platform, tmp_path) as bot:
        await platform.say("one")
        await bot.shows("ok")
    await platform.say("two")
    platform.waits = {f"/channels/{platform.channel('general')}/messages": 2}
    async with a_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")


async def test_a_channel_that_is_forbidden_ends_the_exchange(bot: Bot) -> None:
    bot.platform.forbidden.add(bot.platform.channel("general"))
    question = await bot.platform.say("hi")
    await bot.platform.say("hello", direct=True)
    await bot.shows("ok", channel="Mei")
    key = ChannelKey("discord", str(bot.platform.channel("general")))
    exchange = await bot.harness.store.find(key, question)
    assert exchange is not None
    assert exchange.status is Status.FAILED


async def test_a_message_waits_until_the_database_can_keep_it(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, failures = bot.harness.store.enqueue, [StoreError("locked")] * 3

    async def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await begin(*arguments)

    monkeypatch.setattr(bot.harness.store, "enqueue", failing)
    await bot.platform.say("one")
    await bot.platform.say("two")
    waits = "I cannot write anything down just now. Your message waits, and I answer it as soon as I can."
    await bot.shows(waits, "ok", "ok")
    assert [request.messages[-1].content for request in bot.engine.requests] == ["Mei: one", "Mei: two"]


async def test_eighty_mentions_at_once_are_all_answered(bot: Bot) -> None:
    channels = [f"channel {number}" for number in range(20)]
    for number in range(80):
        await bot.platform.say(f"question {number}", channel=channels[number % 20])
    await bot.platform.until(
        lambda: sum(message["content"] == "ok" for message in bot.platform.messages.values()) == 80, seconds=30
    )
    assert all(bot.shown(channel) == ["ok"] * 4 for channel in channels)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, 50001, ChannelGone),
        (403, 50007, ChannelGone),
        (404, 10003, ChannelGone),
        (400, 50083, ChannelGone),
        (404, 10008, MessageGone),
        (400, 30046, RateLimited),
        (403, 0, PlatformUnavailable),
        (401, 0, LoginRefused),
        (400, 50035, discord.HTTPException),
    ],
)
async def test_what_discord_refuses_has_a_name(status: int, code: int, expected: type[Exception]) -> None:
    response = SimpleNamespace(status=status, reason="")
    with pytest.raises(expected), map_errors():
        raise discord.HTTPException(cast("Any", response), {"code": code, "message": "no"})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (discord.RateLimited(40.0), RateLimited),
        (discord.LoginFailure(), LoginRefused),
        (TimeoutError(), PlatformUnavailable),
        (ConnectionResetError(54, "reset"), PlatformUnavailable),
        (RuntimeError("Session is closed"), PlatformUnavailable),
        (RuntimeError("another"), RuntimeError),
    ],
)
async def test_what_the_library_raises_has_a_name(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected), map_errors():
        raise error


async def test_without_a_connection_there_is_nobody_to_send_to() -> None:
    messenger = DiscordMessenger(1.2, 10.0)
    channel, text = ChannelKey("discord", "1"), messenger.format.render("hi")
    with pytest.raises(PlatformUnavailable):
        await messenger.send(channel, text, reply_to=None, controls=frozenset(), nonce="1.0.0")


async def test_a_call_that_is_broken_off_at_any_moment_holds_up_none_after_it(platform: DiscordPlatform) -> None:
    settings = platform.settings()
    configure_endpoints(settings)
    messenger = DiscordMessenger(1.2, 5.0)
    channel, controls = ChannelKey("discord", str(platform.channel("general"))), frozenset[Action]()
    async with rest_client(settings, FastClock(FACTOR)) as messenger.client:
        await messenger.client.login(TOKEN)
        said = await messenger.send(
            channel, messenger.format.render("…"), reply_to=None, controls=controls, nonce="1.0.0"
        )

        def edit(text: str) -> Coroutine[None, None, None]:
            return messenger.edit(channel, said, messenger.format.render(text), controls=controls)

        for number in range(200):
            call = asyncio.create_task(edit("broken off"))
            for _ in range(number % 20):  # more turns of the event loop than a call takes
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            await edit(f"after {number}")
    assert sum(body["content"].startswith("after") for _, body in platform.attempts) == 200


async def test_an_inspection_tells_what_is_missing(platform: DiscordPlatform) -> None:
    assert all([finding.is_ok async for finding in inspect("discord", platform.settings())])
    platform.allows_content = False
    platform.application = {"interactions_endpoint_url": "https://example.org", "bot_require_code_grant": True}
    platform.guilds_without_commands.add(GUILD)
    wrong = [finding.text async for finding in inspect("discord", platform.settings()) if not finding.is_ok]
    assert [word for word in ["Intent", "Endpoint", "OAuth2", "scope=bot"] if word not in "".join(wrong)] == []
    assert all(
        [
            finding.is_ok or "Intent" not in finding.text
            async for finding in inspect("discord", platform.settings(threads=False))
        ]
    )


async def test_an_inspection_is_not_mixed_with_warnings_of_the_library(
    platform: DiscordPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    assert all([finding.is_ok async for finding in inspect("discord", platform.settings())])
    assert caplog.messages == []


async def test_an_inspection_tells_how_to_invite_the_bot(platform: DiscordPlatform) -> None:
    platform.is_alone = True
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert [finding.is_ok for finding in findings] == [True, True, False]
    assert "scope=bot" in findings[2].text
    platform.refusals = {"/users/@me/guilds": 1}
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert findings[2].text == "Discord answered 500"


async def test_an_adapter_without_a_token_does_not_start(platform: DiscordPlatform, harness: Harness) -> None:
    adapter = open_adapter(DiscordSection(), FastClock(FACTOR))
    with pytest.raises(LoginRefused, match="BOT_DISCORD__TOKEN"):
        await adapter.run(harness.intake)


async def test_an_inspection_with_a_wrong_token_says_where_to_put_another(platform: DiscordPlatform) -> None:
    platform.known_token = "another"
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert [finding.is_ok for finding in findings] == [False]
    assert "BOT_DISCORD__TOKEN" in findings[0].text
