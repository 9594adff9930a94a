"""A server with all APIs on loopback, before a scripted engine."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import ServerSection
from bot.config.schema import AccessSection, Config, LimitsSection
from bot.engine.embeddings import Embedder
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine

MAX_WAITING = 2


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(
        default=["It ", "is ", "天气。"], max_batch_size=1, max_waiting=MAX_WAITING, context_length=512
    )
    async with engine:
        yield engine
        assert (engine.load.running, engine.load.waiting) == (0, 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection(waiting_per_user=0)


@pytest.fixture
def access(clock: ManualClock, limits: LimitsSection) -> Access:
    return Access(AccessSection(), limits, clock)


@pytest.fixture
def settings() -> ServerSection:
    return ServerSection(port=0)


@pytest.fixture
def embedder() -> Embedder | None:
    return None


@pytest.fixture
def backend(engine: ScriptedEngine, access: Access, embedder: Embedder | None) -> Backend:
    return Backend(engine, ChatSettings.of(Config()), access, MAX_WAITING, Metrics(), embedder)


@pytest.fixture
async def url(backend: Backend, clock: ManualClock, settings: ServerSection) -> AsyncIterator[str]:
    async with serve_apis(settings, backend, clock) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session
