"""Sign-in by OpenID Connect, against a real provider on loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from pydantic import SecretStr

from bot.config.http import ServerSection
from bot.config.sign_in import OidcSection
from tests.harness.elsewhere import PUBLIC, Elsewhere, Visitor, elsewhere
from tests.harness.fakes import ScriptedEngine
from tests.harness.servers.oidc import CLIENT_ID, CLIENT_SECRET, OidcServer, oidc_server

REFUSED = "This sign-in is not valid"


@dataclass
class Place:
    provider: OidcServer
    bot: Elsewhere

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[Visitor]:
        async with self.bot.browser() as visitor:
            yield visitor

    async def visit(self, visitor: Visitor, next: str = "/admin") -> str:
        """Go to the provider and back; return the address with which it sends the browser back."""
        there = await visitor.get(f"/web/oidc/start?next={next}", 302)
        async with aiohttp.ClientSession() as http, http.get(there, allow_redirects=False) as response:
            assert response.status == 302, await response.text()
            return response.headers["Location"].removeprefix(PUBLIC)

    async def sign_in(self, visitor: Visitor, next: str = "/admin") -> str:
        return await visitor.get(await self.visit(visitor, next), 303)


def section(provider: OidcServer, **settings: Any) -> OidcSection:
    return OidcSection(
        issuer=provider.url,
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
        **{"admins": ["ops"], "operators": ["root"], **settings},
    )


@asynccontextmanager
async def open_place(folder: Path, **settings: Any) -> AsyncIterator[Place]:
    server = ServerSection(public_url=PUBLIC, panel=True)
    async with (
        oidc_server() as provider,
        elsewhere(folder, ScriptedEngine(default="an answer"), server, section(provider, **settings)) as bot,
    ):
        yield Place(provider, bot)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(tmp_path) as place:
        yield place


@pytest.mark.parametrize(("groups", "right"), [(["ops"], "admin"), (["staff", "root"], "operator"), ("ops", "admin")])
async def test_the_claim_gives_the_right(place: Place, groups: Any, right: str) -> None:
    place.provider.claims["groups"] = groups
    async with place.browser() as mei:
        assert "/web/oidc/start" in await mei.get("/web/signin")
        assert await place.sign_in(mei) == "/admin"
        await mei.open()
        assert f'data-right="{right}"' in await mei.get("/admin")
        await mei.post("/admin/pause", paused=True)
    assert place.bot.harness.access.is_paused


async def test_others_chat_only(place: Place) -> None:
    place.provider.claims["groups"] = []
    async with place.browser() as mei:
        assert await place.sign_in(mei, "/") == "/"
        await mei.open()
        assert "Mei" in await mei.get("/")
        assert "Only admins" in await mei.get("/admin", 403)


async def test_a_claim_may_come_from_the_userinfo_address(place: Place) -> None:
    del place.provider.claims["groups"]
    place.provider.more = {"groups": ["root"]}
    async with place.browser() as mei:
        await place.sign_in(mei)
        assert 'data-right="operator"' in await mei.get("/admin")


async def test_people_without_a_value_of_users_are_refused(tmp_path: Path) -> None:
    async with open_place(tmp_path, users=["staff"]) as place, place.browser() as mei:
        place.provider.claims["groups"] = ["guests"]
        assert REFUSED in await mei.get(await place.visit(mei), 403)
        await mei.get("/", 303)


async def test_an_answer_works_once_and_in_the_browser_that_asked(place: Place) -> None:
    async with place.browser() as mei, place.browser() as thief:
        answer = await place.visit(mei)
        assert REFUSED in await thief.get(answer, 403)
        await mei.get(answer, 303)
        assert REFUSED in await mei.get(answer, 403)
        await thief.get("/admin", 303)


@pytest.mark.parametrize(
    "faults",
    [{"iss": "https://evil.example"}, {"aud": "another"}, {"exp": 1}, {"nonce": "another"}, {"sub": None}, {"sub": 7}],
)
async def test_a_token_that_is_not_for_this_sign_in_is_refused(place: Place, faults: dict[str, Any]) -> None:
    place.provider.faults = faults
    async with place.browser() as mei:
        assert REFUSED in await mei.get(await place.visit(mei), 403)
        await mei.get("/admin", 303)


async def test_a_token_of_another_key_is_refused(place: Place) -> None:
    place.provider.signs_itself = True
    async with place.browser() as mei:
        assert REFUSED in await mei.get(await place.visit(mei), 403)


async def test_a_provider_that_is_down_is_explained(place: Place) -> None:
    place.provider.is_down = True
    async with place.browser() as mei:
        with structlog.testing.capture_logs() as lines:
            assert REFUSED in await mei.get("/web/oidc/start", 503)
        assert "cannot be asked" in str(lines)
        place.provider.is_down = False
        await place.sign_in(mei)


async def test_other_rules_end_the_sessions(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place, place.browser() as mei:
        await place.sign_in(mei)
        cookies = mei.cookies
    async with open_place(tmp_path, admins=["others"]) as place, place.browser() as mei:
        mei.take_cookies(cookies)
        await mei.get("/admin", 303)


async def test_no_code_token_or_secret_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with structlog.testing.capture_logs() as lines:
        async with place.browser() as mei:
            answer = await place.visit(mei)
            await mei.get(answer, 303)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("bot")]
    for secret in (CLIENT_SECRET, answer.partition("code=")[2][:16]):
        assert secret not in f"{lines}{ours}"
