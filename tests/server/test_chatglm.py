"""The APIs of ChatGLM-6B's servers: the calls of their documents, and refusals."""

import io
import json
import re
from typing import Any

import aiohttp
import pytest

from bot.domain import ChatMessage
from bot.errors import EngineFailed
from tests.harness.fakes import ScriptedEngine

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


async def post(http: aiohttp.ClientSession, path: str, body: object) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body)
    async with http.post(path, data=data, headers={"Content-Type": "text/plain"}) as response:
        return response.status, await response.json()


async def test_the_documented_call_has_the_documented_answer(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/", {"prompt": "你好", "history": []})
    assert status == 200
    assert list(answer) == ["response", "history", "status", "time"]
    assert (answer["response"], answer["history"], answer["status"]) == (
        "It is 天气。",
        [["你好", "It is 天气。"]],
        200,
    )
    assert TIME.fullmatch(answer["time"])


async def test_the_history_of_an_answer_is_that_of_the_next_question(
    http: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    _, first = await post(http, "/", {"prompt": "one", "history": None})
    _, second = await post(http, "/", {"prompt": "two", "history": first["history"]})
    assert second["history"] == [["one", "It is 天气。"], ["two", "It is 天气。"]]
    assert engine.requests[1].messages == (
        ChatMessage("user", "one"),
        ChatMessage("assistant", "It is 天气。"),
        ChatMessage("user", "two"),
    )


async def test_a_flat_history_is_read_as_turns(http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
    await post(http, "/chat", {"prompt": "c", "history": [["a", "A", "b", "B"]]})
    assert [message.content for message in engine.requests[0].messages] == ["a", "A", "b", "B", "c"]


async def test_a_stream_of_the_first_api_has_the_same_object_with_all_text_so_far(
    http: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async with http.post("/", json={"prompt": "two", "history": [["one", "1"]], "stream": 1}) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        body = await response.read()
    events = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\r\n\r\n") if line]
    assert [event["response"] for event in events] == ["It ", "It is ", "It is 天气。", "It is 天气。"]
    assert [list(event) for event in events] == [["response", "history", "status", "time"]] * 4
    assert events[-1]["history"] == [["one", "1"], ["two", "It is 天气。"]]
    engine.add(["It ", EngineFailed("the text of a user")])
    async with http.post("/", json={"prompt": "two", "stream": 1}) as response:
        assert (await response.text()).endswith(
            'event: error\r\ndata: {"error": "the model failed on this request"}\r\n\r\n'
        )


async def test_zero_tokens_are_the_default_of_the_first_api_only(http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/", {"prompt": "abc", "max_length": 0}))[0] == 200
    for path in ("/chat", "/chat-stream", "/tokenize"):
        status, answer = await post(http, path, {"prompt": "abc", "max_length": 0})
        assert (status, "max_length" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": NaN}', "not JSON"),
        (b"\xff", "not JSON"),
        ([], "not a JSON object"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "history": "b"}, "history"),
        ({"prompt": "a", "history": ""}, "history"),
        ({"prompt": "a", "history": 0}, "history"),
        ({"prompt": "a", "history": [["one element"]]}, "history"),
        ({"prompt": "a", "history": [["b", 1]]}, "history"),
        ({"prompt": "a", "history": [["", ""]] * 1025}, "the limit is 1024"),
        ({"prompt": "a", "history": [[""] * 2050]}, "the limit is 1024"),
        ({"prompt": "a", "temperature": "warm"}, "temperature"),
        ({"prompt": "a", "temperature": 2.5}, "temperature"),
        ({"prompt": "a", "top_p": True}, "top_p"),
        ({"prompt": "a", "max_length": 1.5}, "max_length"),
        ({"prompt": "abc", "max_length": 3}, "max_length"),
        ({"prompt": "x" * 512}, "context"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/chat-stream"])
async def test_a_request_that_cannot_be_answered_is_named(
    http: aiohttp.ClientSession, engine: ScriptedEngine, path: str, body: object, words: str
) -> None:
    status, answer = await post(http, path, body)
    assert (status, answer["status"]) == (400, 400)
    assert words in answer["error"]
    assert engine.requests == []


async def test_only_the_glm_api_has_an_empty_prompt_by_default(http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/", {}))[0] == 400
    async with http.post("/chat-stream", json={}) as response:
        assert response.status == 200


async def test_a_long_body_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post("/", data=io.BytesIO(b"x" * (2**20 + 1))) as response:
        assert response.status == 413


async def test_sampling_has_the_documented_defaults_and_zero_is_greedy(
    http: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    await post(http, "/", {"prompt": "abc", "temperature": None})
    await post(http, "/", {"prompt": "abc", "temperature": 0, "top_p": 0.5, "max_length": 80_000})
    await post(http, "/", {"prompt": "abc", "top_p": 0, "max_length": 0})
    params = [request.params for request in engine.requests]
    assert [(each.temperature, each.top_p, each.max_tokens) for each in params] == [
        (0.95, 0.7, 509),
        (0.0, 0.5, 509),
        (0.0, 1.0, 509),
    ]


async def test_the_glm_api_answers_flat_with_its_counts(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/chat", {"prompt": "what?\n", "max_length": 4096})
    assert (status, answer) == (
        200,
        {
            "content": "It is 天气。",
            "prompt_tokens": 6,
            "completion_tokens": 9,
            "total_tokens": 15,
            "model": "scripted",
            "object": "chat.completion",
        },
    )


async def test_each_event_of_the_glm_stream_has_all_text_so_far(http: aiohttp.ClientSession) -> None:
    async with http.post("/chat-stream", json={"prompt": "what?"}) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Accel-Buffering"] == "no"
        body = await response.read()
    assert body.isascii()
    events = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\r\n\r\n") if line]
    assert [event["content"] for event in events] == ["It ", "It is ", "It is 天气。", "It is 天气。"]
    assert all(event["object"] == "chat.completion" for event in events)


async def test_a_fault_after_the_first_event_is_an_error_event(
    http: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.add(["It ", EngineFailed("the text of a user")], [EngineFailed("the text of a user")])
    async with http.post("/chat-stream", json={"prompt": "what?"}) as response:
        assert (await response.text()).split("\r\n")[2:4] == [
            "event: error",
            'data: {"error": "the model failed on this request"}',
        ]
    assert await post(http, "/", {"prompt": "a"}) == (
        500,
        {"error": "the model failed on this request", "status": 500},
    )


async def test_a_prompt_is_counted_without_its_history(http: aiohttp.ClientSession) -> None:
    _, answer = await post(http, "/chat", {"prompt": "what?", "history": [["earlier", "answer"]]})
    assert (answer["prompt_tokens"], answer["total_tokens"]) == (5, 14)


async def test_text_is_split_into_ids_and_pieces(http: aiohttp.ClientSession) -> None:
    assert await post(http, "/tokenize", {"prompt": "abc"}) == (
        200,
        {"tokenIds": [97, 98, 99, 0, 1], "tokens": ["a", "b", "c"]},
    )
    assert await post(http, "/tokenize", {"prompt": "abc", "max_length": 4}) == (
        200,
        {"tokenIds": [97, 98, 0, 1], "tokens": ["a", "b", "c"]},
    )
    assert await post(http, "/tokenize", {"prompt": None}) == (200, {"tokenIds": [0, 1], "tokens": []})
    for body, name in (({"prompt": ["abc"]}, "prompt"), ({"prompt": "abc", "max_length": 2}, "max_length")):
        status, answer = await post(http, "/tokenize", body)
        assert (status, name in answer["error"]) == (400, True)


async def test_half_a_character_is_answered(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/", b'{"prompt": "a\\ud800b", "history": [["\\udc00", "c"]]}')
    assert (status, answer["history"][:1]) == (200, [["?", "c"]])
