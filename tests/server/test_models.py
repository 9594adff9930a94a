"""Several models behind OpenAI's API."""

from typing import Any

import openai
import pytest

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import ServerSection
from bot.config.schema import Config, EngineSection
from bot.engine.base import Progress
from bot.engine.router import ModelRouter
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.server.conftest import MAX_WAITING

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
