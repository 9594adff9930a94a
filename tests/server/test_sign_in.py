"""Sign-in to the pages from elsewhere, over HTTP: a real server and store, without a browser."""

import asyncio
import logging
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from itsdangerous import TimestampSigner

from bot.adapters.web import events, page
from bot.adapters.web.sign_in.attempts import MOST_ADDRESSES, MOST_ATTEMPTS, SECONDS, Attempts
from bot.adapters.web.streams import MOST_STREAMS
from bot.chat.sign_in import LINK_SECONDS
from bot.config.http import ServerSection
from bot.config.schema import AccessSection
from bot.domain import Author
from tests.adapters.test_web import Tab
from tests.harness.elsewhere import ADA, MEI, PUBLIC, Elsewhere, Visitor, elsewhere
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import NO_LIMITS, set_paused
from tests.server.attempts import attack, proxied_server

HTTPS = "https://bot.example.org"
PROXY = {"X-Forwarded-For": "192.0.2.7"}


def behind_proxy(**settings: Any) -> ServerSection:
    return ServerSection(public_url=HTTPS, trusted_proxies=("127.0.0.1",), panel=True, **settings)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(default="an answer")


@pytest.fixture
async def place(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Elsewhere]:
    async with elsewhere(tmp_path, engine) as place:
        yield place


class TestLink:
    async def test_the_link_of_an_admin_leads_to_the_panel_after_its_button(self, place: Elsewhere) -> None:
        async with place.browser() as ada:
            assert await ada.get("/admin", 303) == "/web/signin?next=/admin"
            link = await place.link()
            assert link.startswith(f"{PUBLIC}/web/signin#")
            for _ in range(3):  # as previews of links do
                assert "works once" in await ada.get("/web/signin")
            assert await ada.use(link) == {"next": "/admin"}
            assert "Sign out" in await ada.get("/admin")
            await ada.post("/admin/pause", paused=True)
        assert place.harness.access.is_paused

    async def test_a_replayed_or_stolen_link_is_refused_with_one_sentence(self, place: Elsewhere) -> None:
        async with place.browser() as ada, place.browser() as thief:
            link = await place.link()
            await ada.use(link)
            sentences = {await thief.use(link, 403), await thief.use(f"{link}x", 403), await thief.use("#", 403)}
            await place.link()
            old = await place.link()
            await place.clock.advance(LINK_SECONDS)
            sentences |= {await thief.use(old, 403), await thief.post("/web/signin", 403, token=7)}
            assert sentences == {"This sign-in is not valid: it was used already, or is too old. Please start again."}
            await thief.get("/admin", 303)

    async def test_losing_the_right_ends_the_session(self, place: Elsewhere) -> None:
        async with place.browser() as ada:
            await ada.sign_in()
            place.harness.access.reconfigure(AccessSection(admins=(MEI.key,)), NO_LIMITS)
            await ada.get("/admin", 303)
            assert "session has ended" in await ada.post("/admin/pause", 401, paused=True)

    async def test_the_page_of_a_link_cannot_lead_elsewhere(self, place: Elsewhere) -> None:
        async with place.browser() as ada:
            page = await ada.get("/web/signin?next=//evil.example")
            assert "evil" not in page
            token = (await place.link()).partition("#")[2]
            assert await ada.post("/web/signin", token=token, next="https://evil.example") == {"next": "/admin"}


