"""Buttons and /retry on Discord in places where the bot is no member."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from bot.domain import Action, Status
from tests.harness.discord_guests import PLACE, answered, ended, statuses
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_world import EPHEMERAL


async def test_the_answer_is_given_again_by_its_button_after_its_token_has_expired(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "first")
    bot.platform.seconds_passed += 1000
    await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.RETRY)
    await answered(bot, "second")


@pytest.mark.parametrize("age", [0, 1000])
@pytest.mark.parametrize("words", [1, 700])
async def test_the_command_shows_another_answer_in_its_own_response(bot: DiscordBot, age: int, words: int) -> None:
    bot.engine.add("first " * words, "second")
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await ended(bot, asked=1)
    old = [] if age == 0 else bot.shown(PLACE)  # after the time of their token they cannot be deleted
    bot.platform.seconds_passed += age
    await bot.platform.command("retry", channel=PLACE, guest="chat")
    await answered(bot, *old, "second")
    shown = bot.platform.messages[int(bot.platform.seen(PLACE)[-1].id)]
    assert [each["description"] for each in shown["embeds"]] == ["why?"]
    assert await statuses(bot) == [Status.DELIVERED, Status.DELIVERED]  # of the question and the command


@pytest.mark.parametrize("age", [0, 1000])
async def test_the_button_below_a_long_answer_gives_another_one(bot: DiscordBot, age: int) -> None:
    bot.engine.add("first " * 700, "second")
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await ended(bot, asked=1)
    *others, last = bot.platform.seen(PLACE)
    bot.platform.seconds_passed += age
    await bot.platform.press(last.id, Action.RETRY)
    await answered(bot, *[each.markdown for each in others if age], "second")
    assert await statuses(bot) == [Status.DELIVERED]


async def test_a_long_answer_is_given_again_by_the_button_with_the_token_of_the_press(bot: DiscordBot) -> None:
    bot.engine.add("first", "second " * 900)
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "first")
    bot.platform.seconds_passed += 1000
    await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.RETRY)
    await ended(bot, asked=2)
    assert " ".join(bot.shown(PLACE)).split() == ["second"] * 900


async def test_a_button_works_once_the_bot_has_become_a_member(bot: DiscordBot) -> None:
    bot.engine.add("first", "second")
    bot.platform.permissions_here = 1 << 10  # to see the channel, not to write there
    await bot.platform.command("ask why?")
    await bot.platform.until(lambda: [each.actions for each in bot.platform.seen()] == [{Action.RETRY}])
    bot.platform.permissions_here = 1 << 10 | 1 << 11
    bot.platform.seconds_passed += 1000
    await bot.platform.press(bot.platform.seen()[0].id, Action.RETRY)
    await bot.shows("second")


@pytest.mark.parametrize("way", ["button", "command"])
async def test_a_restart_goes_on_with_another_answer(platform: DiscordPlatform, tmp_path: Path, way: str) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add("first", ["half a", asyncio.Event()])
        await platform.command("ask why?", channel=PLACE, guest="chat")
        await answered(bot, "first")
        platform.seconds_passed += 800
        if way == "button":
            await platform.press(platform.seen(PLACE)[0].id, Action.RETRY)
        else:
            await platform.command("retry", channel=PLACE, guest="chat")
        await bot.shows("half a", channel=PLACE)
    platform.seconds_passed += 800
    await platform.disconnect(resumable=False)
    async with run_discord_bot(platform, tmp_path) as bot:
        await answered(bot, "ok")


async def test_an_answer_goes_on_in_its_message_after_a_refused_press(bot: DiscordBot) -> None:
    go_on = asyncio.Event()
    bot.engine.add(["half", go_on, " whole"])
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.shows("half", channel=PLACE)
    await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.STOP, author="Jo")
    await bot.platform.until(lambda: len(bot.shown(PLACE)) == 2)
    go_on.set()
    await answered(bot, "half whole", "Only the person who asked, and admins, may do that.")


async def test_a_stopped_answer_does_not_wait_for_the_response_to_the_press(bot: DiscordBot) -> None:
    bot.engine.add(["half", asyncio.Event()])
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.shows("half", channel=PLACE)
    may_respond = asyncio.Event()

    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("/callback"):
            await may_respond.wait()
        return None

    bot.platform.gate.guard = guard
    await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.STOP)
    await answered(bot, "half\n\n(stopped)")
    may_respond.set()
    await bot.platform.until(lambda: bot.platform.unanswered == 0)
    assert await statuses(bot) == [Status.DELIVERED]


async def test_a_question_has_one_deadline_however_often_it_is_answered(bot: DiscordBot) -> None:
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await ended(bot, asked=1)
    for count in (2, 3):
        await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.RETRY, author="Jo")
        await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.RETRY)
        await ended(bot, asked=count)
    tasks = [each for each in asyncio.all_tasks() if "Deadlines" in str(each.get_coro())]
    assert len(tasks) == 1
    assert "why?" not in str([each.get_stack()[0].f_locals for each in tasks])


async def test_the_answer_is_stopped_by_its_button(bot: DiscordBot) -> None:
    bot.engine.go_on.clear()
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: bool(bot.shown(PLACE)) and bool(bot.platform.seen(PLACE)[0].actions))
    await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.STOP)
    await answered(bot, "(stopped)")


@pytest.mark.parametrize("action", [Action.STOP, Action.RETRY])
async def test_buttons_are_for_the_asker(bot: DiscordBot, action: Action) -> None:
    if action is Action.STOP:
        bot.engine.go_on.clear()
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: any(action in each.actions for each in bot.platform.seen(PLACE)))
    before = bot.platform.seen(PLACE)[0]
    await bot.platform.press(before.id, action, author="Jo")
    await bot.platform.until(lambda: len(bot.shown(PLACE)) == 2)
    assert bot.shown(PLACE)[1] == "Only the person who asked, and admins, may do that."
    assert bot.platform.messages[int(bot.platform.seen(PLACE)[1].id)]["flags"] & EPHEMERAL
    assert bot.platform.seen(PLACE)[0] == before


async def test_a_button_under_what_is_no_reply_changes_nothing(bot: DiscordBot) -> None:
    await bot.platform.command("help", channel=PLACE, guest="chat")
    await bot.platform.until(lambda: "/clear" in "".join(bot.shown(PLACE)))
    message = {**bot.platform.messages[int(bot.platform.seen(PLACE)[0].id)], "id": "5"}
    where = bot.platform.guest_place(PLACE, in_server=False)
    bot.platform.interact_in(where, 3, {"custom_id": "retry", "component_type": 2}, "Mei", message=message)
    await bot.platform.until(lambda: bot.platform.unanswered == 0)


@pytest.mark.parametrize("way", ["button", "command"])
async def test_an_answer_goes_on_in_its_message_if_the_newer_interaction_is_not_answered(
    bot: DiscordBot, way: str
) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return web.Response(status=500) if request.path.endswith("/callback") else None

    bot.engine.add("first", "second")
    await bot.platform.command("ask why?", channel=PLACE, guest="chat")
    await answered(bot, "first")
    bot.platform.gate.guard = guard
    if way == "button":
        await bot.platform.press(bot.platform.seen(PLACE)[0].id, Action.RETRY)
    else:
        await bot.platform.command("retry", channel=PLACE, guest="chat")
    await answered(bot, "second")
    bot.platform.forget_interactions()
