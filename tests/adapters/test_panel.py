"""The operator's panel over HTTP: a real server and store, without a browser."""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from bot.adapters.web.panel import routes
from bot.adapters.web.panel.log import words_of
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage, usage_html
from bot.config.edit import ConfigEditor
from bot.config.http import ServerSection
from bot.config.places import PlaceSection
from bot.config.schema import Config
from bot.domain import Author, ChannelKey, ModelStatus, RunningBot, Scope, UsageSum
from bot.errors import StoreError
from bot.observability import process
from bot.observability.health import Components, Health
from bot.observability.logging import LineHandler
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from bot.storage.backup_folder import BackupFolder
from bot.storage.usage_export import UsageReport, report_usage
from bot.util.clock import MonotonicClock
from tests.adapters.test_web import Tab, browser, own, served_on
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness, set_paused
from tests.harness.messages import NOON, a_message
from tests.harness.platform import TIMEOUT

HOSTILE = "<script>window.hit = 1</script>"
ESCAPED = "&lt;script&gt;window.hit = 1&lt;/script&gt;"


@dataclass
class Platform:
    """The state of a platform, as the supervisor reports it."""

    fault: str | None = None
    is_standby: bool = False

    @property
    def is_connected(self) -> bool:
        return self.fault is None


@dataclass
class Panel:
    """A page of the panel, as the script keeps it."""

    http: aiohttp.ClientSession
    shown: dict[str, Any] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, condition: Callable[["Panel"], bool]) -> "Panel":
        """Open the stream and read until the condition holds."""
        async with asyncio.timeout(TIMEOUT), self.http.get("/admin/events") as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: "):
                    self.updates.append(json.loads(line.removeprefix(b"data: ")))
                    self.shown |= self.updates[-1]
                    if condition(self):
                        return self
        raise AssertionError(f"the stream ended: {self.shown}")

    async def post(self, path: str, status: int = 200, /, **body: Any) -> str:
        async with self.http.post(f"/admin/{path}", json=body, headers=own(self.http)) as response:
            said = await response.text()
            assert response.status == status, said
            return said


@dataclass
class Served:
    url: str
    harness: Harness
    components: Components
    panel: Panel

    @property
    def engine(self) -> ScriptedEngine:
        return self.harness.engine