class TestSession:
    async def test_the_cookie_is_for_this_site_and_no_script(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        async with elsewhere(tmp_path, engine, behind_proxy()) as place, place.browser(**PROXY) as ada:
            link = await place.link()
            async with ada.http.post(
                "/web/signin", json={"token": link.partition("#")[2]}, headers={"Origin": HTTPS}
            ) as response:
                cookie = response.headers["Set-Cookie"]
        assert cookie.startswith("__Host-chat_person=")
        assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure", "Max-Age=43200"} <= set(cookie.split("; "))
        assert stat.S_IMODE((tmp_path / "web.secret").stat().st_mode) == 0o600

    async def test_signing_out_ends_the_session_also_of_a_copied_cookie(self, place: Elsewhere) -> None:
        async with place.browser() as ada, place.browser() as copy:
            await ada.sign_in()
            copy.take_cookies(ada.cookies)
            await copy.open()
            await ada.post("/web/signout", 204)
            await ada.get("/admin", 303)
            await copy.post("/web/session", 401)

    async def test_a_restart_ends_no_session(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        async with elsewhere(tmp_path, engine) as place, place.browser() as ada:
            await ada.sign_in()
            cookies = ada.cookies
        async with elsewhere(tmp_path, engine) as place, place.browser() as ada:
            ada.take_cookies(cookies)
            await ada.open()
            await ada.get("/admin")

    @pytest.mark.parametrize("cookie", ["", "x", "a.b.c", "é" * 9, "." * 4000])
    async def test_a_made_up_cookie_is_refused(self, place: Elsewhere, cookie: str) -> None:
        async with place.browser() as visitor:
            await visitor.get("/admin", 303, Cookie=f"chat_person={cookie}")

    async def test_it_ends_after_its_hours(self, place: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
        async with place.browser() as ada:
            await ada.sign_in()
            self._let_pass(monkeypatch, 12 * 3600 + 1)
            await ada.get("/admin", 303)

    async def test_one_that_ends_in_the_middle_of_an_answer_loses_nothing(
        self, place: Elsewhere, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page, "PING_SECONDS", 0.01)
        monkeypatch.setattr(events, "PING_SECONDS", 0.01)
        go_on = asyncio.Event()
        engine.add(["one ", go_on, "two"])
        async with place.browser() as ada:
            await ada.sign_in()
            tab = Tab(ada.http, uuid4().hex)
            question: dict[str, Any] = {"chat": tab.chat, "id": uuid4().hex, "text": "count", "files": []}
            await ada.post("/web/ask", **question)
            async with ada.http.get("/web/events", params={"chat": tab.chat}) as stream:
                await stream.content.readuntil(b"one")
                self._let_pass(monkeypatch, 12 * 3600 + 1)
                await stream.content.read()  # until the server ends it
            later: dict[str, Any] = {"chat": tab.chat, "id": uuid4().hex, "text": "and then?", "files": []}
            assert "session has ended" in await ada.post("/web/ask", 401, **later)
            go_on.set()
            await ada.sign_in()
            await ada.post("/web/ask", **later)
            await tab.until(lambda tab: tab.answers == ["one two", "an answer"])

    def _let_pass(self, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
        now = TimestampSigner.get_timestamp
        monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now(signer) + seconds)


class TestConversations:
    async def test_a_person_has_theirs_in_every_browser_and_no_one_elses(self, place: Elsewhere) -> None:
        chat = uuid4().hex
        async with place.browser() as ada, place.browser() as again, place.browser() as mei:
            for visitor, person in ((ada, ADA), (again, ADA), (mei, MEI)):
                await visitor.sign_in(person)
            assert await ada.open() == await again.open() != await mei.open()
            await ada.post("/web/ask", chat=chat, id=uuid4().hex, text="a secret", files=[])
            tab = await Tab(again.http, chat).until(lambda tab: tab.answers == ["an answer"])
            assert [each["title"] for each in tab.chats] == ["a secret"]
            other = await Tab(mei.http, chat).until(lambda tab: True)
            assert (other.order, other.chats) == ([], [])

    async def test_the_author_is_the_person_of_the_chat_platform(self, place: Elsewhere) -> None:
        async with place.browser() as ada:
            await ada.sign_in()
            chat = uuid4().hex
            await ada.post("/web/ask", chat=chat, id=uuid4().hex, text="/limits", files=[])
            tab = await Tab(ada.http, chat).until(lambda tab: len(tab.answers) == 1)
            assert "requests_per_minute" in tab.answers[0]  # a command of admins


class TestRights:
    async def test_admins_are_no_operators(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        server = ServerSection(public_url=PUBLIC, panel=True, operators=(MEI.key,))
        async with elsewhere(tmp_path, engine, server) as place, place.browser() as ada, place.browser() as mei:
            await ada.sign_in(ADA)
            await mei.sign_in(MEI)
            assert 'data-right="admin"' in await ada.get("/admin")
            assert 'data-right="operator"' in await mei.get("/admin")


class TestTabs:
    async def test_many_tabs_of_one_admin_do_not_pause_those_of_another(self, place: Elsewhere) -> None:
        async with place.browser() as ada, place.browser() as mei:
            await ada.sign_in(ADA)
            await mei.sign_in(MEI)
            async with AsyncExitStack() as tabs, mei.http.get("/admin/events") as other:
                await other.content.readuntil(b"data: ")
                opened = [
                    await tabs.enter_async_context(ada.http.get("/admin/events")) for _ in range(MOST_STREAMS + 1)
                ]
                await opened[0].content.readuntil(b"event: replaced")
                set_paused(place.harness.access)
                await other.content.readuntil(b'"is_paused": true')


class TestProtection:
    async def test_nothing_is_shown_before_the_sign_in(self, place: Elsewhere) -> None:
        async with place.browser() as visitor:
            assert await visitor.get("/", 303) == "/web/signin?next=/"
            for path in ("/admin/events", f"/web/events?chat={uuid4().hex}"):
                await visitor.get(path, 401)
            for path in ("/web/session", "/web/ask", "/admin/pause", "/web/signout"):
                await visitor.post(path, 401)

    @pytest.mark.parametrize("headers", [{}, {"Origin": PUBLIC}, {"Origin": PUBLIC, "X-CSRF-Token": "0" * 64}])
    async def test_a_request_without_the_token_of_the_page_changes_nothing(
        self, place: Elsewhere, headers: dict[str, str]
    ) -> None:
        async with place.browser() as ada:
            await ada.sign_in()
            await ada.post("/admin/pause", 403, headers, paused=True)
        assert not place.harness.access.is_paused

    async def test_the_token_of_another_sign_in_is_refused(self, place: Elsewhere) -> None:
        async with place.browser() as ada, place.browser() as mei:
            await ada.sign_in(ADA)
            await mei.sign_in(MEI)
            mei.token = ada.token
            await mei.post("/admin/pause", 403, paused=True)

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://bot.test", "http://bot.test:81"])
    async def test_another_origin_is_refused(self, place: Elsewhere, origin: str) -> None:
        async with place.browser() as ada:
            await ada.sign_in()
            headers = {"Origin": origin, "X-CSRF-Token": ada.token}
            await ada.post("/admin/pause", 403, headers, paused=True)
            token = (await place.link()).partition("#")[2]
            await ada.post("/web/signin", 403, {"Origin": origin}, token=token)
            assert place.links.redeem(token) is not None  # not used up

    @pytest.mark.parametrize("host", ["evil.example", "bot.test.evil.example", "bot.test:81", "bot.test@evil", ""])
    async def test_another_host_is_refused(self, place: Elsewhere, host: str) -> None:
        async with place.browser(Host=host) as visitor:
            for path in ("/", "/admin", "/web/signin"):
                assert "server.public_url" in await visitor.get(path, 403)

    async def test_the_headers_protect_the_sign_in_page_too(self, place: Elsewhere) -> None:
        async with place.browser() as visitor, visitor.http.get("/web/signin") as response:
            policy = response.headers["Content-Security-Policy"]
            page = await response.text()
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Referrer-Policy"] == "no-referrer"
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "http:" not in page
        assert "https:" not in page

    async def test_this_machine_needs_no_sign_in(self, place: Elsewhere) -> None:
        async with place.browser(Host=place.url.partition("//")[2]) as local:
            assert "Sign out" not in await local.get("/admin")

    async def test_without_a_public_address_nothing_is_served_elsewhere(
        self, tmp_path: Path, engine: ScriptedEngine
    ) -> None:
        async with elsewhere(tmp_path, engine, ServerSection(panel=True)) as place:
            async with place.browser(Host="bot.test") as visitor:
                for path in ("/", "/admin", "/web/signin"):
                    assert "public_url" in await visitor.get(path, 403)
            async with place.browser(Host=place.url.partition("//")[2]) as local:
                await local.get("/web/signin", 404)


class TestProxy:
    async def test_a_trusted_proxy_is_never_this_machine(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        async with elsewhere(tmp_path, engine, behind_proxy()) as place:
            async with place.browser(Host=place.url.partition("//")[2]) as hidden:  # as nginx does by default
                await hidden.get("/admin", 403)
            async with place.browser() as visitor:
                await visitor.get("/admin", 303)

    async def test_https_is_what_a_proxy_passes_on(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        server = ServerSection(public_url=HTTPS, trusted_proxies=("192.0.2.0/24",), panel=True)
        async with elsewhere(tmp_path, engine, server) as place, place.browser(**PROXY) as direct:
            assert "server.trusted_proxies" in await direct.get("/admin", 403)

    async def test_its_header_names_the_person(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        server = behind_proxy(proxy_header="X-Forwarded-User", operators=("proxy:root",))
        people = (Author("proxy", "root", ""), Author("proxy", "ada", ""))
        async with elsewhere(tmp_path, engine, server, admins=people[1:]) as place:
            for name, right in (("root", "operator"), ("ada", "admin")):
                async with place.browser(**PROXY, **{"X-Forwarded-User": name}) as person:
                    await person.open()
                    page = await person.get("/admin")
                    assert f'data-right="{right}"' in page
                    assert "Sign out" not in page
                    await person.post("/admin/pause", paused=False)
            async with place.browser(**PROXY, **{"X-Forwarded-User": "梅"}) as mei:
                await mei.get("/")
                assert "Only admins" in await mei.get("/admin", 403)
            for nobody in ("", " ", "x" * 300):
                async with place.browser(**PROXY, **{"X-Forwarded-User": nobody}) as visitor:
                    await visitor.get("/", 303)

    async def test_two_headers_are_refused(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        server = behind_proxy(proxy_header="X-Forwarded-User", operators=("proxy:root",))
        async with elsewhere(tmp_path, engine, server) as place, place.browser() as visitor:
            headers = [("X-Forwarded-User", "root"), ("X-Forwarded-User", "mei")]
            async with visitor.http.get("/admin", headers=headers, allow_redirects=False) as response:
                assert response.status == 303

    async def test_the_header_counts_from_a_trusted_proxy_only(self, tmp_path: Path, engine: ScriptedEngine) -> None:
        server = ServerSection(
            public_url=PUBLIC,
            panel=True,
            trusted_proxies=("192.0.2.1",),
            proxy_header="X-Forwarded-User",
            operators=("proxy:root",),
        )
        async with (
            elsewhere(tmp_path, engine, server) as place,
            place.browser(**{"X-Forwarded-User": "root"}) as visitor,
        ):
            await visitor.get("/admin", 303)


class TestAttempts:
    async def test_many_leave_one_line_in_the_log_and_a_valid_link_works(self, place: Elsewhere) -> None:
        with structlog.testing.capture_logs() as lines:
            async with place.browser() as thief:
                statuses = [await _status(thief, f"guess {number}") for number in range(2 * MOST_ATTEMPTS)]
                assert statuses == [403] * MOST_ATTEMPTS + [429] * MOST_ATTEMPTS
            refused = [line for line in lines if line["event"] == "sign-in refused"]
            assert len(refused) == 1
            async with place.browser() as ada:  # from the same address
                await ada.sign_in()
            await place.clock.advance(SECONDS)
            async with place.browser() as thief:
                assert await _status(thief, "guess") == 403
        assert [line["count"] for line in lines if line["event"] == "sign-in refused"] == [1, 2 * MOST_ATTEMPTS]

    async def test_attempts_of_all_kinds_sign_in_no_one_and_a_valid_link_works_afterwards(
        self, tmp_path: Path, engine: ScriptedEngine
    ) -> None:
        async with elsewhere(tmp_path, engine, proxied_server()) as place:
            result = await attack(place, 200)
        assert result.wrong == []
        assert result.answers.total() == 200
        assert result.answers["guessed link", 429] > 0
        assert [line["event"] for line in result.lines] == ["sign-in refused"] * 2
        assert result.lines[-1]["count"] == 40

    @pytest.mark.parametrize("address", ["10.0.{0}.{1}", "2001:db8:{0}:{1}::7", "2001:db8::{0}:{1}"])
    async def test_10_000_of_them_leave_little_in_memory_and_log(self, address: str) -> None:
        clock = ManualClock()
        attempts = Attempts(clock)
        with structlog.testing.capture_logs() as lines:
            for number in range(10_000):
                attempts.failed(address.format(number >> 8, number & 255), "a test")
        assert len(lines) == 1
        if address == "2001:db8::{0}:{1}":  # all of one network
            assert len(attempts) == 1
            return
        assert len(attempts) == MOST_ADDRESSES
        assert attempts.are_too_many("192.0.2.1")
        await clock.advance(SECONDS)
        attempts.failed("192.0.2.1", "a test")
        assert len(attempts) == 1

    async def test_addresses_are_counted_apart_as_the_trusted_proxy_names_them(
        self, tmp_path: Path, engine: ScriptedEngine
    ) -> None:
        async with elsewhere(tmp_path, engine, behind_proxy()) as place:
            for number in range(MOST_ATTEMPTS + 1):
                async with place.browser(**{"X-Forwarded-For": f"10.0.0.{number}, 192.0.2.7"}) as thief:
                    assert await _status(thief, "guess") == (403 if number < MOST_ATTEMPTS else 429)
            async with place.browser(**{"X-Forwarded-For": "192.0.2.8"}) as other:
                assert await _status(other, "guess") == 403


async def _status(visitor: Visitor, token: str) -> int:
    headers = {"Origin": visitor.place.public}
    async with visitor.http.post("/web/signin", json={"token": token}, headers=headers) as response:
        await response.read()
        return response.status


@pytest.mark.usefixtures("caplog")
async def test_no_link_is_logged(place: Elsewhere, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        async with place.browser() as ada:
            link = await place.link()
            await ada.use(link)
    assert link.partition("#")[2] not in f"{lines}{caplog.text}"
