"""The pages as a browser on another machine reaches them: under a public address, after a sign-in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.sign_in.opening import Entrance, sign_in_page
from bot.chat.sign_in import SignIn
from bot.config.http import ServerSection
from bot.config.schema import AccessSection
from bot.config.sign_in import OidcSection
from bot.domain import Author, IncomingMessage
from bot.observability.health import Components, Health
from bot.storage.usage_export import report_usage
from bot.util.clock import MonotonicClock
from tests.adapters.test_web import served_on
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import a_message

PUBLIC = "http://bot.test"
ADA, MEI = Author("discord", "1", "Ada"), Author("discord", "2", "Mei")


@dataclass
class Elsewhere:
    """A running bot with pages; `clock` is that of links and attempts."""

    url: str
    public: str
    harness: Harness
    links: SignIn
    clock: ManualClock
    told: list[str] = field(default_factory=list)

    async def link(self, person: Author = ADA) -> str:
        """Let a person send /signin; return the link that they get."""
        await self.links.send_link(a_message("/signin", author=person), str)
        return self.told[-1].split()[-1]

    @asynccontextmanager
    async def browser(self, **headers: str) -> AsyncIterator["Visitor"]:
        """Open a browser with cookies of its own, which names the public address."""
        name = self.public.partition("//")[2]
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=self.url)
        async with aiohttp.ClientSession(self.url, cookie_jar=jar, headers={"Host": name, **headers}) as http:
            yield Visitor(self, http)


@dataclass
class Visitor:
    place: Elsewhere
    http: aiohttp.ClientSession
    token: str = ""

    @property
    def cookies(self) -> dict[str, str]:
        return {each.key: each.value for each in self.http.cookie_jar}

    def take_cookies(self, cookies: dict[str, str]) -> None:
        self.http.cookie_jar.update_cookies(cookies, URL(self.place.url))

    async def get(self, path: str, status: int = 200, **headers: str) -> str:
        async with self.http.get(path, headers=headers, allow_redirects=False) as response:
            said = await response.text()
            assert response.status == status, said
            return response.headers.get("Location", said)

    async def post(self, path: str, status: int = 200, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """Send what a button sends, from the page itself unless `headers` say otherwise."""
        own = {"Origin": self.place.public, "X-CSRF-Token": self.token} if headers is None else headers
        async with self.http.post(path, json=body, headers=own) as response:
            said: Any = await response.text()
            assert response.status == status, said
            return await response.json() if response.content_type == "application/json" else said

    async def sign_in(self, person: Author = ADA, status: int = 200) -> Any:
        return await self.use(await self.place.link(person), status)

    async def use(self, link: str, status: int = 200) -> Any:
        answer = await self.post("/web/signin", status, token=link.partition("#")[2], next="")
        if status == 200:
            await self.open()
        return answer

    async def open(self) -> str:
        """Get the token of the page; return the id under which the person's conversations are."""
        session = await self.post("/web/session")
        self.token = session["token"]
        return str(session["user"])


@asynccontextmanager
async def elsewhere(
    folder: Path,
    engine: ScriptedEngine,
    server: ServerSection | None = None,
    oidc: OidcSection | None = None,
    *,
    admins: tuple[Author, ...] = (ADA, MEI),
    has_panel: bool = True,
    port: int = 0,
) -> AsyncIterator[Elsewhere]:
    """Serve the pages for browsers elsewhere on the database in `folder`."""
    server = server or ServerSection(public_url=PUBLIC, panel=has_panel)
    access = AccessSection(admins=tuple(each.key for each in admins))
    async with engine, make_harness(folder, engine, access=access, limits=NO_LIMITS) as harness:
        clock = ManualClock()
        links = SignIn(clock, sign_in_page(server.model_copy(update={"enabled": True})))
        components = Components(harness.store, engine)
        health = Health(components, 60.0, MonotonicClock())
        sources = PanelSources(
            components, health, MonotonicClock(), partial(report_usage, f"sqlite+aiosqlite:///{folder / 'bot.db'}")
        )
        entrance = Entrance(server, oidc or OidcSection(), harness.access, links, clock)
        async with served_on(folder, harness, sources if server.panel else None, entrance, port) as url:
            place = Elsewhere(url, server.public_url, harness, links, clock)

            async def send(message: IncomingMessage, text: str) -> None:
                place.told.append(text)

            links.register("discord", send)
            yield place
