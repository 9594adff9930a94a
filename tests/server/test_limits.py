"""[limits] hold for clients of the APIs: a key, or an address, is a user."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import openai
import pytest

from bot.config.schema import LimitsSection
from bot.domain import ChatMessage, Thought
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import set_paused

LONG = "long " * 4000
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "what?"}]}


async def ask(http: aiohttp.ClientSession, **more: Any) -> tuple[int, Any, Any]:
    async with http.post("/v1/chat/completions", json={**ASK, **more}) as response:
        body = await response.read()
        error = json.loads(body)["error"] if response.status != 200 else None
        return response.status, error, response.headers.get("Retry-After")


class TestRequests:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(requests_per_minute=2)

    async def test_too_many_are_refused_in_the_form_of_each_api_until_the_minute_is_over(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, clock: ManualClock
    ) -> None:
        assert (await ask(http))[0] == 200
        clock.jump(20)
        assert (await ask(http, stream=True))[0] == 200
        clock.jump(10.5)
        for stream in (False, True):
            status, error, wait = await ask(http, stream=stream)
            assert (status, error["type"], error["code"], wait) == (429, "requests", "rate_limit_exceeded", "30")
        for path in ("/", "/chat", "/chat-stream"):
            async with http.post(path, json={"prompt": "a"}) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "30")
                assert (await response.json())["status"] == 429
        async with http.post("/chat", json={"request_id": "1", "query": "a"}) as response:
            assert (response.status, (await response.json())["code"]) == (200, 100)
        async with http.get("/v1/models") as response:
            assert response.status == 200
        assert len(engine.requests) == 2
        clock.jump(29.5)
        assert (await ask(http))[0] == 200

    async def test_a_request_that_cannot_be_answered_does_not_count(self, http: aiohttp.ClientSession) -> None:
        for _ in range(3):
            assert (await ask(http, messages=[{"role": "user", "content": "x" * 600}]))[0] == 400
        assert (await ask(http))[0] == 200


class TestTokens:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(tokens_per_hour=20)

    async def test_prompts_and_answers_count(self, http: aiohttp.ClientSession, clock: ManualClock) -> None:
        assert (await ask(http))[0] == 200
        assert (await ask(http))[0] == 200  # 28 tokens
        status, error, wait = await ask(http)
        assert (status, "limit per hour" in error["message"], wait) == (429, True, "3600")
        clock.jump(3600)
        assert (await ask(http))[0] == 200

    async def test_the_client_does_not_wait_for_an_hour(self, url: str, http: aiohttp.ClientSession) -> None:
        assert (await ask(http))[0] == 200
        assert (await ask(http))[0] == 200
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=5) as client:
            with pytest.raises(openai.RateLimitError, match="limit per hour") as caught:
                await client.chat.completions.create(model="scripted", messages=ASK["messages"])
        assert caught.value.request.headers["x-stainless-retry-count"] == "0"

    async def test_an_answer_that_is_cut_off_counts_as_far_as_it_came(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine
    ) -> None:
        engine.add([*"1234567890abcdef", asyncio.Event()])
        async with http.post("/v1/chat/completions", json={**ASK, "stream": True}) as response:
            async for line in response.content:
                if b'"f"' in line:
                    break
            response.close()
        await engine.left(1)
        while (await ask(http, n=1))[0] != 429:
            assert len(engine.requests) == 1, "21 tokens are spent"

    async def test_reasoning_counts_though_the_client_left_before_the_text(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine
    ) -> None:
        engine.add([*map(Thought, "1234567890abcdef"), asyncio.Event()])
        async with http.post("/v1/chat/completions", json={**ASK, "stream": True}) as response:  # after a second
            response.close()
        await engine.left(1)
        while (await ask(http, n=1))[0] != 429:
            assert len(engine.requests) == 1, "21 tokens are spent"


class TestWaiting:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(waiting_per_user=2, requests_per_minute=0)

    async def test_a_third_open_request_is_refused_whenever_it_comes(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, backend: Backend
    ) -> None:
        engine.go_on.clear()
        asking = [asyncio.ensure_future(ask(http, stream=number % 2 == 0)) for number in range(20)]
        refused = 0
        while refused < 18:
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            asking = [each for each in asking if each not in done]
            for each in done:
                status, error, wait = each.result()
                assert (status, error["code"], wait) == (429, "rate_limit_exceeded", "5")
                refused += 1
        assert len(engine.requests) == 2
        engine.go_on.set()
        assert [(await each)[0] for each in asking] == [200, 200]
        assert (await ask(http))[0] == 200

    async def test_polled_answers_are_open_until_they_end(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine
    ) -> None:
        engine.go_on.clear()
        codes = []
        for number in (1, 2, 3):
            async with http.post("/chat", json={"request_id": number, "query": "a"}) as response:
                codes.append((await response.json())["code"])
        assert codes == [0, 0, 100]
        assert (await ask(http))[0] == 429
        engine.go_on.set()
        while (await ask(http))[0] == 429:
            pass

    async def test_a_client_that_leaves_makes_room(self, http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
        engine.go_on.clear()
        asking = [asyncio.ensure_future(ask(http)) for _ in range(2)]
        await engine.asked(2)
        for each in asking:
            each.cancel()
        await engine.left(2)
        engine.go_on.set()
        while (await ask(http))[0] == 429:
            pass


class TestLongAnswers:
    """`answer_seconds` ends an answer, whether or not a client reads it."""

    @pytest.fixture
    def backend(self, backend: Backend) -> Backend:
        backend.settings.answer_seconds = 0.2
        return backend

    @pytest.fixture(autouse=True)
    def endless(self, engine: ScriptedEngine) -> None:
        """Let each answer stop for ever after its first word."""
        for _ in range(3):
            engine.add(["so ", "far", asyncio.Event()])

    @pytest.mark.parametrize("choices", [1, 3])
    async def test_it_is_cut_off_with_length(self, http: aiohttp.ClientSession, choices: int) -> None:
        async with http.post("/v1/chat/completions", json={**ASK, "n": choices}) as response:
            answers = (await response.json())["choices"]
        assert [(each["message"]["content"], each["finish_reason"]) for each in answers] == [
            ("so far", "length")
        ] * choices

    @pytest.mark.parametrize("choices", [1, 3])
    async def test_a_stream_too(self, http: aiohttp.ClientSession, choices: int) -> None:
        async with http.post("/v1/chat/completions", json={**ASK, "n": choices, "stream": True}) as response:
            text = await response.text()
        assert text.count('"finish_reason": "length"') == choices
        assert text.endswith("data: [DONE]\n\n")

    async def test_a_polled_answer_frees_its_place(self, http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
        async with http.post("/chat", json={"request_id": "1", "query": "a"}) as response:
            assert (await response.json())["code"] == 0
        await engine.left(1)
        async with http.post("/get_response", json={"request_id": "1"}) as response:
            answer = (await response.json())["response"]
        assert (answer["is_finished"], answer["response"]) == (True, "so far")

    async def test_waiting_does_not_count(self, http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
        engine.go_on.clear()
        asking = asyncio.create_task(ask(http))
        await engine.asked(1)
        await asyncio.sleep(0.3)
        assert not asking.done()
        engine.go_on.set()
        assert (await asking)[0] == 200


class TestSeveralAnswers:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_full_queue_ends_those_that_were_admitted(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, stream: bool
    ) -> None:
        engine.go_on.clear()
        assert (await ask(http, n=8, stream=stream))[0] == 429
        assert (engine.load.running, engine.load.waiting) == (0, 0)
        assert len(engine.closed) == len(engine.requests) > 0


class TestTokenizing:
    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(requests_per_minute=1)

    async def test_it_counts_as_a_request_and_ends_with_a_pause(
        self, http: aiohttp.ClientSession, backend: Backend
    ) -> None:
        statuses = []
        for _ in range(2):
            async with http.post("/tokenize", json={"prompt": "a"}) as response:
                statuses.append(response.status)
        assert statuses == [200, 429]
        set_paused(backend.access)
        async with http.post("/tokenize", json={"prompt": "a"}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "60")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/", {"prompt": LONG}),
            ("/chat", {"prompt": LONG}),
            ("/chat", {"request_id": "1", "query": LONG}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
        ],
    )
    async def test_a_long_prompt_counts_even_if_it_is_refused(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, backend: Backend, path: str, body: dict[str, Any]
    ) -> None:
        counted = []
        count = engine.count_tokens

        def count_tokens(messages: Sequence[ChatMessage]) -> int:
            counted.append(len(messages))
            return count(messages)

        engine.count_tokens = count_tokens  # type: ignore[method-assign]
        for _ in range(2):
            async with http.post(path, json=body) as response:
                await response.read()
        assert counted == [1], "the second request is refused before its tokens are counted"
        assert backend._open == {}, "both were released"
