"""The polling API: states, codes and forgetting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from bot.config.schema import LimitsSection
from bot.errors import EngineFailed
from bot.server.generation import Backend
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
        {"request_id": "a" * 257, "query": "a"},
        {"request_id": 10**256, "query": "a"},
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


class TestMany:
    @pytest.fixture
    async def engine(self) -> AsyncIterator[ScriptedEngine]:
        async with ScriptedEngine(max_batch_size=1) as engine:
            yield engine

    @pytest.fixture
    def limits(self) -> LimitsSection:
        return LimitsSection(requests_per_minute=0, waiting_per_user=0)

    @pytest.fixture
    def backend(self, backend: Backend) -> Backend:
        return replace(backend, max_waiting=64)

    async def test_the_32nd_at_once_is_refused_even_with_a_known_id(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine
    ) -> None:
        engine.go_on.clear()
        codes = [(await call(http, "/chat", request_id=number, query="a"))["code"] for number in range(31)]
        assert codes == [0] * 31
        for id in (31, 0):
            assert await call(http, "/chat", request_id=id, query="a") == {"code": 100, "msg": "busy now"}
        engine.go_on.set()
        for number in range(31):
            await finished(http, number)
        assert (await call(http, "/chat", request_id=0, query="a"))["code"] == 101

    async def test_of_many_finished_answers_the_oldest_are_forgotten(
        self, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
    ) -> None:
        monkeypatch.setattr("bot.server.polling._KEPT", 2)
        for number in range(4):
            assert (await call(http, "/chat", request_id=number, query="a"))["code"] == 0
            await finished(http, number)
            clock.jump(1)
        codes = [(await call(http, "/get_response", request_id=number))["code"] for number in range(4)]
        assert codes == [102, 102, 0, 0]


async def test_answers_are_forgotten_after_an_hour(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    await call(http, "/chat", request_id="a", query="b")
    await finished(http, "a")
    clock.jump(3599)
    assert (await call(http, "/get_response", request_id="a"))["code"] == 0
    clock.jump(1)
    assert (await call(http, "/get_response", request_id="a"))["code"] == 102
