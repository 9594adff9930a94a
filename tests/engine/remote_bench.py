"""A remote engine on loopback model servers, for tests."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, SamplingParams
from bot.engine.backends.remote import RemoteEngine
from bot.util.clock import Clock
from tests.harness.fakes import FastClock
from tests.harness.servers.model_server import STOPPED, ModelServer, event

DONE = b"data: [DONE]\n\n"
END = event(STOPPED)
QUESTION = ChatRequest((ChatMessage("user", "why?"),), SamplingParams(seed=5, max_tokens=9, stop=("END",)))


@asynccontextmanager
async def remote(*servers: ModelServer, clock: Clock | None = None, **options: Any) -> AsyncIterator[RemoteEngine]:
    section = EngineSection(backend="remote", urls=tuple(each.url for each in servers), **options)
    async with RemoteEngine(section, clock or FastClock()) as engine:
        yield engine


async def ask(engine: RemoteEngine, request: ChatRequest = QUESTION) -> list[EngineEvent]:
    async with aclosing(engine.generate(request)) as events:
        return [event async for event in events]


async def text_of(engine: RemoteEngine, request: ChatRequest = QUESTION) -> str:
    return "".join(event.text for event in await ask(engine, request) if isinstance(event, Delta))
