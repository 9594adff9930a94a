"""Discord API calls: rate limits, errors, inspection."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import discord
import pytest

from bot.adapters import inspect
from bot.adapters.discord.errors import map_errors
from bot.adapters.discord.http import configure_library, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.domain import Action, ChannelKey
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MessageGone,
    PlatformUnavailable,
    RateLimited,
)
from tests.harness.discord_harness import FACTOR, DiscordBot, run_discord_bot
from tests.harness.fakes import FastClock
from tests.harness.platform import Fault
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.discord_world import GUILD


@pytest.mark.parametrize("kind", ["429", "500", "timeout", "lost"])
async def test_every_word_arrives_once_although_every_second_call_fails(
    platform: DiscordPlatform, tmp_path: Path, kind: Literal["429", "500", "timeout", "lost"]
) -> None:
    platform.script = lambda number, name: Fault(kind, seconds=3.0) if number % 2 == 0 else None
    words = ["".join(f"word{number}.{each} " for each in range(40)) for number in range(20)]
    platform.call_seconds = 0.3 if kind == "timeout" else platform.call_seconds
    async with run_discord_bot(platform, tmp_path) as bot:
        bot.engine.add(list(words))
        await platform.say("go on")
        await platform.until(lambda: "".join(bot.shown()).count("word") == 800)
        await platform.until(lambda: platform.seen()[-1].actions == {Action.RETRY})
        assert "".join("".join(bot.shown()).split()) == "".join("".join(words).split())


async def test_a_global_rate_limit_pauses_every_channel(bot: DiscordBot) -> None:
    bot.platform.is_rate_limit_global = True
    bot.platform.script = lambda number, name: Fault("429", seconds=20.0) if number == 0 else None
    await bot.platform.say("one")
    await bot.platform.until(lambda: bot.platform.writes > 0)
    await bot.platform.say("two", channel="random")
    await bot.shows("ok")
    await bot.shows("ok", channel="random")


@pytest.mark.parametrize("after", ["10", "Fri, 20 Nov 2026 12:00:10 GMT"])
async def test_a_rate_limit_without_a_body_pauses_every_channel(bot: DiscordBot, after: str) -> None:
    bot.platform.bare_retry_after = after
    bot.platform.script = lambda number, name: Fault("429", seconds=10.0) if number == 0 else None
    await bot.platform.say("one")
    await bot.platform.until(lambda: bot.platform.writes > 0)
    await bot.platform.say("two", channel="random")
    await bot.shows("ok")
    await bot.shows("ok", channel="random")


async def test_an_answer_waits_for_a_permission_that_comes_back(bot: DiscordBot) -> None:
    general = bot.platform.channel("general")
    bot.platform.forbidden.add(general)
    await bot.platform.say("hi")
    await bot.platform.say("hello", direct=True)
    await bot.shows("ok", channel="Mei")
    assert bot.shown() == []
    bot.platform.forbidden.remove(general)
    await bot.shows("ok")


async def test_a_permission_taken_in_the_middle_of_an_answer_is_waited_for(bot: DiscordBot) -> None:
    general, go_on = bot.platform.channel("general"), asyncio.Event()
    bot.engine.add(["The Nile", go_on, " is 6,650 km long"])
    await bot.platform.say("how long is the Nile?")
    await bot.shows("The Nile")
    bot.platform.forbidden.add(general)
    go_on.set()
    await bot.platform.say("hello", direct=True)
    await bot.shows("ok", channel="Mei")
    assert bot.shown() == ["The Nile"]
    bot.platform.forbidden.remove(general)
    await bot.shows("The Nile is 6,650 km long")


async def test_eighty_mentions_at_once_are_all_answered(bot: DiscordBot) -> None:
    def has_answered(count: int) -> bool:
        return len([each for each in bot.platform.messages.values() if each["content"] == "ok"]) >= count

    channels = [f"channel {number}" for number in range(20)]
    for number in range(80):
        await bot.platform.say(f"question {number}", channel=channels[number % 20])
    for count in range(1, 81):  # each answer has its own timeout: together they take long on a loaded machine
        await bot.platform.until(partial(has_answered, count))
    assert all(bot.shown(channel) == ["ok"] * 4 for channel in channels)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, 50001, AccessDenied),
        (403, 50007, AccessDenied),
        (403, 50013, AccessDenied),
        (404, 10003, ChannelGone),
        (404, 10004, ChannelGone),
        (400, 50083, ChannelGone),
        (400, 160005, AccessDenied),
        (404, 10008, MessageGone),
        (401, 50027, MessageGone),
        (404, 10062, MessageGone),
        (400, 30046, RateLimited),
        (403, 20016, RateLimited),
        (400, 200000, ContentRefused),
        (400, 200001, ContentRefused),
        (400, 240000, ContentRefused),
        (403, 20009, ContentRefused),
        (400, 50035, ContentRefused),
        (403, 50005, EditRefused),
        (403, 0, PlatformUnavailable),
        (403, 40333, PlatformUnavailable),
        (404, 0, PlatformUnavailable),
        (401, 0, PlatformUnavailable),
        (401, 50014, PlatformUnavailable),
    ],
)
async def test_http_errors_are_mapped(status: int, code: int, expected: type[Exception]) -> None:
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
async def test_library_errors_are_mapped(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected), map_errors():
        raise error


async def test_without_a_connection_a_send_fails_as_unavailable() -> None:
    messenger = DiscordMessenger(1.2, 10.0)
    channel, text = ChannelKey("discord", "1"), messenger.format.render("hi")
    with pytest.raises(PlatformUnavailable):
        await messenger.send(channel, text, reply_to=None, controls=frozenset(), nonce="1.0.0")


async def test_a_call_cancelled_at_any_point_does_not_block_later_calls(platform: DiscordPlatform) -> None:
    settings = platform.settings()
    configure_library(settings)
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


async def test_an_inspection_reports_missing_permissions(platform: DiscordPlatform) -> None:
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


async def test_an_inspection_causes_no_library_warnings(
    platform: DiscordPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    assert all([finding.is_ok async for finding in inspect("discord", platform.settings())])
    assert caplog.messages == []


async def test_an_inspection_reports_how_to_invite_the_bot(platform: DiscordPlatform) -> None:
    platform.is_in_no_server = True
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert [finding.is_ok for finding in findings] == [True, True, False]
    assert "scope=bot" in findings[2].text
    platform.failures = {"/users/@me/guilds": 1}
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert findings[2].text == "Discord answered 500"


async def test_an_inspection_with_a_rejected_token_names_the_setting(platform: DiscordPlatform) -> None:
    platform.known_token = "another"
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert [finding.is_ok for finding in findings] == [False]
    assert "BOT_DISCORD__TOKEN" in findings[0].text


async def test_the_inspection_says_that_users_can_install_the_bot(platform: DiscordPlatform) -> None:
    platform.application = {"integration_types_config": {"0": {}, "1": {}}}
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert all(finding.is_ok for finding in findings)
    assert any(finding.text.startswith("users can install the bot for themselves") for finding in findings)


async def test_the_inspection_misses_no_server_where_users_can_install_the_bot(platform: DiscordPlatform) -> None:
    platform.application = {"integration_types_config": {"1": {}}}
    platform.is_in_no_server = True
    findings = [finding async for finding in inspect("discord", platform.settings())]
    assert all(finding.is_ok for finding in findings)
    assert "invite it" in findings[-1].text
