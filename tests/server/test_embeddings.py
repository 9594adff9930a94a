"""Embeddings over HTTP: the GLM API's and OpenAI's, by its own client."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest

from bot.chat.access import Access
from bot.config.http import EmbeddingsSection, ServerSection
from bot.config.schema import AccessSection, LimitsSection
from bot.engine.embeddings.encoder import load_encoder
from bot.engine.embeddings.queue import QueuedEmbedder
from bot.observability.metrics import PREFIX
from bot.server.generation import Backend
from tests.engine.sentences import make_encoder
from tests.engine.test_embeddings import Gate, alone
from tests.harness.fakes import ManualClock
from tests.harness.harness import set_paused

TEXTS = ["cat dog", "今天天气很好", "a"]
PATHS = ["/embedding", "/v1/embeddings"]
BODY = {"prompt": "cat", "input": "cat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings") / "tiny-bert"
    make_encoder(folder)
    return folder


@pytest.fixture
async def embedder(folder: Path) -> AsyncIterator[QueuedEmbedder]:
    async with QueuedEmbedder(lambda: load_encoder(EmbeddingsSection(model=str(folder)))) as embedder:
        yield embedder


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def post(http: aiohttp.ClientSession, path: str, body: object) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


def units(folder: Path) -> np.ndarray[Any, Any]:
    wanted = np.stack([alone(folder, text, 128) for text in TEXTS])
    unit: np.ndarray[Any, Any] = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    return unit


async def test_the_client_gets_unit_vectors_in_the_order_of_its_texts(client: openai.AsyncOpenAI, folder: Path) -> None:
    found = await client.embeddings.create(model="tiny-bert", input=TEXTS)
    np.testing.assert_allclose([each.embedding for each in found.data], units(folder), atol=1e-5)
    assert [each.index for each in found.data] == [0, 1, 2]
    assert (found.model, found.object) == ("tiny-bert", "list")
    # [CLS] and [SEP] of each, and one token per word, character or letter.
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (4 + 8 + 3, 15)


async def test_both_encodings_are_the_same_numbers(http: aiohttp.ClientSession) -> None:
    _, floats = await post(http, "/v1/embeddings", {"input": TEXTS, "encoding_format": "float"})
    _, packed = await post(http, "/v1/embeddings", {"input": TEXTS, "encoding_format": "base64", "dimensions": 32})
    for one, other in zip(floats["data"], packed["data"], strict=True):
        assert list(struct.unpack("<32f", base64.b64decode(other["embedding"]))) == one["embedding"]
    assert {**floats, "data": None} == {**packed, "data": None}
    status, single = await post(http, "/v1/embeddings", {"input": TEXTS[0]})
    assert (status, len(single["data"])) == (200, 1)
    np.testing.assert_allclose(single["data"][0]["embedding"], floats["data"][0]["embedding"], atol=1e-6)


async def test_the_glm_api_returns_means_as_they_are(http: aiohttp.ClientSession, folder: Path) -> None:
    wanted = np.stack([alone(folder, text, 128) for text in TEXTS])
    status, found = await post(http, "/embedding", {"prompt": TEXTS})
    assert status == 200
    np.testing.assert_allclose(found.pop("data"), wanted, atol=1e-5)
    assert found == {"model": "tiny-bert", "object": "embedding"}
    _, flat = await post(http, "/embedding", {"prompt": TEXTS[1]})
    np.testing.assert_allclose(flat["data"], wanted[1], atol=1e-5)
    bodies: list[dict[str, Any]] = [{"prompt": []}, {"prompt": None}, {}]
    for body in bodies:
        assert await post(http, "/embedding", body) == (200, {"data": [], **found})


async def test_the_embedding_model_is_found_but_not_listed_among_chat_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["scripted"]
    assert (await client.models.retrieve("tiny-bert")).object == "model"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": 5}, "input"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": ["a", None]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 16}, "dimensions"),
        ({"dimensions": "x"}, "dimensions"),
    ],
)
async def test_a_mistake_is_named(http: aiohttp.ClientSession, change: dict[str, Any], param: str) -> None:
    status, found = await post(http, "/v1/embeddings", {"input": "a", **change})
    assert (status, found["error"]["type"], found["error"]["param"]) == (400, "invalid_request_error", param)
    if param == "input" and param in change:
        status, found = await post(http, "/embedding", {"prompt": change["input"]})
        # Without a prompt, or with empty ones, this API answers too.
        is_empty = not change["input"] or change["input"] == ["a", ""]
        assert (status, "error" in found) == ((200, False) if is_empty else (400, True))


async def test_another_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny-bert' is") as caught:
        await client.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"


async def test_token_ids_are_refused_with_the_way_out(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        await client.embeddings.create(model="tiny-bert", input=[[9906, 1917]])


@pytest.mark.parametrize("path", PATHS)
async def test_a_paused_bot_refuses(http: aiohttp.ClientSession, access: Access, path: str) -> None:
    set_paused(access)
    status, found = await post(http, path, BODY)
    assert status == 503
    assert "paused" in str(found["error"])


class TestLimits:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(requests_per_minute=3, tokens_per_hour=6, waiting_per_user=0)

    @pytest.mark.parametrize("path", PATHS)
    async def test_requests_and_tokens_count_as_those_of_chat_do(
        self, http: aiohttp.ClientSession, backend: Backend, clock: ManualClock, path: str
    ) -> None:
        assert (await post(http, path, {"prompt": ["a", 5], "input": ["a", 5]}))[0] == 400
        body = {"prompt": ["cat"], "input": ["cat"]}
        for _ in range(2):
            assert (await post(http, path, body))[0] == 200
        async with http.post(path, json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "3600")
            assert "limit per hour" in await response.text()
        async with http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}) as chat:
            assert chat.status == 429
        clock.jump(3600)
        assert (await post(http, path, body))[0] == 200
        counted = [
            backend.metrics.registry.get_sample_value(f"{PREFIX}_embedded_{what}_total") for what in ("texts", "tokens")
        ]
        assert counted == [3, 9]


class TestKeys:
    @pytest.fixture
    def settings(self) -> ServerSection:
        keys = {"alice": {"secret": "secret", "models": "tiny-bert"}, "bob": {"secret": "other", "models": "scripted"}}
        return ServerSection.model_validate({"port": 0, "keys": keys})

    @pytest.mark.parametrize("path", PATHS)
    async def test_one_is_needed_and_must_allow_the_model(self, http: aiohttp.ClientSession, path: str) -> None:
        assert (await post(http, path, BODY))[0] == 401
        async with http.post(path, json=BODY, headers={"Authorization": "Bearer secret"}) as response:
            assert response.status == 200
        async with http.post(path, json=BODY, headers={"Authorization": "Bearer other"}) as response:
            assert response.status == 403
            assert "may not use the model 'tiny-bert'" in await response.text()


class TestWithoutAModel:
    @pytest.fixture
    def embedder(self) -> None:
        return None

    @pytest.mark.parametrize("body", [BODY, {}])
    async def test_each_api_says_so_in_its_own_form(self, http: aiohttp.ClientSession, body: object) -> None:
        sentence = "this server has no embedding model: its operator can name one in [embeddings]"
        assert await post(http, "/embedding", body) == (501, {"error": sentence, "status": 501})
        status, found = await post(http, "/v1/embeddings", body)
        assert (status, found) == (
            501,
            {"error": {"message": sentence, "type": "server_error", "param": None, "code": None}},
        )

    async def test_the_client_does_not_try_again(self, url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=5) as client:
            with pytest.raises(openai.InternalServerError, match="no embedding model") as caught:
                await client.embeddings.create(model="any", input="a")
        assert "x-stainless-retry-count" in caught.value.request.headers
        assert caught.value.request.headers["x-stainless-retry-count"] == "0"


class TestQueue:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(requests_per_minute=0, tokens_per_hour=0, waiting_per_user=0)

    @pytest.fixture
    def gate(self, folder: Path) -> Gate:
        return Gate(folder)

    @pytest.fixture
    async def embedder(self, gate: Gate) -> AsyncIterator[QueuedEmbedder]:
        async with QueuedEmbedder(lambda: gate, max_waiting=1) as embedder:
            yield embedder

    async def test_a_call_in_progress_is_an_open_request(
        self, http: aiohttp.ClientSession, gate: Gate, backend: Backend
    ) -> None:
        backend.access.reconfigure(AccessSection(), LimitsSection(waiting_per_user=1))
        first = asyncio.ensure_future(post(http, "/embedding", BODY))
        assert await asyncio.to_thread(gate.has_begun.acquire, timeout=600)
        status, found = await post(http, "/v1/embeddings", BODY)
        assert (status, found["error"]["code"]) == (429, "rate_limit_exceeded")
        gate.go_on.release()
        assert (await first)[0] == 200

    @pytest.mark.parametrize("path", PATHS)
    async def test_a_full_one_is_a_429_and_a_client_that_leaves_frees_its_place(
        self, http: aiohttp.ClientSession, gate: Gate, path: str
    ) -> None:
        leaving = [asyncio.ensure_future(http.post(path, json=BODY)) for _ in range(2)]
        assert await asyncio.to_thread(gate.has_begun.acquire, timeout=600)
        while True:  # until the second waits too
            async with http.post(path, json=BODY, timeout=aiohttp.ClientTimeout(600)) as response:
                if response.status == 429:
                    assert int(response.headers["Retry-After"]) >= 1
                    break
        for call in leaving:
            call.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        gate.go_on.release(10)
        status = 429
        while status == 429:  # until the server has noticed
            status, _ = await post(http, path, BODY)
        assert status == 200
        # The batch that was running, perhaps the next one's, and this one.
        assert len(gate.batches) <= 3
