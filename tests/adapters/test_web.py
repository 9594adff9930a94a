"""The web chat over HTTP: a real server, store and engine of scripted answers, without a browser."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import structlog

from bot.adapters.web.adapter import SECRET, WebAdapter
from bot.adapters.web.messenger import WebMessenger
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.session import COOKIE
from bot.adapters.web.sign_in.opening import Entrance
from bot.adapters.web.streams import MOST_STREAMS
from bot.chat.exchanges import Exchanges
from bot.chat.files import Files
from bot.config.http import KeySection, ServerSection
from bot.config.places import PersonaSection
from bot.config.schema import AccessSection, Config, FeedbackSection
from bot.domain import Attachment, ChannelKey
from bot.errors import StoreError
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from bot.util.clock import MonotonicClock
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.platform import TIMEOUT
from tests.reading.hostile_pictures import drawn


@asynccontextmanager
async def served(folder: Path, engine: ScriptedEngine, access: AccessSection | None = None) -> AsyncIterator[str]:
    """Serve the page and the APIs on the database in `folder`; yield the address."""
    async with (
        engine,
        make_harness(folder, engine, access=access, limits=NO_LIMITS) as harness,
        served_on(folder, harness) as url,
    ):
        yield url


@asynccontextmanager
async def served_on(
    folder: Path,
    harness: Harness,
    sources: PanelSources | None = None,
    entrance: Entrance | None = None,
    port: int = 0,
) -> AsyncIterator[str]:
    clock = MonotonicClock()
    adapter = WebAdapter(folder, clock, sources, entrance)
    backend = Backend(harness.engine, harness.settings, harness.access, 8, Metrics())
    async with serve_apis(ServerSection(port=port), backend, clock, adapter.pages) as port:
        running = asyncio.create_task(adapter.run(harness.intake))
        try:
            while not adapter.is_connected:  # noqa: ASYNC110 - a moment, and nothing tells its end
                await asyncio.sleep(0)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@dataclass
class Tab:
    """A page of one conversation, as the script keeps it."""

    http: aiohttp.ClientSession
    chat: str
    exchanges: dict[str, dict[str, Any]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    is_replaced: bool = False
    listed: int = 100
    has_older: bool = False

    async def until(self, condition: Callable[["Tab"], bool]) -> "Tab":
        """Open the stream and read until the condition holds."""
        async with asyncio.timeout(TIMEOUT), self.http.get("/web/events", params=self._query) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                self._take(line.decode().strip())
                if condition(self):
                    return self
        raise AssertionError(f"the stream ended: {self}")

    @property
    def _query(self) -> dict[str, str]:
        return {"chat": self.chat, "listed": str(self.listed)}

    def _take(self, line: str) -> None:
        if line == "event: replaced":
            self.is_replaced = True
        if not line.startswith("data: ") or self.is_replaced:
            return
        news = json.loads(line.removeprefix("data: "))
        if news.get("reset"):
            self.exchanges = {}
        self.exchanges |= {each["id"]: each for each in news["exchanges"]}
        self.order = news.get("order", self.order)
        self.chats = news.get("chats", self.chats)
        self.has_older = news.get("older", self.has_older)

    @property
    def answers(self) -> list[str]:
        """The texts of finished replies."""
        shown = [self.exchanges[id] for id in self.order]
        return [each["text"] or each["notice"] for each in shown if not each["open"]]

    async def ask(self, text: str) -> str:
        id = uuid4().hex
        await self.post("ask", id=id, text=text)
        return id

    async def post(self, name: str, status: int = 200, **body: Any) -> str:
        async with self.http.post(f"/web/{name}", json={"chat": self.chat, **body}, headers=own(self.http)) as response:
            said = await response.text()
            assert response.status == status, said
            return said


def own(http: aiohttp.ClientSession) -> dict[str, str]:
    """Return the header that a browser adds to a request of the page."""
    return {"Origin": str(http._base_url).rstrip("/")}


@asynccontextmanager
async def browser(url: str, cookies: dict[str, str] | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    # aiohttp keeps no cookies of IP addresses unless told to.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(url, cookie_jar=jar, cookies=cookies) as http:
        async with http.post("/web/session", headers=own(http)) as response:
            assert response.status == 200
        yield http


def cookie_of(http: aiohttp.ClientSession) -> dict[str, str]:
    return {cookie.key: cookie.value for cookie in http.cookie_jar if cookie.key == COOKIE}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(default=["It ", "is ", "**天气**。"])


@pytest.fixture
async def url(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[str]:
    async with served(tmp_path, engine) as url:
        yield url


@pytest.fixture
async def tab(url: str) -> AsyncIterator[Tab]:
    async with browser(url) as http:
        yield Tab(http, uuid4().hex)


def has(count: int) -> Callable[[Tab], bool]:
    return lambda tab: len(tab.answers) == count


class TestConversation:
    async def test_a_question_is_answered_and_stays_after_a_reload(self, tab: Tab) -> None:
        id = await tab.ask("What is it?\n\nReally?")
        await tab.until(has(1))
        again = await Tab(tab.http, tab.chat).until(has(1))
        assert again.order == [id]
        assert again.exchanges[id]["question"] == "What is it?\n\nReally?"
        assert again.exchanges[id]["html"] == "<p>It is <strong>天气</strong>。</p>\n"
        assert again.chats == [{"id": tab.chat, "title": "What is it? Really?"}]

    async def test_a_question_that_is_sent_twice_is_answered_once(self, tab: Tab, engine: ScriptedEngine) -> None:
        id = await tab.ask("once")
        await tab.post("ask", id=id, text="once")
        await tab.until(has(1))
        assert len(engine.requests) == 1

    async def test_a_growing_answer_is_shown_and_stopped(self, tab: Tab, engine: ScriptedEngine) -> None:
        engine.add(["begun ", asyncio.Event()])
        id = await tab.ask("long")
        await tab.until(lambda tab: "begun" in tab.exchanges.get(id, {}).get("html", ""))
        assert tab.exchanges[id]["open"]
        await tab.post("press", reply=tab.exchanges[id]["reply"], action="stop")
        await tab.until(has(1))
        assert "stopped" in tab.exchanges[id]["notice"]

    async def test_an_answer_is_regenerated_in_place(self, tab: Tab, engine: ScriptedEngine) -> None:
        engine.add("first")
        id = await tab.ask("again")
        await tab.until(has(1))
        await tab.post("press", reply=tab.exchanges[id]["reply"], action="retry")
        await tab.until(lambda tab: tab.answers == ["It is **天气**。"])
        assert tab.order == [id]

    async def test_a_vote_is_saved_changed_and_taken_back(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        async with engine, make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
            harness.settings.feedback = FeedbackSection(enabled=True)
            async with served_on(tmp_path, harness) as url, browser(url) as http:
                tab = Tab(http, uuid4().hex)
                id = await tab.ask("What is it?")
                shown = (await tab.until(has(1))).exchanges[id]
                assert shown["rated"]
                said, votes = [], [shown["vote"]]
                for each in ("up", "down", "down"):
                    said.append(await tab.post("press", reply=shown["reply"], action=each))
                    reloaded = await Tab(http, tab.chat).until(has(1))
                    votes.append(reloaded.exchanges[id]["vote"])
        assert votes == ["", "up", "down", ""]
        assert [json.loads(each)["notice"] for each in said] == [
            "Saved: 👍. Press it again to take it back.",
            "Saved: 👎. Press it again to take it back.",
            "Your vote was taken back.",
        ]

    async def test_no_vote_is_asked_for_by_default(self, tab: Tab) -> None:
        id = await tab.ask("What is it?")
        await tab.until(has(1))
        assert not tab.exchanges[id]["rated"]

    @pytest.mark.parametrize("text", ["What is it?", "/help"])
    async def test_a_page_that_reads_before_the_row_is_closed_shows_its_end(
        self, tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        goes_on = asyncio.Event()
        async with engine, make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
            record = harness.store.record_answer

            async def record_late(*args: Any, **kwargs: Any) -> bool:
                await goes_on.wait()
                return await record(*args, **kwargs)

            monkeypatch.setattr(harness.store, "record_answer", record_late)

            def is_shown(tab: Tab) -> bool:
                """Let the row be closed once the page has all that was said."""
                if any(each["open"] and each["html"] for each in tab.exchanges.values()):
                    goes_on.set()
                return has(1)(tab)

            async with served_on(tmp_path, harness) as url, browser(url) as http:
                tab = Tab(http, uuid4().hex)
                await tab.ask(text)
                await tab.until(is_shown)
        assert goes_on.is_set()

    async def test_an_edited_question_is_answered_again(self, tab: Tab, engine: ScriptedEngine) -> None:
        id = await tab.ask("wrong")
        await tab.until(has(1))
        engine.add("right answer")
        await tab.post("edit", id=id, text="right")
        await tab.until(lambda tab: tab.answers == ["right answer"])
        assert tab.exchanges[id]["question"] == "right"

    async def test_a_command_is_carried_out(self, tab: Tab) -> None:
        await tab.ask("remember")
        await tab.ask("/clear")
        await tab.until(lambda tab: len(tab.order) == 1 and len(tab.answers) == 1)
        assert "Deleted: " in tab.answers[0]

    async def test_a_deleted_conversation_is_gone_and_others_stay(self, tab: Tab) -> None:
        other = Tab(tab.http, uuid4().hex)
        await tab.ask("one")
        await other.ask("two")
        await tab.until(has(1))
        await other.until(has(1))
        await tab.post("delete")
        await other.until(lambda other: [each["title"] for each in other.chats] == ["two"])
        assert (await Tab(tab.http, tab.chat).until(lambda tab: bool(tab.chats))).order == []

    async def test_the_newest_conversations_are_listed_and_older_ones_on_request(self, tab: Tab) -> None:
        tabs = [Tab(tab.http, uuid4().hex) for _ in range(3)]
        for number, each in enumerate(tabs):
            await each.ask(f"question {number}")
            await each.until(has(1))
        shown = [await Tab(tab.http, tab.chat, listed=count).until(lambda tab: bool(tab.chats)) for count in (2, 3)]
        listed = [([chat["title"] for chat in each.chats], each.has_older) for each in shown]
        assert listed == [(["question 2", "question 1"], True), (["question 2", "question 1", "question 0"], False)]

    @pytest.mark.parametrize("count", ["0", "10001", "-1", "x", "٣", ""])
    async def test_a_wrong_number_of_conversations_is_refused(self, tab: Tab, count: str) -> None:
        async with tab.http.get("/web/events", params={"chat": tab.chat, "listed": count}) as response:
            assert (response.status, await response.text()) == (400, "listed is not a number from 1 to 10000")

    async def test_two_tabs_show_the_same(self, tab: Tab) -> None:
        second = Tab(tab.http, tab.chat)
        reading = asyncio.create_task(second.until(has(1)))
        await tab.ask("shared")
        await tab.until(has(1))
        assert (await reading).exchanges == tab.exchanges


async def test_an_answer_that_a_kill_cut_off_is_complete_after_the_restart(tmp_path: Path) -> None:
    first = ScriptedEngine(["half ", asyncio.Event()])
    async with served(tmp_path, first) as url, browser(url) as http:
        tab = Tab(http, uuid4().hex)
        id = await tab.ask("long")
        await tab.until(lambda tab: "half" in tab.exchanges.get(id, {}).get("html", ""))
        cookies = cookie_of(http)
    async with served(tmp_path, ScriptedEngine("the whole answer")) as url, browser(url, cookies) as http:
        again = await Tab(http, tab.chat).until(has(1))
        assert again.answers == ["the whole answer"]
        assert again.order == [id]


class TestProtection:
    async def test_a_session_sees_no_conversation_of_another(self, tab: Tab, url: str) -> None:
        id = await tab.ask("private")
        await tab.until(has(1))
        async with browser(url) as other:
            theirs = Tab(other, tab.chat)
            await theirs.post("press", reply=tab.exchanges[id]["reply"], action="retry")
            await theirs.post("edit", id=id, text="changed")
            await theirs.post("delete")
            await theirs.ask("mine")
            await theirs.until(has(1))
            assert [theirs.exchanges[each]["question"] for each in theirs.order] == ["mine"]
        assert [each["question"] for each in (await Tab(tab.http, tab.chat).until(has(1))).exchanges.values()] == [
            "private"
        ]

    @pytest.mark.parametrize("cookie", ["", "x", f"{'0' * 32}.{'0' * 64}"])
    async def test_a_forged_session_is_refused(self, url: str, cookie: str) -> None:
        async with (
            aiohttp.ClientSession(url, cookies={COOKIE: cookie}) as http,
            http.get("/web/events", params={"chat": "0" * 32}) as response,
        ):
            assert response.status == 401

    async def test_the_cookie_is_for_this_page_only_and_its_secret_for_its_owner(
        self, url: str, tmp_path: Path
    ) -> None:
        async with aiohttp.ClientSession(url) as http, http.post("/web/session", headers=own(http)) as response:
            said = response.headers["Set-Cookie"].lower()
            assert "httponly" in said
            assert "samesite=strict" in said
        assert (tmp_path / SECRET).stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"X-Forwarded-For": "1.2.3.4", "Sec-Fetch-Site": "same-origin"},
        ],
    )
    @pytest.mark.parametrize("name", ["session", "ask", "edit", "press", "delete"])
    async def test_another_page_changes_nothing(self, tab: Tab, headers: dict[str, str], name: str) -> None:
        body = {"chat": tab.chat, "id": uuid4().hex, "text": "x", "reply": "x", "action": "retry"}
        async with tab.http.post(f"/web/{name}", json=body, headers=headers) as response:
            assert response.status == 403
        assert (await tab.until(lambda tab: True)).order == []

    @pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"X-Real-IP": "1.2.3.4"}, {"Forwarded": "for=1"}])
    async def test_other_machines_get_a_sentence(self, url: str, headers: dict[str, str]) -> None:
        async with aiohttp.ClientSession(url) as http, http.get("/", headers=headers) as response:
            assert response.status == 403
            assert "on this machine only" in await response.text()

    async def test_the_page_runs_its_own_script_only_and_asks_no_third_party(self, url: str) -> None:
        async with aiohttp.ClientSession(url) as http, http.get("/", headers={"Accept-Language": "zh-CN"}) as response:
            page = await response.text()
            policy = response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'; script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http:" not in page
        assert '<html lang="zh-CN">' in page
        assert "新对话" in page

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"[" * 100_000, b'{"chat": "x"}', b'{"chat": 1}'])
    async def test_a_malformed_request_is_refused(self, tab: Tab, body: bytes) -> None:
        async with tab.http.post("/web/ask", data=body, headers=own(tab.http)) as response:
            assert response.status == 400

    async def test_a_long_request_is_refused(self, tab: Tab) -> None:
        body = io.BytesIO(b'{"text": "' + b"x" * 2**23)
        async with tab.http.post("/web/ask", data=body, headers=own(tab.http)) as response:
            assert response.status == 413

    async def test_of_too_many_streams_the_oldest_ends(self, tab: Tab) -> None:
        oldest, is_open = Tab(tab.http, tab.chat), asyncio.Event()

        def is_replaced(tab: Tab) -> bool:
            is_open.set()
            return tab.is_replaced

        reading = asyncio.create_task(oldest.until(is_replaced))
        async with asyncio.timeout(TIMEOUT):
            await is_open.wait()
            others = [asyncio.create_task(Tab(tab.http, tab.chat).until(has(1))) for _ in range(MOST_STREAMS)]
            await reading
            await tab.ask("seen by the others")
            await asyncio.gather(*others[1:])
        others[0].cancel()
        await asyncio.gather(others[0], return_exceptions=True)


async def test_a_person_who_is_not_admitted_is_told(tmp_path: Path, engine: ScriptedEngine) -> None:
    access = AccessSection(allow_users=("discord:1",))
    async with served(tmp_path, engine, access) as url, browser(url) as http:
        said = await Tab(http, uuid4().hex).post("ask", 403, id=uuid4().hex, text="hello")
    assert said == "You may not use this bot here."


async def test_an_error_of_the_database_is_shown_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Exchanges, channel: ChannelKey) -> int:
        raise StoreError("/srv/secret/bot.db: database or disk is full")

    monkeypatch.setattr(Exchanges, "clear", fail)
    with structlog.testing.capture_logs() as logs:
        async with served(tmp_path, ScriptedEngine()) as url, browser(url) as http:
            said = await Tab(http, uuid4().hex).post("delete", 503)
    assert said == "My database has a problem, so I cannot answer now. Please try again later."
    assert ["/srv/secret" in line["error"] for line in logs if line["event"] == "web: database failed"] == [True]


def test_the_page_is_on_where_only_this_machine_can_reach_it() -> None:
    keys = {"alice": KeySection.model_validate({"secret": "x"})}
    assert ServerSection().serves_web
    assert not ServerSection(keys=keys).serves_web
    assert not ServerSection(host="0.0.0.0", keys=keys).serves_web
    assert ServerSection(web=True, keys=keys).serves_web
    assert not ServerSection(web=False).serves_web


async def test_the_api_of_chatglm_stays_beside_the_page(tab: Tab) -> None:
    async with tab.http.post("/", json={"prompt": "hello"}) as response:
        assert (await response.json())["response"] == "It is **天气**。"


async def test_the_form_changes_the_settings_of_one_conversation(tab: Tab, engine: ScriptedEngine) -> None:
    shown = json.loads(await tab.post("settings"))["fields"]
    assert [each["name"] for each in shown] == ["temperature", "top_p", "max_answer_tokens"]
    for setting, value in {"temperature": "0.25", "top_p": "0.9", "max_answer_tokens": "64"}.items():
        changed = json.loads(await tab.post("settings", setting=setting, value=value))["fields"]
        assert {"name": setting, "value": value, "options": []} in changed
    await tab.ask("hello")
    await tab.until(lambda tab: len(tab.answers) == 1)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.25, 0.9, 64)

    other = Tab(tab.http, uuid4().hex)
    assert json.loads(await other.post("settings"))["fields"] == shown
    await tab.post("settings", setting="temperature", value="clear")
    assert json.loads(await tab.post("settings"))["fields"][0] == shown[0]


@pytest.mark.parametrize("value", ["hot", "3", "", "0.5\n/pause", "0.5 /pause"])
async def test_a_value_that_the_form_cannot_have_changes_nothing(tab: Tab, value: str) -> None:
    before = json.loads(await tab.post("settings"))["fields"]
    reply = json.loads(await tab.post("settings", setting="temperature", value=value))
    assert reply["fields"] == before
    assert reply["notice"]
    await tab.post("settings", status=400, setting="persona", value="pirate")


async def test_the_form_says_that_a_persona_is_a_text_of_the_chat(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=NO_LIMITS) as harness, served_on(tmp_path, harness) as url:
        harness.settings.reconfigure(Config(personas={"pirate": PersonaSection(system_prompt="Talk like a pirate.")}))
        async with browser(url) as http:
            tab = Tab(http, uuid4().hex)

            async def shown() -> list[str]:
                fields = json.loads(await tab.post("settings"))["fields"]
                return [each["value"] for each in fields if each["name"] == "persona"]

            assert await shown() == [""]
            await tab.ask("/persona set You are a parrot.")
            await tab.until(lambda tab: any("Persona" in answer for answer in tab.answers))
            assert await shown() == ["*"]
            await tab.post("settings", setting="persona", value="pirate")
            assert await shown() == ["pirate"]


class TestFiles:
    async def upload(self, tab: Tab, name: str, content: bytes, media_type: str = "") -> dict[str, Any]:
        headers = {**own(tab.http), "Content-Type": media_type or "application/octet-stream"}
        params = {"chat": tab.chat, "name": name}
        async with tab.http.post("/web/read", params=params, data=io.BytesIO(content), headers=headers) as response:
            assert response.status == 200, await response.text()
            read: dict[str, Any] = await response.json()
            return read

    async def test_a_file_is_read_and_goes_to_the_model_with_the_question(
        self, tab: Tab, engine: ScriptedEngine
    ) -> None:
        read = await self.upload(tab, "订单.csv", "品名,数量\n茶,3\n".encode())
        assert (read["notice"], read["file"]["name"], read["file"]["is_cut"]) == ("", "订单.csv", False)
        id = uuid4().hex
        await tab.post("ask", id=id, text="How much tea?", files=[read["file"]])
        await tab.until(has(1))
        assert "茶,3" in engine.requests[-1].messages[-1].content
        assert [file["name"] for file in tab.exchanges[id]["files"]] == ["订单.csv"]

        await tab.post("edit", id=id, text="How many teas?", files=tab.exchanges[id]["files"])
        await tab.until(lambda tab: tab.exchanges[id]["question"] == "How many teas?" and has(1)(tab))
        assert "茶,3" in engine.requests[-1].messages[-1].content

    async def test_a_picture_goes_to_a_model_that_sees(self, tab: Tab, engine: ScriptedEngine) -> None:
        engine.most_pictures = 4
        read = await self.upload(tab, "cat.png", drawn("PNG", (3000, 10)), "image/png")
        assert (read["notice"], read["file"]["text"]) == ("", "")
        id = uuid4().hex
        await tab.post("ask", id=id, text="", files=[read["file"]])
        await tab.until(has(1))
        (picture,) = engine.requests[-1].messages[-1].pictures
        assert picture.height == 5

        await tab.post("edit", id=id, text="What is it?", files=tab.exchanges[id]["files"])
        await tab.until(lambda tab: tab.exchanges[id]["question"] == "What is it?" and has(1)(tab))
        assert len(engine.requests[-1].messages[-1].pictures) == 1

    @pytest.mark.parametrize(
        ("picture", "told"),
        [
            ("data:image/jpeg;base64,####", "damaged"),
            ("data:image/jpeg;base64,AAAA", "cannot read files of this kind"),
            ("http://127.0.0.1/cat.jpg", "could not be fetched"),
        ],
    )
    async def test_a_broken_picture_is_named(self, tab: Tab, engine: ScriptedEngine, picture: str, told: str) -> None:
        engine.most_pictures = 4
        await tab.post("ask", id=uuid4().hex, text="", files=[{"name": "a", "size": 3, "text": "", "picture": picture}])
        await tab.until(has(1))
        assert told in tab.answers[0]

    async def test_of_an_album_four_pictures_are_shown_and_the_others_named(
        self, tab: Tab, engine: ScriptedEngine
    ) -> None:
        engine.most_pictures = 8
        read = await self.upload(tab, "a.png", drawn("PNG"), "image/png")
        album = [{**read["file"], "name": f"{number}.png"} for number in range(6)]
        await tab.post("ask", id=uuid4().hex, text="What is it?", files=album)
        (shown,) = (await tab.until(has(1))).exchanges.values()
        assert len(engine.requests[-1].messages[-1].pictures) == 4
        assert "I did not look at 4.png, 5.png: too many pictures at once." in shown["notice"]
        assert [file["name"] for file in shown["files"]] == [f"{number}.png" for number in range(6)]

    async def test_the_largest_pictures_fit_into_a_question_and_larger_ones_are_refused(self, tab: Tab) -> None:
        for letters, status in ((500_000, 200), (600_000, 413)):
            file = {"name": "a", "size": 3, "text": "", "picture": "data:image/jpeg;base64," + "A" * letters}
            asked = {"chat": tab.chat, "id": uuid4().hex, "text": "", "files": [file] * 10}
            body = io.BytesIO(json.dumps(asked).encode())
            async with tab.http.post("/web/ask", data=body, headers=own(tab.http)) as response:
                assert response.status == status

    async def test_a_file_alone_is_a_question_with_its_name_as_title(self, tab: Tab) -> None:
        read = await self.upload(tab, "notes.txt", b"remember the milk")
        await tab.post("ask", id=uuid4().hex, text="", files=[read["file"]])
        await tab.until(has(1))
        assert tab.chats == [{"id": tab.chat, "title": "notes.txt"}]

    @pytest.mark.parametrize(
        ("name", "content", "media_type", "told"),
        [
            ("cat.png", b"\x89PNG", "image/png", "cannot see pictures"),
            ("broken.pdf", b"%PDF-1.7 nothing more", "application/pdf", "damaged"),
            ("empty.txt", b"", "text/plain", "no text"),
            ("large.txt", b"a" * (20 * 2**20 + 1), "text/plain", "the limit is 20 MB"),
        ],
    )
    async def test_a_file_that_is_not_read_is_told_about(
        self, tab: Tab, name: str, content: bytes, media_type: str, told: str
    ) -> None:
        read = await self.upload(tab, name, content, media_type)
        assert told in read["notice"]
        assert name in read["notice"]
        assert read["file"]["text"] == ""

    async def test_the_longest_files_fit_into_a_question(self, tab: Tab, engine: ScriptedEngine) -> None:
        files = [{"name": f"{n}.txt", "size": 1, "text": "茶" * 50_000, "is_cut": False} for n in range(10)]
        body = io.BytesIO(
            json.dumps({"chat": tab.chat, "id": uuid4().hex, "text": "", "files": files}, ensure_ascii=False).encode()
        )
        async with tab.http.post("/web/ask", data=body, headers=own(tab.http)) as response:
            assert response.status == 200, await response.text()
        await tab.until(has(1))

    async def test_uploads_that_trickle_in_hold_up_no_other_file(self, tab: Tab) -> None:
        go_on = asyncio.Event()

        async def trickle() -> AsyncIterator[bytes]:
            yield b"t"
            await go_on.wait()

        async def upload(body: AsyncIterator[bytes]) -> None:
            params = {"chat": tab.chat, "name": "slow.txt"}
            async with tab.http.post("/web/read", params=params, data=body, headers=own(tab.http)) as response:
                await response.read()

        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
            tasks.create_task(upload(trickle()))
            read = await self.upload(tab, "notes.txt", b"remember the milk")
            assert read["file"]["text"] == "remember the milk"
            go_on.set()

    async def test_few_files_are_in_memory_fewer_of_a_session_and_too_many_are_refused(
        self, tab: Tab, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held, go_on, is_full = list[bytes](), asyncio.Event(), asyncio.Event()

        async def wait_to_be_read(
            _: Files, file: Attachment, chunks: AsyncIterator[bytes], *, sees: bool
        ) -> Attachment:
            held.append(b"".join([chunk async for chunk in chunks]))
            if len(held) == 4:
                is_full.set()
            await go_on.wait()
            return file

        async def upload(http: aiohttp.ClientSession, content: bytes) -> int:
            params = {"chat": tab.chat, "name": "notes.txt"}
            async with http.post("/web/read", params=params, data=io.BytesIO(content), headers=own(http)) as response:
                assert response.status == 200 or "Too many files" in await response.text()
                return response.status

        monkeypatch.setattr(Files, "read_upload", wait_to_be_read)
        async with asyncio.timeout(TIMEOUT), browser(url) as second, browser(url) as third:
            first = [asyncio.create_task(upload(tab.http, b"first")) for _ in range(7)]
            refused = await next(asyncio.as_completed(first))
            assert (refused, held) == (429, [b"first"] * 2)
            others = [asyncio.create_task(upload(http, b"other")) for http in (second, third) for _ in range(2)]
            await is_full.wait()
            await asyncio.sleep(0.05)  # nothing tells that the fifth waits
            assert held == [b"first"] * 2 + [b"other"] * 2
            go_on.set()
            assert sorted(await asyncio.gather(*first, *others)) == [200] * 10 + [429]

    async def test_a_question_without_files_waits_for_no_upload(self, tab: Tab) -> None:
        uploads, go_on = list[asyncio.Task[int]](), asyncio.Event()

        async def trickle() -> AsyncIterator[bytes]:
            yield b'{"text": "'
            await go_on.wait()

        async def send() -> int:
            async with tab.http.post("/web/ask", data=trickle(), headers=own(tab.http)) as response:
                return response.status

        async with asyncio.timeout(TIMEOUT):
            uploads = [asyncio.create_task(send()) for _ in range(7)]
            assert await next(asyncio.as_completed(uploads)) == 429
            await tab.ask("What is it?")
            await tab.until(has(1))
            go_on.set()
            assert sorted(await asyncio.gather(*uploads)) == [400] * 6 + [429]

    @pytest.mark.parametrize(
        "files", ["a.txt", [{}], [{"name": "a", "size": "1", "text": ""}], [{"name": "a"}] * 11, [None]]
    )
    async def test_what_is_no_list_of_files_is_refused(self, tab: Tab, files: object) -> None:
        await tab.post("ask", status=400, id=uuid4().hex, text="hello", files=files)


@pytest.mark.parametrize("path", ["/web/ask", "/web/read", "/v1/chat/completions", "/chat"])
async def test_a_connection_that_is_cut_within_a_request_is_no_error(
    url: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with browser(url) as http:
        cookie = "; ".join(f"{name}={value}" for name, value in cookie_of(http).items())
        more = "".join(f"{name}: {value}\r\n" for name, value in own(http).items())
        host = url.removeprefix("http://")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{more}"
            "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{".encode()
        )
        await writer.drain()
        writer.write_eof()
        await reader.read()
        writer.close()
        async with http.get("/") as response:
            assert response.status == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_many_open_pages_share_the_edits() -> None:
    pages = 1
    messenger = WebMessenger(lambda message: None, open_pages=lambda: pages)
    channel = ChannelKey("web", "session")
    alone = messenger.edit_interval(channel)
    pages = 10_000
    assert messenger.edit_interval(channel) >= 50 * alone
