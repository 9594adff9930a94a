"""/ask and "Ask about this" on Discord, where the bot is a member."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.adapters.discord.ask import ABOUT
from bot.chat.i18n import translator
from bot.config.places import PlaceSection
from bot.config.schema import AccessSection, Config
from bot.delivery import replies
from bot.domain import Action
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.platform import Fault
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_world import EPHEMERAL, GUILD

ASKED = "> 💬 **Mei**\n> why?"


async def test_a_question_is_shown_and_answered_below(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?")
    await bot.shows(ASKED, "ok")
    shown, answer = bot.platform.seen()
    assert answer.reply_to == shown.id
    assert bot.harness.engine.requests[0].messages[-1].content.endswith("why?")
    await bot.all_is_delivered()


async def test_a_question_by_command_is_part_of_the_conversation(bot: DiscordBot) -> None:
    await bot.platform.say("remember 7")
    await bot.shows("ok")
    await bot.platform.command("ask why?")
    await bot.shows("ok", ASKED, "ok")
    await bot.platform.say("go on")
    await bot.shows("ok", ASKED, "ok", "ok")
    said = [message.content for message in bot.engine.requests[-1].messages if message.role == "user"]
    assert [text.rpartition(": ")[2] for text in said] == ["remember 7", "why?", "go on"]


async def test_a_question_by_command_works_in_a_direct_message(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?", direct=True)
    await bot.shows(ASKED, "ok", channel="Mei")


async def test_an_answer_to_a_command_is_given_again_in_place(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.command("ask why?")
    await bot.platform.until(lambda: bool(bot.shown()) and bot.platform.seen()[-1].actions == {Action.RETRY})
    await bot.platform.press(bot.platform.seen()[-1].id, Action.RETRY)
    await bot.shows(ASKED, "second")


async def test_a_mention_in_a_command_notifies_nobody(bot: DiscordBot) -> None:
    await bot.platform.command("ask @everyone https://example.org")
    await bot.shows("> 💬 **Mei**\n> @everyone https://example.org", "ok")  # the server checks allowed_mentions


async def test_a_long_question_of_many_lines_fits_its_message(bot: DiscordBot) -> None:
    await bot.platform.say("look at this", mention=False, author="Jo")
    await bot.platform.open_menu(ABOUT, bot.platform.seen()[-1].id)
    await bot.platform.until(lambda: bool(bot.platform.modals))
    await bot.platform.submit({"question": "😀\n" * 600})
    await bot.platform.until(lambda: bot.shown()[-1:] == ["ok"])
    assert bot.shown()[0].endswith("…")


async def test_a_file_comes_with_the_question(bot: DiscordBot) -> None:
    notes = bot.platform.file("notes.txt", b"the code is 42", "text/plain")
    await bot.platform.command("ask what is the code?", files=[notes])
    await bot.shows("> 💬 **Mei**\n> what is the code?\n> 📎 notes.txt", "ok")
    assert "the code is 42" in bot.engine.requests[0].messages[-1].content


async def test_a_question_about_a_message_brings_it_along(bot: DiscordBot) -> None:
    said = await bot.platform.say("tea is green", mention=False, author="Jo")
    await bot.platform.open_menu(ABOUT, said)
    await bot.platform.until(lambda: bool(bot.platform.modals))
    await bot.platform.submit({"question": "is it?"})
    where = f"https://discord.com/channels/{GUILD}/{bot.platform.channel('general')}/{said}"
    await bot.shows(f"> 💬 **Mei** ↩️ {where}\n> is it?", "ok")
    assert "tea is green" in bot.engine.requests[0].messages[-1].content


async def test_a_question_about_a_message_that_was_edited_meanwhile_is_about_its_new_text(bot: DiscordBot) -> None:
    said = await bot.platform.say("my password is hunter2", mention=False, author="Jo")
    await bot.platform.open_menu(ABOUT, said)
    await bot.platform.until(lambda: bool(bot.platform.modals))
    await bot.platform.edit(said, "tea is green")
    await bot.platform.say("next")  # events are taken in order
    await bot.shows("ok")
    await bot.platform.submit({"question": "is it?"})
    await bot.engine.asked(2)
    prompt = bot.engine.requests[1].messages[-1].content
    assert "tea is green" in prompt
    assert "hunter2" not in prompt


async def test_a_question_about_a_message_outlives_a_restart(platform: DiscordPlatform, tmp_path: Path) -> None:
    said = await platform.say("tea is green", mention=False, author="Jo")
    async with run_discord_bot(platform, tmp_path):
        await platform.open_menu(ABOUT, said)
        await platform.until(lambda: bool(platform.modals))
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.submit({"question": "is it?"})
        await platform.until(lambda: bot.shown()[-1:] == ["ok"])
        assert "tea is green" in bot.engine.requests[0].messages[-1].content


async def test_a_modal_about_a_deleted_message_says_so(platform: DiscordPlatform, tmp_path: Path) -> None:
    said = await platform.say("tea is green", mention=False, author="Jo")
    async with run_discord_bot(platform, tmp_path):
        await platform.open_menu(ABOUT, said)
        await platform.until(lambda: bool(platform.modals))
    await platform.disconnect(resumable=False)
    del platform.messages[int(said)]
    platform.locales["Mei"] = "zh-CN"
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.submit({"question": "is it?"})
        await bot.shows(translator("zh")("I cannot read that message any more. Please choose it again."))
        assert platform.messages[int(platform.seen()[-1].id)]["flags"] & EPHEMERAL


@pytest.mark.parametrize("command", ["ask why?", ABOUT])
async def test_a_denied_person_gets_a_notice(platform: DiscordPlatform, tmp_path: Path, command: str) -> None:
    said = await platform.say("tea", mention=False, author="Jo")
    access = AccessSection(deny_users=(f"discord:{platform.person('Mei')['id']}",))
    async with run_discord_bot(platform, tmp_path, access=access) as bot:
        if command == ABOUT:
            await platform.open_menu(ABOUT, said)
        else:
            await platform.command(command)
        await bot.shows("I do not answer here.")


async def test_a_question_that_came_too_late_for_a_response_is_shown_by_a_message(bot: DiscordBot) -> None:
    bot.platform.is_late = True
    await bot.platform.command("ask why?")
    await bot.shows(ASKED, "ok")
    shown, answer = bot.platform.seen()
    assert answer.reply_to == shown.id


async def test_a_question_whose_response_was_lost_is_shown_once(bot: DiscordBot) -> None:
    bot.platform.garbled_callbacks = 1
    await bot.platform.command("ask why?")
    await bot.shows(ASKED, "ok")
    shown, answer = bot.platform.seen()
    assert answer.reply_to == shown.id


async def test_a_question_that_is_delivered_again_is_answered_once(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?")
    bot.platform.repeat_press()
    await bot.shows(ASKED, "ok")
    bot.platform.repeat_press()
    await bot.platform.say("and?")
    await bot.shows(ASKED, "ok", "ok")
    assert len(bot.engine.requests) == 2


async def test_a_reconnect_while_a_question_is_answered_changes_nothing(bot: DiscordBot) -> None:
    bot.engine.go_on.clear()
    await bot.platform.command("ask why?")
    await bot.engine.asked(1)
    bot.platform.send_malformed_frame()
    await bot.platform.until(lambda: len(bot.platform.identified) == 2)
    bot.engine.go_on.set()
    await bot.shows(ASKED, "ok")
    await bot.all_is_delivered()


async def test_every_fourth_call_refused_leaves_one_answer(bot: DiscordBot) -> None:
    bot.platform.script = lambda number, name: Fault(("429", "500", "lost")[number // 2 % 3]) if number % 2 else None
    bot.engine.add("word " * 700)
    await bot.platform.command("ask why?")
    await bot.platform.until(
        lambda: bool(bot.shown()) and bot.platform.seen()[-1].actions == {Action.RETRY} and "…" not in bot.shown()
    )
    assert bot.shown()[0] == ASKED
    assert " ".join(bot.shown()[1:]).split() == ["word"] * 700


async def test_an_answer_opens_the_thread_of_the_message_that_shows_the_question(bot: DiscordBot) -> None:
    bot.harness.settings.reconfigure(Config(platforms={"discord": PlaceSection(answer="thread")}))
    await bot.platform.command("ask why?")
    await bot.shows("ok", thread="why?")
    assert bot.shown() == [ASKED]


async def test_typing_is_shown_while_the_first_message_has_to_wait(bot: DiscordBot) -> None:
    bot.platform.script = lambda number, name: Fault("429", 60.0) if number == 0 else None
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert set(bot.platform.typing) == {bot.platform.channel("general")}


async def test_typing_is_not_shown_where_the_first_message_comes_at_once(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_TYPING_AFTER", 3600.0)  # on a busy machine "at once" takes longer than that
    bot.engine.add(["half an", asyncio.Event()])
    await bot.platform.say("hi")
    await bot.shows("half an")
    assert bot.platform.typing == []


async def test_a_response_after_three_seconds_is_refused_and_the_question_is_shown_by_a_message(
    bot: DiscordBot,
) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("/callback"):
            bot.platform.seconds_passed += 3.5
        return None

    bot.platform.gate.guard = guard
    await bot.platform.command("ask why?")
    await bot.shows(ASKED, "ok")
    assert bot.platform.attempts[0][0] == "send"
    bot.platform.forget_interactions()


async def test_a_forged_modal_shows_no_message_that_its_user_may_not_read(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    said = await platform.say("the code is 42", mention=False, author="Jo")
    async with run_discord_bot(platform, tmp_path):
        await platform.open_menu(ABOUT, said)
        await platform.until(lambda: bool(platform.modals))
    await platform.disconnect(resumable=False)
    platform.user_permissions &= ~payloads.READ_HISTORY
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.submit({"question": "what is it?"})
        await bot.shows("I cannot read that message any more. Please choose it again.")


@pytest.mark.parametrize("way", ["deleted", "cleared", "cleared elsewhere", "forgotten"])
async def test_a_modal_keeps_no_deleted_text(bot: DiscordBot, way: str) -> None:
    platform = bot.platform
    said = await platform.say("the code is 42", mention=False, author="Jo")
    await platform.open_menu(ABOUT, said)
    await platform.until(lambda: bool(platform.modals))
    del platform.messages[int(said)]
    match way:
        case "deleted":
            where = {"channel_id": str(platform.channel("general")), "guild_id": str(GUILD)}
            platform.send_event("MESSAGE_DELETE", {"id": said, **where})
        case "cleared" | "forgotten":
            await platform.say("clear" if way == "cleared" else "forget me", author="Jo")
        case _:
            await platform.say("clear", channel="random", author="Jo")
    await platform.say("hi")
    await platform.until(lambda: "ok" in bot.shown())
    await platform.submit({"question": "what is it?"})
    if way == "cleared elsewhere":
        await bot.engine.asked(2)
        assert "the code is 42" in bot.engine.requests[1].messages[-1].content
    else:
        await platform.until(lambda: bot.shown()[-1].startswith("I cannot read that message any more."))


async def test_a_question_by_command_is_not_kept_once_it_is_shown_or_deleted(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?")
    await bot.shows(ASKED, "ok")
    bot.platform.is_late = True
    bot.platform.script = lambda number, name: Fault("429", 60.0)
    await bot.platform.command("ask and why not?")
    await bot.engine.asked(2)
    handlers: Any = bot.harness.exchanges.on_deletion["discord"]
    messenger = handlers.__self__._messenger
    assert [each.text for each in messenger._asked.values()] == ["and why not?"]
    bot.platform.is_late = False
    await bot.platform.say("forget me")
    await bot.platform.until(lambda: not messenger._asked)
    bot.platform.script = lambda number, name: None
    await bot.platform.until(lambda: any("Deleted" in each for each in bot.shown()))
