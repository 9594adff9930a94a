"""Requests are counted by path and status, and nothing of a client is in the logs."""

import asyncio
import logging
from typing import Any

import aiohttp
import pytest

from bot.config.http import KeySection, ServerSection
from bot.observability.metrics import PREFIX
from bot.server.generation import Backend
from tests.harness.fakes import ScriptedEngine

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "a private question"}]}


def count(backend: Backend, path: str, status: int) -> float | None:
    return backend.metrics.registry.get_sample_value(
        f"{PREFIX}_api_requests_total", {"path": path, "status": str(status)}
    )


async def test_requests_are_counted_by_known_path_and_status(http: aiohttp.ClientSession, backend: Backend) -> None:
    for path, body in (
        ("/v1/chat/completions", ASK),
        ("/v1/chat/completions", {**ASK, "stream": True}),
        ("/v1/chat/completions", {}),
        ("/secret/path", {}),
    ):
        async with http.post(path, json=body) as response:
            await response.read()
    async with http.post("/", json={"prompt": "a"}, headers={"Host": "evil.example"}) as response:
        assert response.status == 403
    assert [
        count(backend, "/v1/chat/completions", 200),
        count(backend, "/v1/chat/completions", 400),
        count(backend, "other", 404),
        count(backend, "/", 403),
        count(backend, "/secret/path", 404),
    ] == [2, 1, 1, 1, None]
    seconds = {"path": "/v1/chat/completions"}
    assert backend.metrics.registry.get_sample_value(f"{PREFIX}_api_request_seconds_count", seconds) == 3


async def test_a_client_that_has_gone_is_counted_as_such(
    http: aiohttp.ClientSession, engine: ScriptedEngine, backend: Backend
) -> None:
    engine.go_on.clear()
    asking = asyncio.ensure_future(http.post("/", json={"prompt": "a"}))
    await engine.asked(1)
    asking.cancel()
    await engine.left(1)
    while count(backend, "/", 499) is None:
        async with http.get("/v1/models") as response:
            assert response.status == 200
    assert count(backend, "/", 499) == 1
    engine.go_on.set()


class TestLogs:
    @pytest.fixture
    def settings(self) -> ServerSection:
        return ServerSection(port=0, keys={"alice": KeySection.model_validate({"secret": "a private key"})})

    async def test_neither_texts_nor_keys_are_logged(
        self, http: aiohttp.ClientSession, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "bot")
        caplog.set_level(logging.DEBUG, "uvicorn")
        engine.add([RuntimeError("a fault")])
        for key in ("a private guess", "a private key"):
            async with http.post(
                "/v1/chat/completions", json=ASK, headers={"Authorization": f"Bearer {key}"}
            ) as response:
                assert response.status == (500 if key == "a private key" else 401)
        assert "a fault" in caplog.text
        assert "private" not in caplog.text
