"""The calls on the page about HTTP APIs work."""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.config.http import EmbeddingsSection
from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, EngineInfo
from bot.engine.backends.remote import RemoteEngine
from bot.engine.embeddings import Embedder, open_embedder
from bot.util.clock import MonotonicClock
from tests.engine.sentences import make_encoder
from tests.harness.fakes import ScriptedEngine
from tests.project.snippets import snippets

PAGE = "HTTP_APIS.md"
CALLS = [line for block in snippets(PAGE, "sh") for line in block.splitlines()]
(EXAMPLE,) = snippets(PAGE)
BASE = "http://127.0.0.1:8000"


@pytest.fixture
def engine_of_page(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Serve a model with the name that the page uses."""
    info = EngineInfo("demo", "scripted", "none", "none", "none", 512)
    monkeypatch.setattr(ScriptedEngine, "info", property(lambda self: info))
    return engine


@pytest.fixture
async def embedder(tmp_path: Path) -> AsyncIterator[Embedder | None]:
    make_encoder(tmp_path)
    async with open_embedder(EmbeddingsSection(model=str(tmp_path))) as embedder:
        yield embedder


def test_the_chinese_page_has_the_same_calls_and_settings() -> None:
    for language in ("sh", "toml", "console"):
        assert snippets(f"zh/{PAGE}", language) == snippets(PAGE, language)


@pytest.mark.usefixtures("engine_of_page")
async def test_every_call_on_the_page_is_answered(http: aiohttp.ClientSession) -> None:
    assert len(CALLS) == 12
    for line in CALLS:
        words = shlex.split(line)
        options = {option: value for option, value in pairwise(words) if option in {"-X", "-d"}}
        path = next(word for word in words if word.startswith(BASE)).removeprefix(BASE)
        method = options.get("-X", "POST" if "-d" in options else "GET")
        async with http.request(method, path, data=options.get("-d")) as response:
            body = await response.text()
        assert response.status == 200, line
        answer = json.loads(body) if not response.content_type.startswith("text/event-stream") else {}
        assert answer.get("code", 0) == 0, line
        while (
            "response" in answer and not isinstance(answer["response"], str) and not answer["response"]["is_finished"]
        ):
            async with http.request(method, path, data=options.get("-d")) as response:
                answer = await response.json()


@pytest.mark.usefixtures("engine_of_page")
async def test_the_python_example_prints_the_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = EXAMPLE.replace(BASE, url)
    await asyncio.to_thread(exec, compile(code, PAGE, "exec"), {})
    assert capsys.readouterr().out == "It is 天气。\n"


async def test_the_server_is_a_model_server_for_another_bot(url: str) -> None:
    section = EngineSection(backend="remote", urls=(f"{url}/v1",))
    async with RemoteEngine(section, MonotonicClock()) as remote:
        assert (remote.info.model, remote.info.context_length) == ("scripted", 512)
        events: list[Any] = [event async for event in remote.generate(ChatRequest((ChatMessage("user", "what?"),)))]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "It is 天气。"


def test_the_page_names_every_path() -> None:
    paths = {
        "/",
        "/chat",
        "/get_response",
        "/chat-stream",
        "/tokenize",
        "/embedding",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    }
    assert {re.search(rf"{BASE}(\S+)", line)[1] for line in CALLS} == paths  # type: ignore[index]
