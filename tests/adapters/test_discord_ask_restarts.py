"""/ask on Discord around a restart of the bot."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.adapters.discord.ask import ABOUT
from bot.adapters.discord.handlers import DiscordHandlers
from bot.chat.intake import Intake
from bot.config.places import PlaceSection
from bot.config.schema import Config
from bot.domain import Action, ChannelKey
from bot.errors import StoreError
from tests.harness.discord_harness import run_discord_bot
from tests.harness.platform import TIMEOUT
from tests.harness.servers.discord import DiscordPlatform

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
ASKED = "> 💬 **Mei**\n> why?"
IN_THREADS = Config(platforms={"discord": PlaceSection(answer="thread")})


@pytest.mark.parametrize("is_shown", [True, False])
async def test_a_restart_goes_on_with_a_question(platform: DiscordPlatform, tmp_path: Path, is_shown: bool) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("/callback") and not is_shown:
            return web.Response(text="lost")
        if request.method == "POST" and request.path.endswith("/messages"):
            body = json.dumps({"code": 0, "message": "later"}).encode()
            return web.Response(status=500, body=body, content_type="application/json")
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?")
        await bot.engine.asked(1)
    platform.gate.guard = None
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows(ASKED, "ok")
        shown, answer = platform.seen()
        assert answer.reply_to == shown.id
    platform.forget_interactions()


async def test_a_restored_database_answers_a_question_no_second_time(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.go_on.clear()
        await platform.command("ask why?")
        await bot.engine.asked(1)
        copy = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
        bot.engine.go_on.set()
        await bot.shows(ASKED, "ok")
        await bot.all_is_delivered()
    for name, content in copy.items():
        (tmp_path / name).write_bytes(content)
    platform.forget_nonces()
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.all_is_delivered()
        assert bot.shown() == [ASKED, "ok"]
        assert bot.engine.requests == []


async def test_a_question_by_command_is_not_taken_for_a_deleted_message(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?")
        await bot.shows(ASKED, "ok")
        await bot.all_is_delivered()
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("go on")
        await bot.shows(ASKED, "ok", "ok")
        said = [message.content for message in bot.engine.requests[-1].messages if message.role == "user"]
        assert len(said) == 2


@pytest.mark.parametrize("is_sent", [False, True])
async def test_a_restart_goes_on_in_the_thread_of_a_question(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        if request.method == "POST" and request.path.endswith("/messages"):
            body = json.dumps({"code": 0, "message": "later"}).encode()
            return web.Response(status=500, body=body, content_type="application/json")
        return None

    async def fail(*arguments: Any) -> None:
        raise StoreError("the power is gone")

    async with run_discord_bot(platform, tmp_path) as bot:
        bot.harness.settings.reconfigure(IN_THREADS)
        bot.engine.add(["half an", asyncio.Event()])
        if is_sent:
            monkeypatch.setattr(bot.harness.store, "record_part", fail)
        else:
            platform.gate.guard = refuse
        await platform.command("ask why?")
        await bot.engine.asked(1)
        await platform.until(lambda: bot.shown(thread="why?") == ["…"] * is_sent)
    platform.gate.guard = None
    platform.forget_nonces()
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.harness.settings.reconfigure(IN_THREADS)
        await bot.shows("ok", thread="why?")
        await platform.until(lambda: platform.seen(thread="why?")[0].actions == {Action.RETRY})
        assert (bot.shown(), bot.shown(thread="why?")) == ([ASKED], ["ok"])


async def test_a_restored_database_that_is_older_than_the_thread_answers_no_second_time(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    copy: dict[str, bytes] = {}

    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("/threads"):
            copy.update({each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()})
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.harness.settings.reconfigure(IN_THREADS)
        await platform.command("ask why?")
        await bot.shows("ok", thread="why?")
        await bot.all_is_delivered()
    for name, content in copy.items():
        (tmp_path / name).write_bytes(content)
    platform.forget_nonces()
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.harness.settings.reconfigure(IN_THREADS)
        await platform.say("hi")
        await platform.until(lambda: bot.shown(thread="hi") == ["ok"])
        assert (bot.shown(), bot.shown(thread="why?"), len(bot.engine.requests)) == ([ASKED], ["ok"], 1)


async def test_a_question_is_taken_in_time_while_missed_messages_are_read(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")
    await platform.disconnect(resumable=False)
    await platform.say("missed")
    may_read = asyncio.Event()

    async def guard(request: web.Request) -> web.Response | None:
        if request.method == "GET" and request.path.endswith("/messages"):
            await may_read.wait()
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?")
        await bot.shows("ok", ASKED, "ok")
        may_read.set()
        await bot.shows("ok", ASKED, "ok", "ok")
    assert platform.unanswered == 0


@pytest.mark.parametrize("reason", ["servers", "database"])
async def test_a_question_by_command_hides_no_message_that_was_missed_before(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("one", thread="tea")
        await bot.shows("ok", thread="tea")
    await platform.disconnect(resumable=False)
    await platform.say("missed", thread="tea", mention=False)
    held: list[DiscordHandlers] = []
    known, read, failures = DiscordHandlers.channels_known, Intake.last_message_ids, [1, 2, 3]

    async def failing(self: Intake, name: str) -> dict[ChannelKey, str]:
        if failures:
            raise StoreError(f"failure {failures.pop()}")
        return await read(self, name)

    def hold(handlers: DiscordHandlers) -> None:
        held.append(handlers)

    if reason == "servers":
        monkeypatch.setattr(DiscordHandlers, "channels_known", hold)
    else:
        monkeypatch.setattr(Intake, "last_message_ids", failing)
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?", thread="tea")
        await platform.until(lambda: ASKED in bot.shown(thread="tea"))
        await platform.until(lambda: reason == "database" or bool(held))
        for handlers in held:
            known(handlers)
        await platform.until(lambda: bot.shown(thread="tea").count("ok") == 3)
        asked = [request.messages[-1].content.rpartition(": ")[2] for request in bot.engine.requests]
        assert sorted(asked) == ["missed", "why?"]


@pytest.mark.parametrize("is_in_threads", [False, True])
async def test_a_message_deleted_meanwhile_leaves_the_question_about_it(
    platform: DiscordPlatform, tmp_path: Path, is_in_threads: bool
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        if is_in_threads:
            bot.harness.settings.reconfigure(IN_THREADS)
        kept, deleted = [await platform.say(said, mention=False, author="Jo") for said in ("tea", "hunter2")]
        for number, message in enumerate([kept, deleted], start=1):
            await platform.open_menu(ABOUT, message)
            await platform.until(lambda: len(platform.modals) == number)  # noqa: B023
            await platform.submit({"question": "is it?"})
            await bot.engine.asked(number)
        await bot.all_is_delivered()

        async def quoted() -> list[str | None]:
            return [row.message.quoted for row in await bot.harness.store.said_since("discord", _LONG_AGO)]

        assert await quoted() == ["tea", "hunter2"]
        await platform.disconnect(resumable=False)
        await platform.delete(deleted)
        async with asyncio.timeout(TIMEOUT):
            while await quoted() != ["tea", None]:
                pass