@asynccontextmanager
async def panel_of(folder: Path, engine: ScriptedEngine, editor: ConfigEditor | None = None) -> AsyncIterator[Served]:
    """Serve the chat and the panel on the database in `folder`."""
    async with engine, make_harness(folder, engine, limits=NO_LIMITS) as harness:
        clock = MonotonicClock()
        components = Components(harness.store, engine, {"discord": Platform()})
        database = f"sqlite+aiosqlite:///{folder / 'bot.db'}"
        usage_of = partial(report_usage, database)
        sources = PanelSources(
            components, Health(components, 60.0, clock), clock, usage_of, editor=editor, backups=BackupFolder(database)
        )
        async with served_on(folder, harness, sources) as url, aiohttp.ClientSession(url) as http:
            yield Served(url, harness, components, Panel(http))


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for changes often, and let the memory be no change."""
    monkeypatch.setattr(routes, "_SECONDS", 0.01)
    monkeypatch.setattr(process, "memory", lambda: 512 << 20)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(default="an answer")


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    async with panel_of(tmp_path, engine) as served:
        yield served


def first(panel: Panel) -> bool:
    return True


class TestNow:
    async def test_load_models_and_platforms_are_shown(self, served: Served) -> None:
        served.components.adapters = {"discord": Platform(), "slack": Platform("the token was rejected")}
        shown = (await served.panel.until(first)).shown
        assert "<dt>Answering</dt><dd>0</dd>" in shown["facts"]
        assert "<dd>512 MiB</dd>" in shown["facts"]
        assert '<th scope="row">discord</th><td><span class="good">connected</span></td>' in shown["platforms"]
        assert (
            '<th scope="row">slack</th><td><span class="bad">Not served: the token was rejected</span></td>'
            in shown["platforms"]
        )
        assert "<td>scripted, none, none, none</td>" in shown["models"]
        assert shown["is_paused"] is False

    async def test_each_of_several_models_tells_why_it_cannot_answer(self, served: Served) -> None:
        info, load = served.engine.info, served.engine.load
        served.components.models = lambda: [
            ModelStatus("engine", info, load),
            ModelStatus("big", fault="no such folder /models/big"),
            ModelStatus("club", info, load, base="engine"),
        ]
        models = (await served.panel.until(first)).shown["models"]
        assert models.count('<span class="good">ready</span>') == 2
        assert '<span class="bad">Cannot answer: no such folder /models/big</span>' in models
        assert "<td>scripted (engine)</td>" in models

    async def test_bots_that_share_the_database_are_listed(self, served: Served) -> None:
        served.components.bots = [RunningBot("attic:7", "1.0.0", ("slack", "web")), RunningBot(HOSTILE, "0.9.0", ())]
        bots = (await served.panel.until(first)).shown["bots"]
        assert '<th scope="row">attic:7</th><td>1.0.0</td><td>slack, web</td>' in bots
        assert f'<th scope="row">{ESCAPED}</th><td>0.9.0</td><td>standing by</td>' in bots

    async def test_only_what_has_changed_is_sent_and_nothing_twice(self, served: Served) -> None:
        def pause_first(panel: Panel) -> bool:
            if len(panel.updates) == 1:
                set_paused(served.harness.access)
            return panel.shown["is_paused"] is True

        await served.panel.until(pause_first)
        assert [list(update) for update in served.panel.updates[1:]] == [["is_paused"]]

    async def test_running_replies_are_counted_and_no_text_of_people_is_shown(self, served: Served) -> None:
        served.engine.add(["a secret answer", asyncio.Event()])
        async with browser(served.url) as http:
            await Tab(http, uuid4().hex).ask("a secret question")
            await served.engine.asked(1)
            await served.panel.until(lambda panel: "<dt>Answering</dt><dd>1</dd>" in panel.shown["facts"])
        assert "secret" not in json.dumps(served.panel.updates)

    async def test_hostile_names_are_text(self, served: Served) -> None:
        served.components.adapters = {HOSTILE: Platform(HOSTILE)}
        served.components.models = lambda: [ModelStatus(HOSTILE, fault=HOSTILE)]
        everything = json.dumps((await served.panel.until(first)).shown)
        assert HOSTILE not in everything
        assert everything.count(ESCAPED) == 4


class TestPause:
    async def test_it_refuses_new_questions_until_it_is_resumed(self, served: Served) -> None:
        said = await served.panel.post("pause", paused=True)
        assert "Answers in progress continue" in said
        assert served.harness.access.is_paused
        await served.panel.until(lambda panel: panel.shown["is_paused"])
        audit = (await served.panel.until(lambda panel: "paused" in panel.shown["audit"])).shown["audit"]
        assert "<td>all platforms</td><td>paused</td><td>yes</td>" in audit
        await served.panel.post("pause", paused=False)
        assert not served.harness.access.is_paused

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"paused": "yes"}', b"[" * 100_000])
    async def test_a_malformed_request_is_refused(self, served: Served, body: bytes) -> None:
        http = served.panel.http
        async with http.post("/admin/pause", data=io.BytesIO(body), headers=own(http)) as response:
            assert response.status == 400


class TestProtection:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    async def test_another_page_changes_nothing(self, served: Served, headers: dict[str, str]) -> None:
        async with served.panel.http.post("/admin/pause", json={"paused": True}, headers=headers) as response:
            assert response.status == 403
        assert not served.harness.access.is_paused

    @pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"X-Real-IP": "1.2.3.4"}, {"Forwarded": "for=1"}])
    @pytest.mark.parametrize("path", ["/admin", "/admin/events"])
    async def test_other_machines_see_nothing(self, served: Served, path: str, headers: dict[str, str]) -> None:
        async with served.panel.http.get(path, headers=headers) as response:
            assert response.status == 403

    async def test_another_page_reads_nothing(self, served: Served) -> None:
        headers = {"Sec-Fetch-Site": "cross-site"}
        async with served.panel.http.get("/admin/events", headers=headers) as response:
            assert response.status == 403

    async def test_a_link_of_another_page_leads_to_the_panel_but_cannot_pause(self, served: Served) -> None:
        async with served.panel.http.get("/admin", headers={"Sec-Fetch-Site": "cross-site"}) as response:
            assert response.status == 200
        async with served.panel.http.get("/admin/pause") as response:
            assert response.status == 405

    async def test_the_page_is_in_the_language_of_the_browser_and_asks_no_third_party(self, served: Served) -> None:
        async with served.panel.http.get("/admin", headers={"Accept-Language": "zh-CN"}) as response:
            page = await response.text()
            policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "http:" not in page
        assert '<html lang="zh-CN">' in page
        assert "运维面板" in page


async def test_there_is_no_panel_where_the_page_is_off(tmp_path: Path, engine: ScriptedEngine) -> None:
    async with engine, make_harness(tmp_path, engine) as harness:
        backend = Backend(engine, harness.settings, harness.access, 8, Metrics())
        async with (
            serve_apis(ServerSection(port=0, web=False), backend, MonotonicClock(), None) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):
            for path in ("/admin", "/admin/events", "/web/panel.js"):
                async with http.get(path) as response:
                    assert response.status == 404


class TestUsage:
    async def test_it_is_shown_by_day_and_place_without_people(self, served: Served) -> None:
        mei = Author("discord", "71", "Mei")
        here = ChannelKey("discord", "general")
        await served.harness.ask(a_message("hello", author=mei, channel=here, server="9", is_direct=False))
        usage = (await served.panel.until(first)).shown["usage"]
        assert f'<th scope="row">{NOON.date()}</th><td>1</td>' in usage
        assert '<th scope="row">discord:general (channel)</th><td>1</td>' in usage
        assert "discord:9 (server)" in usage
        assert usage.count("<rect") == 1
        assert "discord:71" not in usage
        assert "Mei" not in usage

    async def test_a_page_without_usage_says_so(self, served: Served) -> None:
        assert (await served.panel.until(first)).shown["usage"] == "<p>Nothing was used in these days.</p>"

    async def test_the_ledger_is_read_once_a_minute_for_all_pages(self) -> None:
        clock, read = ManualClock(), list[date]()

        def report(since: date) -> UsageReport:
            read.append(since)
            if len(read) == 2:
                raise StoreError(HOSTILE)
            return UsageReport()

        recent = RecentUsage(report, clock)
        today = date(2026, 11, 30)
        assert await recent.find(today) is await recent.find(today)
        assert read == [date(2026, 11, 1)]
        await clock.advance(60.0)
        assert ESCAPED in usage_html(await recent.find(today), today, str)

    def test_the_chart_has_a_bar_for_each_day_with_use_and_the_highest_fills_it(self) -> None:
        today = date(2026, 11, 30)
        report = UsageReport({date(2026, 11, 1): UsageSum(1, 1, 0), today: UsageSum(2, 100_000, 0)})
        bars = re.findall(r'<rect x="(\d+)" y="(\d+)" width="14" height="(\d+)">', usage_html(report, today, str))
        assert bars == [("3", "118", "2"), ("583", "0", "120")]


class TestChannels:
    async def set(self, served: Served, setting: str, value: str | None, text: str | None = None) -> None:
        author = Author("discord", "71", HOSTILE)
        await served.harness.intake.choices.set(Scope("thread", "discord:1:2"), setting, author, value, text)

    async def test_a_change_is_shown_with_its_author_and_undone(self, served: Served) -> None:
        await self.set(served, "temperature", "0.5")
        await self.set(served, "temperature", "0.9")
        shown = (await served.panel.until(first)).shown["channels"]
        assert '<th scope="row">discord:1:2</th><td>temperature</td><td>0.9</td>' in shown
        assert f"<bdi>{ESCAPED}</bdi>" in shown
        await served.panel.post("undo", **button_of(shown))
        again = (await served.panel.until(lambda panel: panel.shown["channels"] != shown)).shown["channels"]
        assert "<td>0.5</td><td><bdi>operator</bdi></td>" in again
        here = a_message("", channel=ChannelKey("discord", "1", "2"))
        assert served.harness.settings.at(here).params.temperature == 0.5

    async def test_a_change_that_the_page_does_not_show_yet_is_not_undone(self, served: Served) -> None:
        await self.set(served, "temperature", "0.5")
        button = button_of((await served.panel.until(first)).shown["channels"])
        assert "changed meanwhile" in await served.panel.post("undo", **{**button, "level": "channel"})
        await self.set(served, "top_p", "0.9")
        assert "changed meanwhile" in await served.panel.post("undo", **button)
        changes = await served.harness.intake.choices.changes(Scope("thread", "discord:1:2"), 9)
        assert [change.setting for change in changes] == ["top_p", "temperature"]

    async def test_a_setting_that_config_toml_fixes_is_not_undone(self, served: Served) -> None:
        await self.set(served, "temperature", "0.5")
        button = button_of((await served.panel.until(first)).shown["channels"])
        place = PlaceSection(settings=("top_p",))
        served.harness.settings.reconfigure(Config(channels={"discord:1": place}))
        assert "config.toml does not allow" in await served.panel.post("undo", **button)

    async def test_an_undo_does_not_show_the_words_that_it_restores(self, served: Served) -> None:
        await self.set(served, "triggers", None, "secret parrot")
        await self.set(served, "triggers", None, "another")
        button = button_of((await served.panel.until(first)).shown["channels"])
        said = await served.panel.post("undo", **button)
        assert "triggers" in said
        assert "parrot" not in said
        here = a_message("", channel=ChannelKey("discord", "1", "2"))
        assert served.harness.settings.value("triggers", here) == ("secret parrot",)

    async def test_the_text_of_a_persona_is_not_shown(self, served: Served) -> None:
        await self.set(served, "persona", None, "You are a secret parrot.")
        shown = (await served.panel.until(first)).shown["channels"]
        assert "a text of 24 characters" in shown
        assert "parrot" not in shown

    @pytest.mark.parametrize("body", [{}, {"level": "server", "place": "x", "change": "x"}, {"level": "channel"}])
    async def test_a_malformed_request_is_refused(self, served: Served, body: dict[str, Any]) -> None:
        await served.panel.post("undo", 400, **body)

    async def test_another_page_undoes_nothing(self, served: Served) -> None:
        await self.set(served, "temperature", "0.5")
        button = button_of((await served.panel.until(first)).shown["channels"])
        async with served.panel.http.post("/admin/undo", json=button) as response:
            assert response.status == 403


class TestAudit:
    async def test_all_changes_are_listed_newest_first_and_the_last_of_a_place_is_undone(self, served: Served) -> None:
        choices, mei, ben = (
            served.harness.intake.choices,
            Author("discord", "71", HOSTILE),
            Author("slack", "U1", "Ben"),
        )
        await choices.set(Scope("thread", "discord:1:2"), "temperature", mei, "0.5")
        await choices.set(Scope("channel", "slack:C1"), "persona", ben, None, "You are a secret parrot.")
        await choices.set(Scope("thread", "discord:1:2"), "temperature", mei, "0.9")
        shown = (await served.panel.until(first)).shown["audit"]
        rows = re.findall(r"<bdi>(.*?)</bdi></td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", shown)
        assert rows == [
            (f"{ESCAPED} (discord:71)", "discord:1:2", "temperature", "0.9"),
            ("Ben (slack:U1)", "slack:C1", "persona", "a text of 24 characters"),
            (f"{ESCAPED} (discord:71)", "discord:1:2", "temperature", "0.5"),
        ]
        assert shown.count('class="undo"') == 2
        await served.panel.post("undo", **button_of(shown))
        await served.panel.until(lambda panel: "operator (console:operator)" in panel.shown["audit"])
        assert (await choices.changes(None, 1))[0].value == "0.5"


def button_of(channels: str) -> dict[str, Any]:
    """Return what the first Undo button sends."""
    found = re.findall(r'data-(\w+)="([^"]*)"', channels[channels.index('class="undo"') :])
    return {name: unescape(value) for name, value in found[:3]}


class TestLog:
    @pytest.fixture(autouse=True)
    def _kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Without the handler of an earlier test, which has that test's lines.
        monkeypatch.setattr(logging.getLogger(), "handlers", [LineHandler(io.StringIO())])

    async def test_new_lines_are_added_to_those_shown_the_newest_first(self, served: Served) -> None:
        logger = logging.getLogger("panel")
        logger.warning("first %s", HOSTILE)
        logger.error("second")

        def log_third(panel: Panel) -> bool:
            if len(panel.updates) == 1:
                logger.warning("third")
            return len(panel.updates) == 2

        panel = await served.panel.until(log_third)
        before, after = (update["log"] for update in panel.updates)
        words = re.findall(r"<b>(\w+)</b> <span>(.*?)</span>", before["html"])
        assert before["is_first"]
        assert words == [("error", "second"), ("warning", f"first {ESCAPED}")]
        assert not after["is_first"]
        assert re.findall("<span>(.*?)</span>", after["html"]) == ["third"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"level": "info", "event": "ready", "logger": "bot.app", "count": 2}', "ready [bot.app] count=2"),
        ('{"event": "bad", "logger": "bot", "exception": "Traceback\\n  it"}', "bad [bot]\nTraceback\n  it"),
        ('{"event": "name \\u202egnp", "logger": "bot"}', "name \\u202egnp [bot]"),
        ("18:25:01 [info     ] ready [bot.app] count=2", "ready [bot.app] count=2"),
        ("\x1b[2m18:25:01\x1b[0m [\x1b[32minfo     \x1b[0m] \x1b[1mready\x1b[0m", "ready"),
        ('{"event": "cut', '{"event": "cut'),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_line_of_any_format_is_shown_as_words(line: str, words: str) -> None:
    assert words_of(line) == words
