"""The polling API: states, codes and forgetting."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from bot.errors import EngineFailed
from tests.harness.fakes import ManualClock, ScriptedEngine


async def call(http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with http.post(path, json=body) as response:
        assert response.status == 200
        return await response.json()


async def poll(http: aiohttp.ClientSession, id: str | int, condition: Callable[[Any], bool]) -> Any:
    while True:
        answer = await call(http, "/get_response", request_id=id)
        if condition(answer["response"]):
            return answer


async def finished(http: aiohttp.ClientSession, id: str | int) -> Any:
    return (await poll(http, id, lambda response: response["is_finished"]))["response"]


async def test_an_answer_is_started_and_its_text_grows(http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
    more = asyncio.Event()
    engine.add(["It ", more, "is."])
    assert await call(http, "/chat", request_id="a", query="what?") == {"code": 0, "msg": "start process"}
    answer = await poll(http, "a", lambda response: response["response"] == "It ")
    assert (answer["code"], answer["msg"]) == (0, "success")
    assert answer["response"].keys() == {"is_finished", "is_handled", "response", "timestamp"}
    assert (answer["response"]["is_finished"], answer["response"]["is_handled"]) == (False, True)
    more.set()
    end = await finished(http, "a")
    assert (end["response"], end["is_handled"]) == ("It is.", True)


async def test_ids_are_known_unknown_and_of_two_types(http: aiohttp.ClientSession) -> None:
    assert await call(http, "/get_response", request_id="7") == {"code": 102, "msg": "request_id not exists"}
    assert (await call(http, "/chat", request_id="7", query="a"))["code"] == 0
    assert await call(http, "/chat", request_id="7", query="a") == {"code": 101, "msg": "request_id already exists"}
    assert (await call(http, "/get_response", request_id=7))["code"] == 102
    await finished(http, "7")


async def test_a_bad_request_is_a_code(http: aiohttp.ClientSession) -> None:
    for body in (
        {"request_id": "a"},
        {"query": "a"},
        {"request_id": None, "query": "a"},
        {"request_id": "a", "query": 1},
    ):
        answer = await call(http, "/chat", **body)
        assert answer["code"] == 103
        assert "request_id" in answer["msg"] or "query" in answer["msg"]
    async with http.post("/chat", json={"text": "a"}) as response:
        assert response.status == 400


async def test_too_many_waiting_are_busy_and_a_fault_ends_an_answer(
    http: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.go_on.clear()
    engine.add([EngineFailed("the text of a user")])
    for number in range(3):
        assert (await call(http, "/chat", request_id=number, query="a"))["code"] == 0
        await engine.asked(number + 1)
    assert await call(http, "/chat", request_id=3, query="a") == {"code": 100, "msg": "busy now"}
    engine.go_on.set()
    failed = await finished(http, 0)
    assert (failed["response"], failed["error"]) == ("", "the model failed on this request")
    assert (await finished(http, 2))["response"] == "It is 天气。"
    assert (await call(http, "/chat", request_id=3, query="a"))["code"] == 0
    await finished(http, 3)


async def test_answers_are_forgotten_after_an_hour(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    await call(http, "/chat", request_id="a", query="b")
    await finished(http, "a")
    clock.jump(3599)
    assert (await call(http, "/get_response", request_id="a"))["code"] == 0
    clock.jump(1)
    assert (await call(http, "/get_response", request_id="a"))["code"] == 102
