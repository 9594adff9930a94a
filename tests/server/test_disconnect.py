"""A client that goes away frees its slot of the own engine before the model's next step."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.schema import Config
from bot.engine.serving.engine import ServingEngine
from bot.observability.metrics import Metrics
from bot.server.generation import Backend
from tests.harness.scripted_model import FOREVER, Gate, ScriptedModel, serving
from tests.server.conftest import MAX_WAITING

PATHS = ["/v1/chat/completions", "/v1/completions", "/", "/chat", "/chat-stream"]
ASK = {"messages": [{"role": "user", "content": FOREVER}], "prompt": FOREVER, "max_tokens": 30, "max_length": 60}


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(slots=1)


@pytest.fixture
async def serving_engine(model: ScriptedModel) -> AsyncIterator[ServingEngine]:
    async with serving(model) as engine:
        yield engine


@pytest.fixture
def backend(serving_engine: ServingEngine, access: Access) -> Backend:
    return Backend(serving_engine, ChatSettings.of(Config()), access, MAX_WAITING, Metrics())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_the_next_step_is_without_it(
    http: aiohttp.ClientSession, serving_engine: ServingEngine, model: ScriptedModel, path: str, stream: bool
) -> None:
    gate = Gate()
    model.before = gate
    asking = asyncio.ensure_future(http.post(path, json={**ASK, "stream": stream}))
    await gate.arrival()
    for _ in range(3):
        await gate.step()
    steps = len(model.steps)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    if not asking.cancelled():
        asking.result().close()
    # The model is still in the step in which the client went away.
    while serving_engine.load.running:
        async with http.get("/v1/models") as response:
            assert response.status == 200
    gate.open()
    async with http.post("/", json={"prompt": "next"}) as response:
        assert (await response.json())["response"] == "next"
    assert len(model.steps) == steps + 5, "the five tokens of the next answer, and no more of the first"
