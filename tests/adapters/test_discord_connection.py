"""Discord sessions, login and outages, with the real library."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from discord.backoff import ExponentialBackoff

from bot.adapters import inspect
from bot.adapters.discord.adapter import open_adapter
from bot.adapters.discord.settings import DiscordSection
from bot.errors import ConfigError, LoginRefused
from tests.harness.discord_harness import FACTOR, DiscordBot, run_discord_bot
from tests.harness.fakes import FastClock
from tests.harness.harness import Harness
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import MESSAGE_CONTENT
from tests.harness.servers.discord_world import APPLICATION, BOT


async def test_a_resumed_session_delivers_missed_events(bot: DiscordBot) -> None:
    await bot.platform.disconnect()
    await bot.platform.say("are you there?")
    await bot.shows("ok")
    assert bot.platform.resumed == 1


def set_library_backoff(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Fix the library's random wait after a failed connection, which grows to 17 minutes."""
    monkeypatch.setattr(ExponentialBackoff, "delay", lambda backoff: seconds)


async def test_a_session_is_resumed_after_a_short_outage(bot: DiscordBot, monkeypatch: pytest.MonkeyPatch) -> None:
    set_library_backoff(monkeypatch, 0.01)
    bot.platform.is_unreachable = True
    await bot.platform.disconnect()
    await bot.platform.say("are you there?")
    await bot.platform.until(lambda: bot.platform.rejected > 3)
    bot.platform.is_unreachable = False
    await bot.shows("ok")
    assert (bot.platform.resumed, len(bot.platform.identified)) == (1, 1)


