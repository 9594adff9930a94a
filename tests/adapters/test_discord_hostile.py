"""Hostile events and answers: none of them costs another message."""

import copy
import random
from typing import Any

import pytest
from aiohttp import web

from tests.harness.discord_harness import DiscordBot
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_world import APPLICATION, BOT, GUILD

EVENTS = 80
GARBAGE: list[Any] = [
    None,
    True,
    -1,
    1e300,
    10**400,
    "",
    "\x9b31m\x07",
    "\ud800",
    "9" * 5000,
    "<@0>" * 500,
    [],
    [None],
    [[]],
    {},
    {"id": {}},
    {"id": "1", "username": []},
]


def events(bot: DiscordBot) -> dict[str, Any]:
    """Well-formed events of each kind."""
    mei, channel = bot.platform.person("Mei"), bot.platform.channel("general")
    where = {"channel_id": str(channel), "guild_id": str(GUILD)}
    message = {
        **payloads.message(177777777777777777, channel, mei, f"<@{BOT}> hi", mentions=[bot.platform.bot]),
        **where,
        "member": payloads.member([]),
        "embeds": [{"type": "rich", "title": "t", "fields": [{"name": "a", "value": "b", "inline": True}]}],
        "message_reference": {"type": 0, "message_id": "5", "channel_id": str(channel)},
        "referenced_message": payloads.message(5, channel, mei, "before"),
    }
    who = {"member": {**payloads.member([]), "user": mei}}
    use = {"channel": {"id": str(channel), "type": 0}, "message": message, **where, **who}
    data = {"custom_id": "retry", "component_type": 2, "name": "clear"}
    return {
        "MESSAGE_CREATE": message,
        "MESSAGE_UPDATE": {**message, "edited_timestamp": payloads.now()},
        "MESSAGE_DELETE": {"id": "5", **where},
        "MESSAGE_DELETE_BULK": {"ids": ["5"], **where},
        "INTERACTION_CREATE": payloads.interaction(6, APPLICATION, 3, "token-6", data, **use),
        "GUILD_CREATE": bot.platform._guild(),
        "CHANNEL_CREATE": bot.platform._channel(channel),
        "THREAD_CREATE": payloads.thread(7, GUILD, channel, "tea", BOT, None),
    }


def mutate(value: Any, chosen: random.Random) -> Any:
    """Replace, drop or add one field somewhere in a value."""
    if isinstance(value, dict) and value and chosen.random() < 0.85:
        name = chosen.choice(sorted(value))
        if chosen.random() < 0.3:
            return {key: each for key, each in value.items() if key != name}
        return {**value, name: mutate(value[name], chosen)}
    if isinstance(value, list) and value and chosen.random() < 0.7:
        return [mutate(value[0], chosen), *value[1:]]
    return copy.deepcopy(chosen.choice(GARBAGE))


@pytest.mark.parametrize("seed", range(12))
async def test_mutated_events_cost_no_other_message(bot: DiscordBot, seed: int) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return web.Response(status=204) if request.path.endswith("/callback") else None

    bot.platform.gate.guard = guard
    chosen = random.Random(seed)
    valid = events(bot)
    for number in range(EVENTS):
        name = chosen.choice(sorted(valid))
        event = valid[name]
        if "id" in event:
            event = {**event, "id": str(int(event["id"]) + number * 1000)}
        for _ in range(chosen.randint(1, 3)):
            event = mutate(event, chosen)
        bot.platform.send_as_it_is(name, event)
    await bot.platform.say("still there?", direct=True)
    await bot.platform.until(lambda: bot.shown("Mei")[-1:] == ["ok"])
    assert len(bot.platform.identified) == 1
    bot.platform.violations.clear()  # calls for ids that the events made up


@pytest.mark.parametrize("body", [b"{}", b"null", b'{"type": 11}', b'{"type": [], "id": 5}', b"[" * 100_000, b"\xff"])
async def test_a_channel_that_cannot_be_read_holds_no_other_message(bot: DiscordBot, body: bytes) -> None:
    thread = bot.platform.thread("general", "first")  # known to the bot
    bot.platform.hides_threads = True

    async def guard(request: web.Request) -> web.Response | None:
        is_channel = request.method == "GET" and request.path.split("/")[-2] == "channels"
        return web.Response(body=body, content_type="application/json") if is_channel else None

    bot.platform.gate.guard = guard
    await bot.platform.say("in a hidden thread", thread="hidden")
    await bot.platform.say("beside it")
    await bot.shows("ok")
    await bot.shows("ok", thread="hidden")
    assert thread != bot.platform.thread("general", "hidden")


async def test_control_characters_of_names_reach_no_prompt(bot: DiscordBot) -> None:
    mei = {**bot.platform.person("Mei"), "global_name": "Mei\x9b2J\x00\n\u202e"}
    message = payloads.message(
        bot.platform._new_id(), bot.platform.channel("general"), mei, f"<@{BOT}> hi", mentions=[bot.platform.bot]
    )
    bot.platform.send_event("MESSAGE_CREATE", message)
    await bot.platform.until(lambda: bool(bot.engine.requests))
    asked = bot.engine.requests[0].messages[-1].content
    assert not {"\x9b", "\x00", "\n"} & set(asked)
