"""Chat platforms and HTTP clients share one queue, its fairness, limits and pause."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import Config, LimitsSection
from bot.domain import Author, ChannelKey, ChatRequest, Finished, ReplyEvent
from bot.server.generation import Backend
from bot.storage.sql import SqlStore
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import set_paused
from tests.harness.messages import a_message

MANY = 8


@pytest.fixture
def served() -> list[str]:
    """Return the users in the order in which they are answered."""
    return []


@pytest.fixture
async def engine(served: list[str]) -> AsyncIterator[ScriptedEngine]:
    def answer(request: ChatRequest) -> str:
        served.append(request.user)
        return "ok"

    async with ScriptedEngine(default=answer, max_batch_size=1) as engine:
        yield engine


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection(requests_per_minute=0, waiting_per_user=0)


@pytest.fixture
async def intake(engine: ScriptedEngine, access: Access, tmp_path: Path) -> AsyncIterator[Intake]:
    async with SqlStore(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}") as store:
        yield Intake(access, engine, store, ChatSettings.of(Config()))


async def ask_in_chat(intake: Intake, user: str) -> list[ReplyEvent]:
    channel, author = ChannelKey("discord", f"channel of {user}"), Author("discord", user, user)
    exchange = await intake.accept(a_message("what?", channel=channel, author=author))
    assert exchange is not None
    async with intake.answers.stream(exchange) as stream:
        return [event async for event in stream]


async def ask_over_http(http: aiohttp.ClientSession) -> int:
    async with http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "what?"}]}) as response:
        return response.status


async def test_a_client_with_many_requests_does_not_delay_a_chat(
    http: aiohttp.ClientSession, intake: Intake, engine: ScriptedEngine, backend: Backend, served: list[str]
) -> None:
    engine.go_on.clear()
    calls = [asyncio.ensure_future(ask_over_http(http)) for _ in range(MANY)]
    await engine.asked(MANY)
    chat = asyncio.ensure_future(ask_in_chat(intake, "mei"))
    await engine.asked(MANY + 1)
    engine.go_on.set()
    assert isinstance((await chat)[-1], Finished)
    assert [await call for call in calls] == [200] * MANY
    assert served.index("discord:mei") <= 2, "after one that runs, and one whose turn it is"


async def test_chats_do_not_delay_a_client(
    http: aiohttp.ClientSession, intake: Intake, engine: ScriptedEngine, served: list[str]
) -> None:
    engine.go_on.clear()
    chats = [asyncio.ensure_future(ask_in_chat(intake, "mei")) for _ in range(1)]
    await engine.asked(1)
    calls = [asyncio.ensure_future(ask_over_http(http)) for _ in range(MANY)]
    await engine.asked(1 + MANY)
    chats += [asyncio.ensure_future(ask_in_chat(intake, name)) for name in ("ana", "bo", "cy")]
    await engine.asked(4 + MANY)
    engine.go_on.set()
    await asyncio.gather(*chats, *calls)
    # Four users take turns: each has an answer before the client has its third.
    third = [index for index, user in enumerate(served) if user.startswith("api:")][2]
    assert {user for user in served[:third] if user.startswith("discord:")} == {
        "discord:mei",
        "discord:ana",
        "discord:bo",
        "discord:cy",
    }


async def test_a_pause_holds_for_both(http: aiohttp.ClientSession, intake: Intake, access: Access) -> None:
    set_paused(access)
    assert await ask_over_http(http) == 503
    assert "paused" in str(await ask_in_chat(intake, "mei"))
    set_paused(access, is_paused=False)
    assert await ask_over_http(http) == 200
