"""What chat admins see of the panel, and what only operators may do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from bot.adapters.web.access import Person, Right, set_person
from bot.adapters.web.panel.routes import panel_routes
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage
from bot.adapters.web.panel.view import PanelView
from bot.adapters.web.requests import refuse
from bot.domain import Author
from bot.observability.health import Components, Health
from bot.storage.backup_folder import BackupFolder
from bot.util.clock import MonotonicClock
from tests.adapters.panel_config import configured


class SignedIn:
    """Lets every request be of a person with this right."""

    def __init__(self, app: ASGIApp, right: Right) -> None:
        self._app = app
        self._person = Person(right, Author("discord", "1", "Mei"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        set_person(Request(scope), self._person)
        await self._app(scope, receive, send)


def client(right: Right) -> httpx.AsyncClient:
    clock, components = MonotonicClock(), Components()
    sources = PanelSources(components, Health(components, 60.0, clock), clock)
    app = Starlette(
        routes=panel_routes(lambda: None, sources),
        middleware=[Middleware(SignedIn, right=right)],
        exception_handlers={HTTPException: refuse},
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/config"),
        ("POST", "/admin/config/save"),
        ("POST", "/admin/backup"),
        ("GET", "/admin/backups/bot.db"),
    ],
)
async def test_configuration_and_backups_are_for_operators(method: str, path: str) -> None:
    async with client(Right.ADMIN) as http:
        answer = await http.request(method, path, json={})
        assert (answer.status_code, "Only operators" in answer.text) == (403, True)
    async with client(Right.OPERATOR) as http:
        assert (await http.request(method, path, json={})).status_code in (404, 503)


@pytest.mark.parametrize("path", ["/admin/pause", "/admin/undo", "/admin/place", "/admin/model"])
async def test_channels_models_and_pause_are_for_admins_too_and_not_for_visitors(path: str) -> None:
    async with client(Right.VISITOR) as http:
        assert (await http.post(path, json={})).status_code == 403
    async with client(Right.ADMIN) as http:
        assert (await http.post(path, json={})).status_code == 503, "the bot starts"


@pytest.mark.parametrize(("right", "sees"), [(Right.ADMIN, False), (Right.OPERATOR, True)])
async def test_only_operators_see_the_file_its_backups_and_reasons(tmp_path: Path, right: Right, sees: bool) -> None:
    async with configured(tmp_path) as bot:
        components, clock = bot.served.components, MonotonicClock()
        folder = BackupFolder(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}")
        sources = PanelSources(components, Health(components, 60.0, clock), clock, editor=bot.editor, backups=folder)
        adapter: Any = components.adapters["discord"]
        adapter.fault = "no route to host.example"
        chat: Any = SimpleNamespace(intake=bot.served.harness.intake)
        view = PanelView(chat, sources, RecentUsage(sources.read_usage, clock), str, right)
        shown = await view.update()
    assert ("config" in shown, "backups" in shown) == (sees, sees)
    assert ("host.example" in shown["platforms"]) is sees
    assert "Not served" in shown["platforms"]
