"""What chat admins see of the panel, and what only operators may do."""

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bot.adapters.web.access import Person, Right, set_person
from bot.adapters.web.panel.calls import PanelCall, PanelCalls
from bot.adapters.web.panel.models import models_html
from bot.adapters.web.panel.routes import panel_routes
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage
from bot.adapters.web.panel.view import PanelView
from bot.adapters.web.requests import refuse
from bot.domain import Author, EngineInfo, EngineLoad, ModelStatus, RunningBot, SettingChange
from bot.errors import BotError, CheckpointError, ConfigError, StoreError
from bot.observability.health import Components, Health
from bot.storage.backup_folder import BackupFolder
from bot.storage.usage_export import UsageReport
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


_LOST = "/srv/secret/bot.db"


def client(right: Right, *routes: Route) -> httpx.AsyncClient:
    clock, components = MonotonicClock(), Components()
    sources = PanelSources(components, Health(components, 60.0, clock), clock)
    app = Starlette(
        routes=routes or panel_routes(lambda: None, sources),
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
        components.bots = [RunningBot("attic:7", "1.0.0", ("discord",))]
        chat: Any = SimpleNamespace(intake=bot.served.harness.intake)
        view = PanelView(chat, sources, RecentUsage(sources.read_usage, clock), str, right)
        shown = await view.update()
    assert ("config" in shown, "backups" in shown) == (sees, sees)
    assert ("host.example" in shown["platforms"]) is sees
    assert ("attic:7" in shown["bots"]) is sees
    assert "Not served" in shown["platforms"]


@pytest.mark.parametrize(("right", "sees"), [(Right.ADMIN, False), (Right.OPERATOR, True)])
async def test_only_operators_read_why_the_database_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: Right, sees: bool
) -> None:
    async def fail(*args: object) -> list[SettingChange]:
        raise StoreError(_LOST)

    def fail_to_read(since: date) -> UsageReport:
        raise StoreError(_LOST)

    async with configured(tmp_path) as bot:
        components, clock, intake = bot.served.components, MonotonicClock(), bot.served.harness.intake
        monkeypatch.setattr(type(intake.choices), "in_force", fail)
        sources = PanelSources(components, Health(components, 60.0, clock), clock)
        chat: Any = SimpleNamespace(intake=intake)
        shown = await PanelView(chat, sources, RecentUsage(fail_to_read, clock), str, right).update()
    for part in ("channels", "usage"):
        assert "cannot be read" in shown[part]
        assert (_LOST in shown[part]) is sees


@pytest.mark.parametrize(
    ("error", "status"), [(StoreError(_LOST), 503), (ConfigError(_LOST, ["wrong"]), 409), (CheckpointError(_LOST), 409)]
)
@pytest.mark.parametrize(("right", "sees"), [(Right.ADMIN, False), (Right.OPERATOR, True)])
async def test_only_operators_read_why_a_button_fails(
    tmp_path: Path, error: BotError, status: int, right: Right, sees: bool
) -> None:
    async def fail(call: PanelCall) -> str:
        raise error

    async with configured(tmp_path) as bot:
        chat: Any = SimpleNamespace(intake=bot.served.harness.intake)
        sources = PanelSources(bot.served.components, Health(Components(), 60.0, MonotonicClock()), MonotonicClock())
        with structlog.testing.capture_logs() as logs:
            async with client(right, PanelCalls(lambda: chat, sources).post("/admin/x", fail)) as http:
                answer = await http.post("/admin/x", json={})
    assert (answer.status_code, _LOST in answer.text) == (status, sees)
    assert sees or answer.text == "This was not done; operators can read the reason in the log."
    assert [_LOST in str(line["error"]) for line in logs if line["event"] == "panel: refused"] == [True]


@pytest.mark.parametrize(("right", "sees"), [(Right.ADMIN, False), (Right.OPERATOR, True)])
def test_only_operators_see_the_servers_of_a_remote_model(right: Right, sees: bool) -> None:
    info = EngineInfo("qwen", "remote", "none", "none", "models.intranet:8000", 4096)
    components, clock = Components(), MonotonicClock()
    components.models = lambda: [ModelStatus("engine", info, EngineLoad(running=0, waiting=0))]
    shown = models_html(PanelSources(components, Health(components, 60.0, clock), clock), right, str)
    assert "<td>qwen</td>" in shown
    assert ("models.intranet" in shown) is sees
