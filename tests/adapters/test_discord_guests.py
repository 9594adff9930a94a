"""The bot on Discord in places where it is no member, installed by one of the people there."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from bot.adapters.discord.ask import ABOUT
from bot.config.schema import AccessSection
from bot.domain import Action, IncomingMessage, Status
from bot.errors import StoreError
from tests.harness.discord_guests import PLACE, answered, ended, statuses
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.platform import Fault
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_users import Guest
from tests.harness.servers.discord_world import EPHEMERAL

every_place = pytest.mark.parametrize("guest", ["server", "chat"])


@every_place
async def test_the_answer_is_the_response(bot: DiscordBot, guest: Guest) -> None:
    await bot.platform.command("ask why?", channel=PLACE, guest=guest)
    await answered(bot, "ok")
    (shown,) = bot.platform.seen(PLACE)
    message = bot.platform.messages[int(shown.id)]
    assert [each["description"] for each in message["embeds"]] == ["why?"]
    assert not message["flags"] & EPHEMERAL
    assert shown.actions == {Action.RETRY}
    assert not any("/channels/" in call for call in bot.platform.calls)


async def test_the_answer_grows_in_the_response(bot: DiscordBot) -> None:
    bot.engine.go_on.clear()
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.shows("…", channel=PLACE)
    await bot.platform.until(lambda: bot.platform.seen(PLACE)[0].actions == {Action.STOP})
    bot.engine.go_on.set()
    await answered(bot, "ok")


async def test_conversations_of_places_never_mix(bot: DiscordBot) -> None:
    await bot.platform.say("said to a member")
    await bot.shows("ok")
    for place, texts in (("one", ["ok"]), ("two", ["ok"]), ("one", ["ok", "ok"])):
        await bot.platform.command(f"ask asked in {place}", channel=place, guest="chat")
        await answered(bot, *texts, place=place)
    said = [[each.content.rpartition(": ")[2] for each in request.messages] for request in bot.engine.requests]
    assert said[1:] == [["asked in one"], ["asked in two"], ["asked in one", "ok", "asked in one"]]


async def test_a_long_answer_goes_on_in_further_messages(bot: DiscordBot) -> None:
    bot.engine.add("word " * 1500)
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: any(each.actions == {Action.RETRY} for each in bot.platform.seen(PLACE)))
    await ended(bot)
    assert " ".join(bot.shown(PLACE)).split() == ["word"] * 1500
    assert len(bot.shown(PLACE)) == 4


async def test_an_answer_for_which_discord_has_no_room_ends_with_a_sentence(bot: DiscordBot) -> None:
    bot.engine.add("word " * 3000)
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: len(bot.shown(PLACE)) == 6)
    await ended(bot)
    *texts, last = bot.shown(PLACE)
    assert len(texts) == 5
    assert last.startswith("word word")
    assert last.endswith("The rest does not fit here. For the whole answer, ask me in a direct message.")
    assert await statuses(bot) == [Status.DELIVERED]


@every_place
async def test_commands_are_for_the_place_where_they_are_used(bot: DiscordBot, guest: Guest) -> None:
    await bot.platform.command("ask why?", channel=PLACE, guest=guest)
    await answered(bot, "ok")
    await bot.platform.command("clear", channel=PLACE, guest=guest)
    await answered(bot, "ok", "Deleted: everything said here (1).")
    await bot.platform.command("settings temperature 0.5", channel=PLACE, guest=guest)
    await bot.platform.until(lambda: "Only admins" in bot.shown(PLACE)[-1])


async def test_a_message_is_asked_about(bot: DiscordBot) -> None:
    await bot.platform.open_menu(ABOUT, "tea is green", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: bool(bot.platform.modals))
    await bot.platform.submit({"question": "is it?"})
    await answered(bot, "ok")
    assert "tea is green" in bot.engine.requests[0].messages[-1].content


async def test_a_message_cannot_be_asked_about_after_a_restart(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path):
        await platform.open_menu(ABOUT, "tea is green", channel=PLACE, guest="chat")
        await platform.until(lambda: bool(platform.modals))
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.submit({"question": "is it?"})
        await bot.shows("I cannot read that message any more. Please choose it again.", channel=PLACE)


async def test_what_was_said_before_is_not_read_there(bot: DiscordBot) -> None:
    settings = bot.harness.settings
    settings.conversation = settings.conversation.model_copy(update={"context_messages": 5})
    await bot.platform.command("ask why?", channel=PLACE, guest="server")
    await answered(bot, "ok")


async def test_a_channel_of_the_server_where_the_bot_may_not_write_is_a_guest_place(bot: DiscordBot) -> None:
    bot.platform.permissions_here = 1 << 10
    await bot.platform.command("ask why?")
    await bot.shows("ok")
    assert not any("/channels/" in call and call.startswith("POST") for call in bot.platform.calls)


def denying(platform: DiscordPlatform, what: str) -> AccessSection:
    place = platform.guest_place(PLACE, in_server=True)
    match what:
        case "user":
            return AccessSection(deny_users=(f"discord:{platform.person('Mei')['id']}",))
        case "channel":
            return AccessSection(deny_channels=(f"discord:{place}",))
        case "server":
            return AccessSection(deny_servers=(f"discord:{platform.guest_places[place]['guild_id']}",))
        case "another server is allowed":
            return AccessSection(allow_servers=("discord:1",))
        case "another user is allowed":
            return AccessSection(allow_users=("discord:1",))
        case _:
            return AccessSection(allow_roles=("discord:1",))


@pytest.mark.parametrize(
    "what", ["user", "channel", "server", "another server is allowed", "another user is allowed", "role"]
)
async def test_the_lists_of_access_apply(platform: DiscordPlatform, tmp_path: Path, what: str) -> None:
    async with run_discord_bot(platform, tmp_path, access=denying(platform, what)) as bot:
        await platform.command("ask why?", channel=PLACE, guest="server")
        await bot.shows("I do not answer here.", channel=PLACE)
        assert bot.engine.requests == []


async def test_a_restart_goes_on_in_the_response(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(["half an", asyncio.Event()])
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await bot.shows("half an", channel=PLACE)
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await answered(bot, "ok")


async def test_the_token_is_in_no_file_as_it_is(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await answered(bot, "ok")
    (token,) = platform.tokens
    files = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    assert files
    assert not any(token.encode() in content for content in files)


async def test_an_interaction_that_came_too_late_is_counted_as_failed(bot: DiscordBot) -> None:
    bot.platform.is_late = True
    with structlog.testing.capture_logs() as logs:
        await bot.platform.command("ask why?", channel=PLACE, guest="chat")
        await bot.platform.until(lambda: any(each["event"] == "reply given up" for each in logs))
    await ended(bot)
    assert (await statuses(bot), bot.shown(PLACE)) == ([Status.FAILED], [])


async def test_a_token_that_expired_before_a_restart_is_counted_as_failed(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.go_on.clear()
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await bot.engine.asked(1)
    platform.seconds_passed += 1000
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await ended(bot)
        assert await statuses(bot) == [Status.FAILED]
        # The next question is not in the way of one that cannot be shown.
        await platform.command("ask and now?", channel=PLACE, guest="chat")
        await platform.until(lambda: bot.shown(PLACE)[-1] == "ok")


async def test_an_answer_that_takes_longer_than_its_token_ends_with_a_sentence(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.adapters.discord.deadlines._SECONDS", 5.0)
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(["half an", asyncio.Event()])
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await platform.until(lambda: len(bot.shown(PLACE)) == 2)
        await platform.until(lambda: bot.shown(PLACE)[0].endswith("(stopped)"))
        assert "15 minutes" in bot.shown(PLACE)[1]
        await ended(bot)
        assert await statuses(bot) == [Status.DELIVERED]


async def test_a_response_whose_confirmation_was_lost_is_answered_once(bot: DiscordBot) -> None:
    bot.platform.garbled_callbacks = 1
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "ok")


async def test_every_fourth_call_refused_leaves_one_answer(bot: DiscordBot) -> None:
    kinds: Any = ("429", "500", "lost")
    bot.platform.script = lambda number, name: Fault(kinds[number // 4 % 3], 2.0) if number % 4 == 3 else None
    bot.engine.add("word " * 700)
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: bool(bot.shown(PLACE)))
    await ended(bot)
    shown = [each for each in bot.shown(PLACE) if each != "…"]  # one whose id was lost stays
    assert " ".join(shown).split() == ["word"] * 700


async def test_an_interaction_that_is_delivered_again_is_answered_once(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "ok")
    bot.platform.repeat_press()
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "ok", "ok")
    assert len(bot.engine.requests) == 2


async def test_a_new_session_reads_no_guest_places(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.command("ask why?", channel=PLACE, guest="server")
        await answered(bot, "ok")
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")  # the server knows each call for a guest place as a violation


async def test_a_response_after_three_seconds_is_counted_as_failed(bot: DiscordBot) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("/callback"):
            bot.platform.seconds_passed += 3.5
        return None

    bot.platform.gate.guard = guard
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: bot.platform.calls[-1].endswith("/@original"))
    await ended(bot)
    assert (await statuses(bot), bot.shown(PLACE), bot.engine.requests) == ([Status.FAILED], [], [])
    bot.platform.forget_interactions()


@pytest.mark.parametrize("omitted", ["context", "channel", "app_permissions", "authorizing_integration_owners"])
async def test_an_interaction_with_fewer_fields_is_answered(bot: DiscordBot, omitted: str) -> None:
    bot.platform.omitted = frozenset({omitted})
    await bot.platform.command("ask why?", channel=PLACE, guest="server")
    await answered(bot, "ok")


async def test_a_restored_database_shows_no_second_answer(platform: DiscordPlatform, tmp_path: Path) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.go_on.clear()
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await bot.engine.asked(1)
        copy = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
        bot.engine.go_on.set()
        await answered(bot, "ok")
    for name, content in copy.items():
        (tmp_path / name).write_bytes(content)
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.engine.asked(1)
        await answered(bot, "ok")


async def test_a_place_keeps_its_own_conversation_once_the_bot_is_a_member(bot: DiscordBot) -> None:
    bot.platform.permissions_here = 1 << 10  # to see the channel, not to write there
    await bot.platform.command("ask why?")
    await bot.shows("ok")
    bot.platform.permissions_here = 1 << 10 | 1 << 11
    await bot.platform.command("ask and?")
    await bot.shows("ok", "> 💬 **Mei**\n> and?", "ok")
    assert len(bot.engine.requests[-1].messages) == 1


async def test_what_one_person_alone_sees_is_a_conversation_of_that_person(bot: DiscordBot) -> None:
    bot.platform.allows_external_apps = False
    for number, author in enumerate(["Mei", "Jo", "Mei"], 1):
        await bot.platform.command(f"ask by {author}", author=author, channel=PLACE, guest="server")
        await bot.shows(*["ok"] * number, channel=PLACE)
    said = [[each.content.rpartition(": ")[2] for each in request.messages] for request in bot.engine.requests]
    assert said == [["by Mei"], ["by Jo"], ["by Mei", "ok", "by Mei"]]
    assert all(bot.platform.messages[int(each.id)]["flags"] & EPHEMERAL for each in bot.platform.seen(PLACE))


async def test_a_question_that_cannot_be_stored_is_not_called_queued(
    bot: DiscordBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    async def fail(message: IncomingMessage) -> None:
        attempts.append(message.id)
        raise StoreError("the disk is full")

    monkeypatch.setattr(bot.harness.intake, "accept", fail)
    with structlog.testing.capture_logs() as logs:
        await bot.platform.command("ask why?", channel=PLACE, guest="chat")
        await bot.platform.until(lambda: any(each["event"] == "question not stored" for each in logs))
    assert len(attempts) == 2
    assert not any("yet" in each["event"] or "queue" in each["event"] for each in logs)
    bot.platform.forget_interactions()
