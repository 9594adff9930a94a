"""Rate-limited calls are retried after the wait and not before."""

from contextlib import AbstractAsyncContextManager, nullcontext

import pytest
from aiohttp import web

from bot.adapters.slack.client import web_api
from bot.errors import RateLimited
from tests.harness.fakes import FastClock, ManualClock, ScriptedEngine
from tests.harness.platform_bench import open_bench
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.fault_gate import Guard
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.telegram import TelegramPlatform


def refusing_once(ending: str, answer: web.Response, heard: list[str]) -> Guard:
    """Refuse the first call of a path that ends so; `heard` are all of them."""

    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith(ending):
            return None
        heard.append(request.path)
        return answer if len(heard) == 1 else None

    return guard


async def test_a_rate_limited_slack_method_is_not_called_before_its_time() -> None:
    clock, heard = ManualClock(), list[str]()
    refusal = web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "5"})
    async with SlackServer() as server, web_api(server.settings(), clock) as api:
        mei, ann = server.workspace.user("Mei"), server.workspace.user("Ann")
        server.gate.guard = refusing_once("/users.info", refusal, heard)

        with pytest.raises(RateLimited):
            await api.users_info(user=mei)
        with pytest.raises(RateLimited, match="5 s"):
            await api.users_info(user=ann)
        assert len(heard) == 1

        clock.jump(5)
        assert (await api.users_info(user=ann))["ok"]


async def test_a_rate_limited_channel_delays_only_its_own_messages_on_slack() -> None:
    clock, heard = ManualClock(), list[str]()
    refusal = web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "5"})
    async with SlackServer() as server, web_api(server.settings(), clock) as api:
        busy, quiet = server.workspace.channel("busy"), server.workspace.channel("quiet")
        server.gate.guard = refusing_once("/chat.postMessage", refusal, heard)

        for _ in range(2):
            with pytest.raises(RateLimited):
                await api.chat_postMessage(channel=busy, text="hello", unfurl_links=False, unfurl_media=False)
        assert (await api.chat_postMessage(channel=quiet, text="hello", unfurl_links=False, unfurl_media=False))["ok"]
        assert len(heard) == 2


async def test_discord_commands_are_registered_after_the_rate_limit() -> None:
    heard = list[str]()
    refusal = web.json_response(
        {"message": "You are being rate limited.", "retry_after": 1.5, "global": False},
        status=429,
        headers={"Retry-After": "1.5"},
    )

    def around(platform: DiscordPlatform) -> AbstractAsyncContextManager[None]:
        platform.gate.guard = refusing_once("/commands", refusal, heard)
        return nullcontext()

    async with open_bench("discord", ScriptedEngine(), FastClock(), around=around) as bench:
        platform = bench.platform
        assert isinstance(platform, DiscordPlatform)
        await platform.until(lambda: bool(platform.commands))

    assert len(heard) == 2


async def test_telegram_commands_are_registered_after_the_rate_limit() -> None:
    heard = list[str]()
    refusal = web.json_response(
        {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 1}},
        status=429,
    )

    def around(platform: TelegramPlatform) -> AbstractAsyncContextManager[None]:
        platform.gate.guard = refusing_once("/setMyCommands", refusal, heard)
        return nullcontext()

    async with open_bench("telegram", ScriptedEngine(), FastClock(), around=around) as bench:
        platform = bench.platform
        assert isinstance(platform, TelegramPlatform)
        await platform.until(lambda: set(platform.menus) == {"", "zh"})

    assert len(heard) == 3
