"""The snippets on the page about HTTP routes work."""

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from bot import __version__
from bot.observability import http
from bot.observability.health import Components, Health
from tests.harness.fakes import ManualClock
from tests.project.snippets import define, execute_in, names_in, snippets

PAGE = "ADDING_AN_API.md"
HANDLER, ROUTE, APP, TESTS = snippets(PAGE)


async def test_the_route_for_operators_answers() -> None:
    added = execute_in(http, HANDLER, PAGE, __version__=__version__)
    route = eval(ROUTE, {**vars(http), **added})
    assert isinstance(route, Route)
    app = http.create_app(Health(Components(), 60.0, ManualClock()), CollectorRegistry())
    app.routes.append(route)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
        assert (await client.get("/version")).json() == {"version": __version__}
        assert (await client.get("/livez")).text == "alive\n"


@pytest.mark.parametrize("name", names_in(TESTS))
async def test_the_api_for_users_passes_its_test(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, "bot.server", "", PAGE)
    define(monkeypatch, "bot.server.app", APP, PAGE)
    await getattr(define(monkeypatch, "page_tests", TESTS, PAGE), name)()