async def test_a_new_session_begins_after_a_long_outage_despite_the_librarys_backoff(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_library_backoff(monkeypatch, 1000.0)
    platform.cut_off_seconds = 0.1
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("before")
        await bot.shows("ok")
        platform.is_unreachable = True
        await platform.disconnect()
        await platform.say("meanwhile")
        # The library tries once; the later attempts come from new clients.
        await platform.until(lambda: platform.rejected > 2)
        platform.is_unreachable = False
        await bot.shows("ok", "ok")
        assert (platform.resumed, len(platform.identified)) == (0, 2)


async def test_a_session_resumed_in_time_is_kept(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.cut_off_seconds = 10.0
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.disconnect()
        await platform.until(lambda: platform.resumed == 1)
        await platform.say("hi")
        await bot.shows("ok")
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 11.0)
        await platform.say("still the same session?")
        await bot.shows("ok", "ok")
        assert (platform.resumed, len(platform.identified)) == (1, 1)


async def test_a_failed_start_is_retried(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.failures = {"/users/@me": 2, f"/applications/{APPLICATION}/commands": 1}
    platform.silent_closes = 2
    platform.close_codes = [4014, 4013]
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ending", ["/users/@me", "/messages"], ids=["login", "catching up"])
async def test_a_call_without_a_response_is_retried(platform: DiscordPlatform, tmp_path: Path, ending: str) -> None:
    async with run_discord_bot(platform, tmp_path) as bot:
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
    async with run_discord_bot(platform, tmp_path) as bot:
        await bot.shows("ok", "ok")
    assert hanging


async def test_a_rate_limited_start_waits(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.rate_limits = {"/users/@me": 1, f"/applications/{APPLICATION}/commands": 1}
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        await platform.until(lambda: bool(platform.commands))


async def test_a_malformed_frame_starts_a_new_session(bot: DiscordBot) -> None:
    await bot.platform.say("one")
    await bot.shows("ok")
    bot.platform.send_malformed_frame()
    await bot.platform.until(lambda: len(bot.platform.identified) == 2)
    await bot.platform.say("two")
    await bot.shows("ok", "ok")


async def test_all_traffic_uses_the_proxy(platform: DiscordPlatform, tmp_path: Path) -> None:
    elsewhere: dict[str, Any] = {
        "api_url": "http://discord.invalid/api/v10",
        "gateway_url": "ws://discord.invalid/gateway",
    }
    async with run_discord_bot(platform, tmp_path, proxy=platform.url, **elsewhere) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        await platform.command("clear")
        await bot.shows("ok", "Deleted: everything said here (1).")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
async def test_all_traffic_uses_the_proxy_of_the_environment(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, platform.url)
    elsewhere: dict[str, Any] = {
        "api_url": "http://discord.invalid/api/v10",
        "gateway_url": "ws://discord.invalid/gateway",
    }
    async with run_discord_bot(platform, tmp_path, **elsewhere) as bot:
        await platform.say("hi")
        await bot.shows("ok")
        await platform.command("clear")
        await bot.shows("ok", "Deleted: everything said here (1).")


async def test_a_local_api_is_called_directly_beside_a_proxied_gateway(
    platform: DiscordPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", platform.url)
    direct: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        direct.append(request.raw_path)  # a proxy gets the whole URL
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path, gateway_url="ws://discord.invalid/gateway") as bot:
        await platform.say("hi")
        await bot.shows("ok")
    assert [path for path in direct if path.startswith("http")] == []


async def test_a_socks_proxy_is_refused_with_one_sentence(
    platform: DiscordPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    settings = DiscordSection(token=platform.settings().token)
    with pytest.raises(ConfigError, match=r"ALL_PROXY.*adapters\.discord\.proxy"):
        open_adapter(settings, FastClock(FACTOR))
    findings = [finding async for finding in inspect("discord", settings)]
    assert [finding.is_ok for finding in findings] == [False]


async def test_a_rejected_token_ends_the_adapter(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.known_token = "another"
    async with run_discord_bot(platform, tmp_path) as bot:
        with pytest.raises(LoginRefused, match="BOT_DISCORD__TOKEN"):
            await bot.running


async def test_a_start_is_delayed_when_few_sessions_are_left_today(
    platform: DiscordPlatform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    platform.sessions_left = {"total": 1000, "remaining": 2, "reset_after": 60_000, "max_concurrency": 1}
    before = time.monotonic()
    async with run_discord_bot(platform, tmp_path):
        assert time.monotonic() - before >= 30.0 / FACTOR
        assert len(platform.identified) == 1
    assert [each.__dict__["seconds"] for each in caplog.records if "few sessions" in each.message] == [30]


async def test_a_malformed_session_limit_is_ignored(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.sessions_left = None
    async with run_discord_bot(platform, tmp_path):
        assert len(platform.identified) == 1


async def test_a_token_changed_at_run_time_ends_the_adapter(bot: DiscordBot) -> None:
    bot.platform.known_token = "another"
    await bot.platform.disconnect(resumable=False)
    with pytest.raises(LoginRefused):
        await bot.running


@pytest.mark.parametrize(
    "body", [b"{}", b"null", b'{"id": []}', b"<html>", b'{"id": "1", "flags": "many"}', b"[" * 100_000]
)
async def test_mentions_are_answered_while_the_application_is_unknown(
    platform: DiscordPlatform, tmp_path: Path, body: bytes
) -> None:
    is_broken = True

    async def guard(request: web.Request) -> web.Response | None:
        if is_broken and request.path.endswith("/applications/@me"):
            return web.Response(body=body, content_type="application/json")
        return None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi", thread="tea")
        await bot.shows("ok", thread="tea")
        await platform.until(lambda: bool(platform.commands))
        assert platform.identified[0]["intents"] & MESSAGE_CONTENT == 0
        is_broken = False
        await platform.until(lambda: len(platform.identified) == 2 and platform.is_connected)
        assert platform.identified[1]["intents"] & MESSAGE_CONTENT
        await platform.say("without a mention", thread="tea", mention=False)
        await bot.shows("ok", "ok", thread="tea")


async def test_the_application_is_read_again_after_its_rate_limit_only(
    platform: DiscordPlatform, tmp_path: Path
) -> None:
    reads: list[float] = []

    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/applications/@me"):
            return None
        reads.append(time.monotonic() * FACTOR)
        body = {"message": "You are being rate limited.", "retry_after": 30.0, "global": False}
        return web.json_response(body, status=429, headers={"Retry-After": "30"}) if len(reads) == 1 else None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path):
        await platform.until(lambda: bool(platform.identified[-1]["intents"] & MESSAGE_CONTENT and platform.commands))
    assert reads[1] - reads[0] >= 29.0  # the timers of the event loop are not exact


async def test_a_rate_limit_outlives_the_session_that_met_it(platform: DiscordPlatform, tmp_path: Path) -> None:
    registered: list[tuple[float, int]] = []
    is_application_known = False

    async def guard(request: web.Request) -> web.Response | None:
        nonlocal is_application_known
        if request.path.endswith("/applications/@me") and not is_application_known:
            return web.json_response({})
        if not (request.method == "PUT" and request.path.endswith("/commands")):
            return None
        registered.append((time.monotonic() * FACTOR, len(platform.identified)))
        is_application_known = True  # so that the session is replaced by one with the intent
        body = {"message": "You are being rate limited.", "retry_after": 300.0, "global": False}
        return web.json_response(body, status=429, headers={"Retry-After": "300"}) if len(registered) == 1 else None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path):
        await platform.until(lambda: bool(platform.commands))
    (first, session), (second, later_session) = registered
    assert second - first >= 299.0  # the timers of the event loop are not exact
    assert session < later_session


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"{}"), (200, b"null"), (200, b"{"), (500, b""), (403, b'{"code": 50001, "message": "no access"}')],
)
async def test_mentions_are_answered_while_commands_cannot_be_registered(
    platform: DiscordPlatform, tmp_path: Path, status: int, body: bytes
) -> None:
    is_broken = True

    async def guard(request: web.Request) -> web.Response | None:
        if is_broken and request.method == "PUT" and request.path.endswith("/commands"):
            return web.Response(status=status, body=body, content_type="application/json")
        return None

    platform.gate.guard = guard
    with structlog.testing.capture_logs() as logs:
        async with run_discord_bot(platform, tmp_path) as bot:
            await platform.say("hi")
            await bot.shows("ok")
            await platform.until(lambda: any("slash commands not registered" in entry["event"] for entry in logs))
            is_broken = False
            if status != 403:
                await platform.until(lambda: bool(platform.commands))


async def test_a_login_needs_no_more_than_the_bots_id(platform: DiscordPlatform, tmp_path: Path) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/users/@me"):
            return None
        return web.Response(body=b'{"id": "%d"}' % BOT, content_type="application/json")

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")


@pytest.mark.parametrize(
    "body",
    [b"{}", b"null", b'{"url": 5, "session_start_limit": []}', b'{"url": "", "session_start_limit": {"total": {}}}'],
)
async def test_a_garbled_number_of_sessions_does_not_delay_the_connection(
    platform: DiscordPlatform, tmp_path: Path, body: bytes
) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        is_limit = request.path.endswith("/gateway/bot")
        return web.Response(body=body, content_type="application/json") if is_limit else None

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")


async def test_malformed_events_are_skipped(bot: DiscordBot) -> None:
    unreadable: list[object] = [{}, {"id": "x"}, {"author": 5, "content": None}, [], "text", None]
    for broken in unreadable:
        for name in ("MESSAGE_CREATE", "MESSAGE_UPDATE", "MESSAGE_DELETE", "INTERACTION_CREATE", "GUILD_CREATE", "X"):
            bot.platform.send_event(name, broken)
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert len(bot.platform.identified) == 1


async def test_an_adapter_without_a_token_does_not_start(platform: DiscordPlatform, harness: Harness) -> None:
    adapter = open_adapter(DiscordSection(), FastClock(FACTOR))
    with pytest.raises(LoginRefused, match="BOT_DISCORD__TOKEN"):
        await adapter.run(harness.intake)
