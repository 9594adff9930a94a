"""Several models behind OpenAI's API."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
from pydantic import SecretStr

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import KeySection, ServerSection
from bot.config.schema import Config, EngineSection
from bot.engine.base import Progress
from bot.engine.router import ModelRouter
from bot.errors import EngineBusy, EngineFailed
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.server.conftest import MAX_WAITING

KEY = "a key"
QUESTION: list[Any] = [{"role": "user", "content": "what?"}]


async def test_the_models_of_a_router_are_listed_and_chosen_by_name(access: Access, clock: ManualClock) -> None:
    def open_engine(section: EngineSection, progress: Progress) -> ScriptedEngine:
        return ScriptedEngine(default=f"I am {section.model}")

    sections = {
        "engine": EngineSection(model="big"),
        "small": EngineSection(model="little"),
        "other": EngineSection(model="another"),
    }
    async with ModelRouter(sections, open_engine, clock) as router:
        backend = Backend(router, ChatSettings.of(Config()), access, MAX_WAITING, Metrics(), models=router.statuses)
        async with (
            serve_apis(ServerSection(port=0), backend, clock) as port,
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client,
        ):
            assert [model.id for model in (await client.models.list()).data] == ["scripted", "small", "other"]
            assert (await client.models.retrieve("small")).id == "small"
            for model, said in [("small", "I am little"), ("scripted", "I am big"), ("other", "I am another")]:
                answer = await client.chat.completions.create(model=model, messages=QUESTION)
                assert (answer.model, answer.choices[0].message.content) == (model, said)
            with pytest.raises(openai.NotFoundError, match="'scripted', 'small', 'other'"):
                await client.chat.completions.create(model="third", messages=QUESTION)


@asynccontextmanager
async def failing(access: Access, clock: ManualClock, *models: str) -> AsyncIterator[aiohttp.ClientSession]:
    """The APIs before a model that fails, for a key that may use `models`; its fallback has a small context."""

    def open_engine(section: EngineSection, progress: Progress) -> ScriptedEngine:
        if section.model == "big":
            return ScriptedEngine(default=[EngineFailed("no model server answers")], model="big")
        return ScriptedEngine(default="I am little", model="little", context_length=100)

    sections = {"engine": EngineSection(model="big", fallback="small"), "small": EngineSection(model="little")}
    keys = {"alice": KeySection(secret=SecretStr(KEY), models=models)}
    async with ModelRouter(sections, open_engine, clock) as router:
        backend = Backend(router, ChatSettings.of(Config()), access, MAX_WAITING, Metrics(), models=router.statuses)
        async with (
            serve_apis(ServerSection(port=0, keys=keys), backend, clock) as port,
            aiohttp.ClientSession(
                f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, raise_for_status=True
            ) as http,
        ):
            yield http


async def test_every_api_names_the_fallback_that_answers(access: Access, clock: ManualClock) -> None:
    chat = {"model": "big", "messages": QUESTION}
    polled = {"request_id": "1", "query": "what?"}
    async with failing(access, clock) as http:

        async def ask(path: str, body: object) -> dict[str, Any]:
            async with http.post(path, json=body) as response:
                answer: dict[str, Any] = await response.json()
                return answer

        async def last(path: str, body: object) -> dict[str, Any]:
            async with http.post(path, json=body) as response:
                events = [line for line in (await response.text()).splitlines() if line.startswith("data: {")]
                answer: dict[str, Any] = json.loads(events[-1].removeprefix("data: "))
                return answer

        whole = await ask("/v1/chat/completions", chat)
        assert (whole["model"], whole["choices"][0]["message"]["content"]) == ("small", "I am little")
        assert (await ask("/v1/chat/completions", {**chat, "n": 2}))["model"] == "small"
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        assert (await last("/v1/chat/completions", {**chat, **usage}))["model"] == "small"
        for path in ("/chat", "/"):
            assert (await ask(path, {"prompt": "what?"}))["model"] == "small"
        assert (await last("/chat-stream", {"prompt": "what?"}))["model"] == "small"
        await ask("/chat", polled)
        for _ in range(100):
            state = (await ask("/get_response", polled))["response"]
            if state["is_finished"]:
                break
        assert (state["response"], state["model"]) == ("I am little", "small")


async def test_a_fallback_neither_drops_turns_nor_serves_a_key_of_other_models(
    access: Access, clock: ManualClock
) -> None:
    turns = [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "y" * 60}, *QUESTION]
    question = {"messages": QUESTION, "model": "big"}
    for models, body, status in [
        ((), {"messages": turns}, 400),
        (("big",), question, 500),
        (("big", "small"), question, 200),
    ]:
        async with (
            failing(access, clock, *models) as http,
            http.post("/v1/chat/completions", json=body, raise_for_status=False) as response,
        ):
            assert response.status == status, models
            assert status != 400 or (await response.json())["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat-stream"])
async def test_a_stream_whose_fallback_refuses_too_has_a_status(
    access: Access, clock: ManualClock, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_engine(section: EngineSection, progress: Progress) -> ScriptedEngine:
        error = EngineFailed("no model server answers") if section.model == "big" else EngineBusy(2, 2)
        return ScriptedEngine(default=[error], model=section.model)

    monkeypatch.setattr("bot.server.generation._FIRST_PING_SECONDS", 60.0)
    sections = {"engine": EngineSection(model="big", fallback="small"), "small": EngineSection(model="little")}
    async with ModelRouter(sections, open_engine, clock) as router:
        backend = Backend(router, ChatSettings.of(Config()), access, MAX_WAITING, Metrics(), models=router.statuses)
        async with (
            serve_apis(ServerSection(port=0), backend, clock) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
            http.post(path, json={"messages": QUESTION, "prompt": "what?", "stream": True}) as response,
        ):
            assert (response.status, "Retry-After" in response.headers) == (429, True)
