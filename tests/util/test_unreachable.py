"""Why a server cannot be reached: the same sentences for each platform's library."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from bot.adapters import inspect
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.slack.settings import SlackSection
from bot.adapters.telegram.settings import TelegramSection
from bot.config.schema import AdapterSection
from tests.harness.ports import reserved_port

TELEGRAM, DISCORD = "123456789:" + "A" * 35, "MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcdE.abcdefghijklmnopqrstuvwxyz01"


def settings(name: str, url: str, seconds: float) -> AdapterSection:
    match name:
        case "telegram":
            return TelegramSection(token=SecretStr(TELEGRAM), api_url=url, call_seconds=seconds)
        case "discord":
            return DiscordSection(token=SecretStr(DISCORD), api_url=f"{url}/api/v10", call_seconds=seconds)
        case _:
            tokens = {"bot_token": SecretStr("xoxb-1-1-abc"), "app_token": SecretStr("xapp-1-A0-1-abc")}
            return SlackSection(**tokens, api_url=f"{url}/api/")  # type: ignore[arg-type]


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def said(name: str, url: str, seconds: float = 600.0) -> str:
    (finding,) = [finding async for finding in inspect(name, settings(name, url, seconds))]
    assert not finding.is_ok
    return finding.text


@pytest.mark.parametrize("name", ["telegram", "discord", "slack"])
async def test_the_reason_is_a_sentence(name: str) -> None:
    with reserved_port() as closed:
        refused = await said(name, f"http://127.0.0.1:{closed}")
    assert refused.endswith("cannot be reached: the connection was refused")
    unknown = await said(name, "http://no-such-host.invalid")
    assert unknown.endswith("its name cannot be resolved; is there a network, or a proxy to set?")
    if name == "slack":
        return  # its limit is no setting
    async with silent_server() as port:
        assert (await said(name, f"http://127.0.0.1:{port}", seconds=0.5)).endswith("there was no answer in time")
