"""Discord slash commands and buttons."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from bot.adapters.discord.ask import ABOUT, ASK
from bot.chat.command_table import COMMANDS, CommandContext
from bot.chat.commands import menu
from bot.chat.i18n import translator
from bot.config.schema import AccessSection
from bot.domain import Action
from bot.errors import StoreError
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.platform import Fault
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_users import Guest
from tests.harness.servers.discord_world import EPHEMERAL


async def test_slash_commands_are_registered_in_both_languages(bot: DiscordBot) -> None:
    await bot.platform.until(lambda: bool(bot.platform.commands))
    assert {command["name"] for command in bot.platform.commands} == {*(each.name for each in menu()), ASK, ABOUT}
    clear = next(command for command in bot.platform.commands if command["name"] == "clear")
    assert clear["description"] == "Delete this conversation"
    assert clear["description_localizations"]["zh-CN"] == translator("zh")("Delete this conversation")


async def test_a_slash_command_is_answered_in_its_response(bot: DiscordBot) -> None:
    await bot.platform.say("remember")
    await bot.shows("ok")
    await bot.platform.command("clear")
    await bot.shows("ok", "Deleted: everything said here (1).")
    await bot.all_is_delivered()


async def test_a_slash_command_is_answered_in_its_users_language(bot: DiscordBot) -> None:
    bot.platform.locales["Mei"] = "zh-CN"
    await bot.platform.command("clear", direct=True)
    await bot.shows(translator("zh")("There was nothing to delete here."), channel="Mei")


async def test_the_status_is_visible_only_to_its_user(bot: DiscordBot) -> None:
    await bot.platform.command("status")
    await bot.platform.until(lambda: "scripted" in "".join(bot.shown()))
    assert bot.platform.messages[int(bot.platform.seen()[0].id)]["flags"] & EPHEMERAL


@pytest.mark.parametrize("guest", [None, "server", "chat"])
async def test_a_private_answer_in_several_messages_is_visible_only_to_its_user(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch, guest: Guest | None
) -> None:
    async def run(context: CommandContext) -> str:
        return "word " * 900

    monkeypatch.setitem(COMMANDS, "usage", replace(COMMANDS["usage"], run=run))
    place = "general" if guest is None else "elsewhere"
    await bot.platform.command("usage show", channel=place, guest=guest)
    await bot.platform.until(lambda: " ".join(bot.shown(place)).split() == ["word"] * 900)
    shown = bot.platform.seen(place)
    assert len(shown) == 3
    assert all(bot.platform.messages[int(each.id)]["flags"] & EPHEMERAL for each in shown)


async def test_a_private_answer_whose_token_expires_ends_in_the_message_that_it_has(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(context: CommandContext) -> str:
        return "word " * 900

    def script(number: int, name: str) -> None:
        if name == "send":
            bot.platform.seconds_passed = 901.0

    monkeypatch.setitem(COMMANDS, "usage", replace(COMMANDS["usage"], run=run))
    bot.platform.script = script
    await bot.platform.command("usage show")
    await bot.platform.until(lambda: "ask me in a direct message" in "".join(bot.shown()))


async def test_the_retry_command_edits_the_reply(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.say("hi")
    await bot.shows("first")
    await bot.platform.command("retry")
    await bot.shows("second", "I am answering the question again.")


async def test_the_retry_command_without_a_question_says_so(bot: DiscordBot) -> None:
    await bot.platform.command("retry")
    await bot.platform.until(lambda: "no question here that can be answered again" in "".join(bot.shown()))


async def test_a_denied_users_command_gets_a_notice(platform: DiscordPlatform, tmp_path: Path) -> None:
    access = AccessSection(deny_users=(f"discord:{platform.person('Mei')['id']}",))
    async with run_discord_bot(platform, tmp_path, access=access) as bot:
        await platform.command("status")
        await bot.shows("I do not answer here.")


async def test_an_expired_command_is_answered_in_the_channel(bot: DiscordBot) -> None:
    bot.platform.script = lambda number, name: bot.platform.expire()
    await bot.platform.command("clear")
    await bot.shows("There was nothing to delete here.")
    assert bot.platform.attempts[0][0] == "send"


async def test_a_command_is_answered_in_its_response_after_a_reconnect(bot: DiscordBot) -> None:
    bot.platform.script = lambda number, name: Fault("429", seconds=20.0) if number == 0 else None
    await bot.platform.command("status")
    await bot.platform.until(lambda: bot.platform.writes > 0)
    bot.platform.send_malformed_frame()
    await bot.platform.until(lambda: len(bot.platform.identified) == 2)
    await bot.platform.until(lambda: "scripted" in "".join(bot.shown()))
    assert bot.platform.messages[int(bot.platform.seen()[0].id)]["flags"] & EPHEMERAL


async def test_a_command_with_a_malformed_acknowledgement_is_answered_in_the_channel(bot: DiscordBot) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return web.Response(text="hello") if request.path.endswith("/callback") else None

    bot.platform.gate.guard = guard
    await bot.platform.command("clear")
    await bot.shows("There was nothing to delete here.")
    bot.platform.forget_interactions()


@pytest.mark.parametrize(
    "omitted", [{"channel"}, {"channel", "version", "attachment_size_limit", "entitlements", "app_permissions"}]
)
async def test_an_interaction_without_a_channel_object_is_answered(bot: DiscordBot, omitted: set[str]) -> None:
    bot.platform.omitted = frozenset(omitted)
    await bot.platform.say("hi", thread="tea")
    await bot.shows("ok", thread="tea")
    await bot.platform.command("clear")
    await bot.shows("Deleted: everything said here (1).")
    await bot.platform.command("clear", direct=True)
    await bot.shows("There was nothing to delete here.", channel="Mei")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[-1].id, Action.RETRY)
    await bot.platform.until(lambda: len(bot.engine.requests) == 3)


async def test_an_interaction_without_any_channel_is_answered_and_logged(bot: DiscordBot) -> None:
    bot.platform.omitted = frozenset({"channel", "channel_id"})
    with structlog.testing.capture_logs() as logs:
        await bot.platform.command("status")
        await bot.shows("I do not answer here.")
    assert any(entry["event"] == "interaction without a channel" for entry in logs)


async def test_a_button_under_a_malformed_message_works(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    shown = bot.platform.seen()[-1].id
    message = {"id": shown, "type": [], "embeds": 5}
    bot.platform.interact(3, {"custom_id": "retry"}, "Mei", "general", message=message)
    await bot.shows("second")


@pytest.mark.parametrize(("status", "code"), [(404, 10062), (403, 50013), (400, 50035), (401, 0)])
async def test_a_refused_interaction_is_logged_with_its_reason(bot: DiscordBot, status: int, code: int) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/callback"):
            return None
        body = json.dumps({"code": code, "message": "the reason"}).encode()
        return web.Response(status=status, body=body, content_type="application/json")

    bot.platform.gate.guard = guard
    with structlog.testing.capture_logs() as logs:
        await bot.platform.command("clear")
        await bot.shows("There was nothing to delete here.")
    (entry,) = [entry for entry in logs if entry["event"] == "interaction not answered"]
    assert str(status) in entry["error"]
    assert "the reason" in entry["error"]
    bot.platform.forget_interactions()


async def test_a_command_whose_confirmation_was_lost_is_answered_in_its_response(bot: DiscordBot) -> None:
    bot.platform.garbled_callbacks = 1
    await bot.platform.command("clear")
    await bot.shows("There was nothing to delete here.")
    assert [name for name, _ in bot.platform.attempts] == []


async def test_an_interaction_of_another_kind_is_logged(bot: DiscordBot) -> None:
    with structlog.testing.capture_logs() as logs:
        bot.platform.interact(2, {"id": "1", "name": "retired", "type": 1}, "Mei", "general")
        await bot.platform.say("still there?")
        await bot.shows("ok")
    assert any(entry["event"].startswith("interaction ignored") for entry in logs)
    bot.platform.forget_interactions()


@pytest.mark.usefixtures("impatient")
async def test_a_command_that_timed_out_in_the_librarys_wait_is_answered_in_its_response(bot: DiscordBot) -> None:
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
    await bot.shows("There was nothing to delete here.")
    assert len(waiting) == 1


async def test_a_command_received_too_late_is_answered_in_the_channel(bot: DiscordBot) -> None:
    bot.platform.is_late = True
    await bot.platform.command("help")
    await bot.platform.until(lambda: "`/clear`" in "".join(bot.shown()))
    assert bot.platform.attempts[0][0] == "send"


async def test_the_stop_button_ends_the_answer(bot: DiscordBot) -> None:
    bot.engine.add(["half an", asyncio.Event()])
    await bot.platform.say("hi")
    await bot.shows("half an")
    await bot.platform.press(bot.platform.seen()[1].id, Action.STOP)
    await bot.shows("half an\n\n(stopped)")


async def test_the_retry_button_edits_the_reply(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[1].id, Action.RETRY)
    await bot.shows("second")


async def test_only_the_asker_may_press_a_button(bot: DiscordBot) -> None:
    bot.engine.add("first")
    await bot.platform.say("hi")
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[1].id, Action.RETRY, author="Jo")
    await bot.shows("first", "Only the person who asked, and admins, may do that.")
    assert bot.platform.messages[int(bot.platform.seen()[2].id)]["flags"] & EPHEMERAL


async def test_a_button_that_fails_is_not_acknowledged(bot: DiscordBot, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_an_unknown_button_is_ignored(bot: DiscordBot) -> None:
    await bot.platform.say("hi")
    await bot.shows("ok")
    message = bot.platform.messages[int(bot.platform.seen()[1].id)]
    bot.platform.interact(3, {"custom_id": "other", "component_type": 2}, "Mei", "general", message=message)
    await bot.platform.say("still there?")
    await bot.shows("ok", "ok")
    bot.platform.forget_interactions()
