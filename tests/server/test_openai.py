"""OpenAI's API, called by its own client and by hand."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import ServerSection
from bot.config.schema import Config
from bot.domain import ChatMessage, Finished, FinishReason, Usage
from bot.errors import EngineBusy, EngineFailed, PicturesRefused
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import set_paused
from tests.harness.platform import TIMEOUT
from tests.server.conftest import MAX_WAITING

QUESTION: list[Any] = [{"role": "user", "content": "what?"}]
BODY = {"model": "scripted", "messages": QUESTION}


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_the_client_gets_an_answer_with_its_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="scripted", messages=QUESTION)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is 天气。", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 9, 14)


async def test_the_client_streams_the_same_answer(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="scripted", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It is 天气。"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 14
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_synchronous_client_works_too(url: str) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            return client.chat.completions.create(model="scripted", messages=QUESTION).choices[0].message.content

    assert await asyncio.to_thread(ask) == "It is 天气。"


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["scripted"]
    assert (await client.models.retrieve("scripted")).object == "model"
    with pytest.raises(openai.NotFoundError, match="THUDM/chatglm-6b"):
        await client.models.retrieve("THUDM/chatglm-6b")


class TestNames:
    @pytest.fixture
    async def engine(self) -> AsyncIterator[ScriptedEngine]:
        async with ScriptedEngine(model="THUDM/chatglm-6b") as engine:
            yield engine

    @pytest.fixture
    def backend(self, backend: Backend) -> Backend:
        return replace(backend, aliases=("gpt-3.5-turbo", "gpt-4"))

    async def test_a_model_with_a_slash_and_its_aliases_are_found_and_used(self, client: openai.AsyncOpenAI) -> None:
        names = ["THUDM/chatglm-6b", "gpt-3.5-turbo", "gpt-4"]
        assert [model.id for model in (await client.models.list()).data] == names
        for name in names:
            assert (await client.models.retrieve(name)).id == name
            answer = await client.chat.completions.create(model=name, messages=QUESTION)
            assert (answer.model, answer.choices[0].message.content) == (name, "ok")
        with pytest.raises(openai.NotFoundError, match="'gpt-4'"):
            await client.chat.completions.create(model="gpt-5", messages=QUESTION)


async def test_the_speakers_name_is_before_the_text_of_a_user(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    await client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "system", "content": "Be brief.", "name": "rules"},
            {"role": "user", "content": "Hi.", "name": "Mei"},
            {"role": "assistant", "content": "Hello.", "name": "bot"},
            {"role": "user", "content": [{"type": "text", "text": "Me too."}], "name": "Ana"},
        ],
    )
    assert [message.content for message in engine.requests[0].messages] == [
        "Be brief.",
        "Mei: Hi.",
        "Hello.",
        "Ana: Me too.",
    ]


async def test_a_model_that_would_repeat_names_gets_none(
    access: Access, clock: ManualClock, settings: ServerSection
) -> None:
    async with ScriptedEngine(reads_names=False) as engine:
        backend = Backend(engine, ChatSettings.of(Config()), access, MAX_WAITING, Metrics())
        async with (
            serve_apis(settings, backend, clock) as port,
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any") as client,
        ):
            message: Any = {**QUESTION[0], "name": "Mei"}
            await client.chat.completions.create(model="scripted", messages=[message])
    assert engine.requests[0].messages == (ChatMessage("user", "what?"),)


async def test_parameters_reach_the_engine(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    await client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        temperature=0.5,
        top_p=0.9,
        max_tokens=3,
        max_completion_tokens=7,
        stop="END",
        seed=5,
        extra_body={"top_k": 3, "unknown": [1]},
    )
    request = engine.requests[0]
    assert request.messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "a\nb"),
        ChatMessage("assistant", "c"),
        ChatMessage("user", "d"),
    )
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 3, 7)
    assert (params.stop, params.seed) == (("END",), 5)


async def test_several_answers_have_seeds_of_their_own(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(model="scripted", messages=QUESTION, n=3, seed=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(request.params.seed or 0 for request in engine.requests) == [8, 9, 10]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 27)


async def test_an_answer_that_is_cut_says_so(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.add(["It", Finished(FinishReason.LENGTH, Usage(5, 1))])
    answer = await client.chat.completions.create(model="scripted", messages=QUESTION, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": ["a"]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}] * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "name": 5}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"n": 9}, "n"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": 2}, "stream"),
        ({"stream": [True]}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "perhaps"}}, "include_usage"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {}}, "stream_options"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    http: aiohttp.ClientSession, change: dict[str, Any], param: str
) -> None:
    async with http.post("/v1/chat/completions", json={**BODY, **change}) as response:
        answer = await response.json()
    assert response.status == 400
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", param)
    assert answer["error"]["message"]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,Ynl0ZXM=", "detail": "low"}}


async def test_a_picture_is_passed_on_to_a_model_that_sees(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.most_pictures = 1
    content: Any = [{"type": "text", "text": "What is it?"}, PICTURE]
    await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": content}])
    (message,) = engine.requests[0].messages
    assert message.content == "What is it?"
    assert [(each.media_type, each.data) for each in message.pictures] == [("image/png", b"bytes")]


@pytest.mark.parametrize(
    ("most", "role", "parts", "why"),
    [
        (0, "user", [PICTURE], "this model reads text only"),
        (4, "assistant", [PICTURE], "this model reads text only"),
        (1, "user", [PICTURE, PICTURE], "at most 1 pictures"),
        (4, "user", [{"type": "input_audio"}], "this model reads text and image_url only"),
        (4, "user", [{"type": "image_url"}], "no data URL"),
        (4, "user", [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}], "no data URL"),
        (4, "user", [{"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,YQ=="}}], "no data URL"),
        (4, "user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,Y"}}], "not base64"),
    ],
)
async def test_a_picture_that_is_not_passed_on_is_refused(
    http: aiohttp.ClientSession, engine: ScriptedEngine, most: int, role: str, parts: list[Any], why: str
) -> None:
    engine.most_pictures = most
    async with http.post(
        "/v1/chat/completions", json={**BODY, "messages": [{"role": role, "content": parts}]}
    ) as response:
        error = (await response.json())["error"]
    assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", "messages")
    assert why in error["message"]
    assert engine.requests == []


async def test_pictures_that_the_models_server_refuses_are_an_error(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.most_pictures = 4
    engine.add([PicturesRefused(0)])
    content: Any = [PICTURE]
    with pytest.raises(openai.BadRequestError, match="takes no pictures"):
        await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": content}])


async def test_what_changes_nothing_is_accepted(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    await client.chat.completions.create(
        model="scripted",
        messages=QUESTION,
        logprobs=False,
        frequency_penalty=0,
        logit_bias={},
        tools=[],
        functions=[{"name": "f"}],
        function_call="none",
        response_format={"type": "text"},
        user="me",
        stream=False,
        extra_body={"repetition_penalty": 1, "top_k": -1},
    )
    assert engine.requests[0].params.top_k == 0


@pytest.mark.parametrize("true", [True, 1, "1", "true", "Yes", "on"])
async def test_a_stream_is_asked_for_as_other_servers_allow(http: aiohttp.ClientSession, true: object) -> None:
    for path, body in (("/v1/chat/completions", BODY), ("/v1/completions", {"prompt": "a"}), ("/", {"prompt": "a"})):
        async with http.post(path, json={**body, "stream": true}) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
    for false in (False, 0, "0", "off", None):
        async with http.post("/v1/chat/completions", json={**BODY, "stream": false}) as response:
            assert (response.status, response.content_type) == (200, "application/json")


class TestSeveralAnswersInAStream:
    @pytest.fixture
    async def engine(self) -> AsyncIterator[ScriptedEngine]:
        async with ScriptedEngine(max_batch_size=2) as engine:
            yield engine

    async def test_each_has_its_number(self, client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
        second = asyncio.Event()
        engine.add(["one ", second, "more"], ["two"])
        stream = await client.chat.completions.create(
            model="scripted", messages=QUESTION, n=2, seed=8, stream=True, stream_options={"include_usage": True}
        )
        texts, reasons = ["", ""], {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
                    second.set()  # the other one has not ended
        assert (texts, reasons) == (["one more", "two"], {0: "stop", 1: "stop"})
        assert chunk.usage is not None
        assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (5, 11)
        assert sorted(request.params.seed or 0 for request in engine.requests) == [8, 9]


async def test_a_client_that_leaves_frees_the_slots_of_all_its_answers(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.add(["one ", asyncio.Event()])
    async with await client.chat.completions.create(model="scripted", messages=QUESTION, n=3, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    await engine.left(3)
    assert (engine.load.running, engine.load.waiting) == (0, 0)


async def test_a_stream_that_is_accepted_has_its_headers_before_the_first_text(
    http: aiohttp.ClientSession, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.server.generation._PING_SECONDS", 2 * TIMEOUT)
    engine.go_on.clear()
    async with asyncio.timeout(TIMEOUT), http.post("/v1/chat/completions", json={**BODY, "stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        engine.go_on.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_a_refusal_that_comes_with_the_first_comment_has_its_status(
    http: aiohttp.ClientSession, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.server.generation._FIRST_PING_SECONDS", 0)
    engine.add([EngineFailed("the text of a user")])
    async with http.post("/v1/chat/completions", json={**BODY, "stream": True}) as response:
        assert (response.status, (await response.json())["error"]["type"]) == (500, "server_error")


async def test_a_prompt_beyond_the_context_has_its_code(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_with_a_time(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, stream: bool
) -> None:
    engine.go_on.clear()
    asking = [
        asyncio.ensure_future(client.chat.completions.create(model="scripted", messages=QUESTION))
        for _ in range(1 + MAX_WAITING)
    ]
    await engine.asked(1 + MAX_WAITING)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="scripted", messages=QUESTION, stream=stream)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    engine.go_on.set()
    await asyncio.gather(*asking)


async def test_a_paused_bot_refuses(client: openai.AsyncOpenAI, access: Access) -> None:
    set_paused(access)
    with pytest.raises(openai.InternalServerError, match="paused"):
        await client.chat.completions.create(model="scripted", messages=QUESTION)


async def test_a_fault_in_a_stream_reaches_the_client(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.add(["It ", EngineFailed("the text of a user")])
    stream = await client.chat.completions.create(model="scripted", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="the model failed on this request"):
        [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(
    http: aiohttp.ClientSession, engine: ScriptedEngine, stream: bool
) -> None:
    engine.go_on.clear()
    asking = asyncio.ensure_future(http.post("/v1/chat/completions", json={**BODY, "stream": stream}))
    await engine.asked(1)
    asking.cancel()
    await engine.left(1)
    assert engine.load.running == 0
    engine.go_on.set()


async def test_other_paths_and_methods_are_errors_of_the_same_form(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/nothing") as response:
        assert (response.status, "message" in (await response.json())["error"]) == (404, True)
    async with http.get("/v1/chat/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    async with http.get("/") as response:
        assert (response.status, await response.json()) == (405, {"error": "Method Not Allowed", "status": 405})


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (
            "/v1/chat/completions",
            {
                "error": {
                    "message": "the server failed on this request",
                    "type": "server_error",
                    "param": None,
                    "code": None,
                }
            },
        ),
        ("/", {"error": "the server failed on this request", "status": 500}),
    ],
)
async def test_a_fault_of_the_server_has_the_form_of_its_api(
    http: aiohttp.ClientSession, engine: ScriptedEngine, path: str, answer: object
) -> None:
    engine.add([RuntimeError("the text of a user")])
    async with http.post(path, json={**BODY, "prompt": "a"}) as response:
        assert (response.status, await response.json()) == (500, answer)


async def test_a_text_is_completed_as_a_single_question(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.completions.create(model="scripted", prompt="once", max_tokens=40)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "It is 天气。",
        "stop",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13
    stream = await client.completions.create(
        model="scripted", prompt="once", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "It is 天气。"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, None, None, "stop"]
    assert chunks[-1].usage is not None
    assert [request.messages for request in engine.requests] == [(ChatMessage("user", "once"),)] * 2
    assert [request.params.max_tokens for request in engine.requests] == [40, 16]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"suffix": "a"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
    ],
)
async def test_what_completions_do_not_have_is_refused_by_name(
    http: aiohttp.ClientSession, change: dict[str, Any], param: str
) -> None:
    async with http.post("/v1/completions", json={"prompt": "once", **change}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)


async def test_the_client_waits_and_tries_a_refused_request_again(
    url: str, engine: ScriptedEngine, access: Access
) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=1) as client:
            raw = client.chat.completions.with_raw_response.create(model="scripted", messages=QUESTION)
            assert raw.retries_taken == 1
            return raw.parse().choices[0].message.content

    engine.add([EngineBusy(1, 1, 0.1)])
    assert await asyncio.to_thread(ask) == "It is 天气。"
