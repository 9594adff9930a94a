"""The OpenAPI document: valid, complete, and true of what the server does."""

import re

import aiohttp
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from bot.config.http import ServerSection
from bot.config.schema import LimitsSection
from bot.server.app import create_server
from bot.server.generation import Backend
from bot.util.aio import BackgroundTasks
from tests.harness.fakes import ManualClock
from tests.harness.openapi import DOCUMENT, check, check_response, examples, operation

POSTS = [path for path, operations in DOCUMENT["paths"].items() if "post" in operations]


@pytest.fixture
def limits() -> LimitsSection:
    return LimitsSection(requests_per_minute=0, tokens_per_hour=0, waiting_per_user=0)


async def test_it_is_served_and_valid(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        served = await response.json()
    OpenAPIV31SpecValidator(served).validate()
    assert served == DOCUMENT


async def test_it_has_every_route(backend: Backend, clock: ManualClock) -> None:
    async with BackgroundTasks() as tasks:
        routes = create_server(ServerSection(), backend, clock, tasks).routes
    paths = {route.path.replace(":path", "") for route in routes}  # type: ignore[attr-defined]  # all are Routes
    assert paths - {"/openapi.json"} == set(DOCUMENT["paths"])


@pytest.mark.parametrize("path", POSTS)
async def test_each_example_is_answered_as_it_says(http: aiohttp.ClientSession, path: str) -> None:
    content = operation(path)["requestBody"]["content"]["application/json"]
    for example in examples(path):
        check(content["schema"], example)
        async with http.post(path, json=example) as response:
            if response.content_type == "text/event-stream":
                assert response.status == 200
                schema = operation(path)["responses"]["200"]["content"]["text/event-stream"]["schema"]
                events = [block for block in re.split(r"(?:\r?\n){2}", await response.text()) if block]
                assert events
                for event in events:
                    check(schema, dict(line.split(": ", 1) for line in event.splitlines()))
            else:
                # No embedding model here: its own tests have one.
                assert response.status == (501 if "embedding" in path else 200)
                check_response(path, response.status, await response.json())


@pytest.mark.parametrize(("path", "asked"), [("/v1/models", "/v1/models"), ("/v1/models/{id}", "/v1/models/scripted")])
async def test_models_are_as_it_says(http: aiohttp.ClientSession, path: str, asked: str) -> None:
    async with http.get(asked) as response:
        check_response(path, response.status, await response.json(), "get")


@pytest.mark.parametrize("path", POSTS)
async def test_a_refusal_is_as_it_says(http: aiohttp.ClientSession, path: str) -> None:
    async with http.post(path, data=b"[]") as response:
        check_response(path, response.status, await response.json())
    async with http.post(path, data=b"{}", headers={"Origin": "https://example.org"}) as response:
        if path != "/get_response":
            check_response(path, response.status, await response.json())
        assert response.status == 403
