"""Responses of any length: none is read without end, and a long one is parsed beside the event loop."""

import gzip
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr
from telegram.error import TelegramError

from bot.adapters.discord.http import call_timeout, configure_library, rest_client
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.client import web_api
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.client import map_errors, open_bot
from bot.adapters.telegram.settings import TelegramSection
from bot.errors import PlatformUnavailable
from tests.harness.fakes import ManualClock
from tests.harness.servers import discord_gateway, telegram

# What each platform says of the bot, in one object.
ITSELF: dict[str, Any] = {
    "ok": True,
    "result": {"id": 7, "is_bot": True, "first_name": "Bot", "username": "bot"},
    "id": "7",
    "username": "bot",
    "discriminator": "0",
    "avatar": None,
}
JSON = {"Content-Type": "application/json"}
MOST, LONG = 2**20, 2**18
Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def discord_call(url: str) -> AsyncIterator[Call]:
    section = DiscordSection(token=SecretStr(discord_gateway.TOKEN), api_url=url)
    configure_library(section)
    async with rest_client(section, ManualClock()) as client:

        async def ask() -> None:
            async with call_timeout(60.0, client):
                await client.http.static_login(discord_gateway.TOKEN)

        yield ask


@asynccontextmanager
async def telegram_call(url: str) -> AsyncIterator[Call]:
    bot = await open_bot(TelegramSection(token=SecretStr(telegram.TOKEN), api_url=url, call_seconds=60.0))
    with suppress(TelegramError):
        await bot.initialize()  # without, shutdown closes nothing

    async def ask() -> None:
        with map_errors():
            await bot.get_me()

    try:
        yield ask
    finally:
        await bot.shutdown()


@asynccontextmanager
async def slack_call(url: str) -> AsyncIterator[Call]:
    async with web_api(
        SlackSection(bot_token=SecretStr("xoxb-1"), app_token=SecretStr("xapp-1"), api_url=f"{url}/")
    ) as api:
        yield partial(api.auth_test)


PLATFORMS = {"discord": discord_call, "telegram": telegram_call, "slack": slack_call}


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(params=PLATFORMS)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setattr("bot.adapters.response.MOST_BYTES", MOST)
    return PLATFORMS[request.param]


async def test_a_long_response_is_parsed_beside_the_event_loop(
    opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    loads = json.loads

    def recorded(text: str | bytes, **options: Any) -> Any:
        if len(text) >= LONG:
            threads.append(threading.get_ident())
        return loads(text, **options)

    async def padded(request: web.Request) -> web.Response:
        return web.Response(body=b" " * LONG + json.dumps(ITSELF).encode(), headers=JSON)

    monkeypatch.setattr(json, "loads", recorded)
    async with answering(padded) as url, opened(url) as ask:
        await ask()
    assert threads, "it was read"
    assert threading.get_ident() not in threads


async def test_a_response_without_end_is_not_read_to_its_end(opened: Callable[[str], Any]) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=JSON)
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b" " * 2**16)
        return response

    async with answering(endless) as url, opened(url) as ask:
        with pytest.raises(PlatformUnavailable, match="too long"):
            await ask()


async def test_what_a_response_unpacks_to_counts(opened: Callable[[str], Any]) -> None:
    packed = gzip.compress(b" " * (4 * MOST) + json.dumps(ITSELF).encode())

    async def compressed(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={**JSON, "Content-Encoding": "gzip"})

    assert len(packed) < LONG
    async with answering(compressed) as url, opened(url) as ask:
        with pytest.raises(PlatformUnavailable, match="too long"):
            await ask()


async def test_a_compressed_response_is_read(opened: Callable[[str], Any]) -> None:
    async def compressed(request: web.Request) -> web.Response:
        response = web.Response(body=json.dumps(ITSELF).encode(), headers=JSON)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with answering(compressed) as url, opened(url) as ask:
        await ask()


async def test_certificates_are_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    load = ssl.SSLContext.load_verify_locations

    def recorded(context: ssl.SSLContext, *args: Any, **options: Any) -> None:
        threads.append(threading.get_ident())
        load(context, *args, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", recorded)
    async with telegram_call("https://127.0.0.1:9"):
        pass
    assert len(threads) == 1, "both clients share them"
    assert threading.get_ident() not in threads
