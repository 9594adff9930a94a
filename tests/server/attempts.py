"""Try to sign in without a right, over real HTTP: `python -m tests.server.attempts [COUNT]`.

The full count is 10,000.  Nothing may be signed in or changed, memory and log stay bounded, and a
valid link works afterwards, from an address that has failed often.
"""

import asyncio
import itertools
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import structlog
from structlog.typing import EventDict

from bot.adapters.web.sign_in.attempts import SECONDS
from bot.chat.sign_in import LINK_SECONDS
from bot.config.http import ServerSection
from bot.observability import process
from tests.harness.elsewhere import ADA, MEI, PUBLIC, Elsewhere, elsewhere
from tests.harness.fakes import ScriptedEngine

COUNT = 10_000
# Requests that are under way at once.
_AT_ONCE = 8
# Attempts after which the memory is compared, and bytes that it may grow by until the end.
_WARM = 1_000
MOST_GROWTH = 16 * 2**20

# Stands for a link that is valid.
VALID = "VALID"
_PAGE = {"Origin": PUBLIC}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request, and the statuses that refuse it."""

    kind: str
    refusals: tuple[int, ...]
    body: dict[str, object] | bytes
    path: str = "/web/signin"
    headers: dict[str, str] = field(default_factory=lambda: _PAGE)


@dataclass(slots=True)
class Result:
    """What the attempts led to; `wrong` are answers that are no refusal."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lines: list[EventDict] = field(default_factory=list)
    grown: int = 0


async def attack(place: Elsewhere, count: int) -> Result:
    """Make attempts of all kinds in turn, then sign in with a link that is valid."""
    result = Result()
    attempts = itertools.islice(await _attempts(place), count)
    valid = await place.link(ADA)
    token = valid.partition("#")[2]
    with captured(result.lines):
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(place.url, cookie_jar=jar, headers={"Host": "bot.test"}) as http:
            numbered = enumerate(attempts)

            async def work() -> None:
                for number, attempt in numbered:
                    await _try(http, number, attempt, token, result)
                    if number == _WARM:
                        result.grown = -process.memory()

            async with asyncio.TaskGroup() as workers:
                for _ in range(_AT_ONCE):
                    workers.create_task(work())
        result.grown += process.memory() if count > _WARM else 0
        if place.harness.access.is_paused:
            result.wrong.append("the bot was paused")
    async with place.browser(**_from(0)) as ada:
        await ada.get("/admin", 303)
        await ada.use(valid)
        await ada.get("/admin")
    await place.clock.advance(SECONDS)
    with captured(result.lines):
        async with place.browser(**_from(0)) as thief:
            await thief.use("#", 403)
    return result


async def _attempts(place: Elsewhere) -> Iterator[Attempt]:
    """Let people sign in, and return attempts with what is left of it, without end."""
    used, cookies = [], []
    async with place.browser() as ada:
        for _ in range(3):
            link = await place.link()
            await ada.use(link)
            used.append(link.partition("#")[2])
        cookies.append(ada.cookies["chat_person"])
        await ada.post("/web/signout", 204)
    expired = [(await place.link(person)).partition("#")[2] for person in (ADA, MEI)]
    await place.clock.advance(LINK_SECONDS)
    async with place.browser() as mei:
        await mei.sign_in(MEI)
        own = {"Cookie": f"chat_person={mei.cookies['chat_person']}"}
        token = mei.token
    return _endless(used, expired, cookies[0], own, token)


def _endless(used: list[str], expired: list[str], ended: str, own: dict[str, str], token: str) -> Iterator[Attempt]:
    failed, forbidden, out = (403, 429), (403,), (401,)
    for number in itertools.count():
        forged = f"{ended[:-6]}{number:06x}"
        yield Attempt("guessed link", failed, {"token": f"{number:043x}"})
        yield Attempt("used link", failed, {"token": used[number % len(used)]})
        yield Attempt("expired link", failed, {"token": expired[number % len(expired)]})
        yield Attempt("no text as link", failed, {"token": [number]})
        yield Attempt("no JSON", (400,), b"{" * (number % 4096 + 1))
        yield Attempt("long body", (413,), b'{"token": "' + b"x" * 5000)
        for origin in ("http://evil.example", "null", "https://bot.test", "http://bot.test:81"):
            yield Attempt(f"valid link, Origin {origin}", forbidden, {"token": VALID}, headers={"Origin": origin})
        for host in ("evil.example", "bot.test.evil.example", "127.0.0.1", "bot.test:81"):
            yield Attempt(f"valid link, Host {host}", forbidden, {"token": VALID}, headers={**_PAGE, "Host": host})
        yield Attempt("valid link, no Origin", forbidden, {"token": VALID}, headers={"Sec-Fetch-Site": "cross-site"})
        yield Attempt("forged cookie", out, {}, "/web/session", {**_PAGE, "Cookie": f"chat_person={forged}"})
        yield Attempt("ended session", out, {}, "/web/session", {**_PAGE, "Cookie": f"chat_person={ended}"})
        pause: dict[str, object] = {"paused": True}
        wrong = f"{token[:-6]}{number:06x}"
        for name, value in (("without", {}), ("with a wrong", {"X-CSRF-Token": wrong})):
            yield Attempt(f"session {name} CSRF token", forbidden, pause, "/admin/pause", {**_PAGE, **own, **value})
        yield Attempt("no session", out, pause, "/admin/pause")


async def _try(http: aiohttp.ClientSession, number: int, attempt: Attempt, valid: str, result: Result) -> None:
    body = attempt.body
    if isinstance(body, dict):
        body = json.dumps({name: valid if value == VALID else value for name, value in body.items()}).encode()
    async with http.post(attempt.path, headers={**_from(number), **attempt.headers}, data=body) as response:
        await response.read()
        result.answers[attempt.kind, response.status] += 1
        if response.status not in attempt.refusals or "Set-Cookie" in response.headers:
            result.wrong.append(f"{attempt.kind}: {response.status}")


def _from(number: int) -> dict[str, str]:
    # Half of them from one address, the others from many.
    address = 0 if number % 40 < 20 else number // 40 + 1
    return {"X-Forwarded-For": f"10.0.{address >> 8}.{address & 255}"}


class _Kept(logging.Handler):
    """Keeps what libraries log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[EventDict] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append({"event": record.getMessage()})


@contextmanager
def captured(lines: list[EventDict]) -> Iterator[None]:
    """Add the lines of the log to a list, those of libraries too."""
    root, handler = logging.getLogger(), _Kept()
    root.addHandler(handler)
    try:
        with structlog.testing.capture_logs() as own:
            yield
    finally:
        root.removeHandler(handler)
    lines += [*own, *handler.lines]


def proxied_server() -> ServerSection:
    """Return settings with a proxy on this machine, so that the attempts come from many addresses."""
    return ServerSection(public_url=PUBLIC, trusted_proxies=("127.0.0.1",), panel=True)


async def main(count: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with elsewhere(Path(folder), ScriptedEngine(), proxied_server()) as place:
            result = await attack(place, count)
    for (kind, status), answers in sorted(result.answers.items()):
        print(f"{answers:6,}  {status}  {kind}")  # noqa: T201
    total, wrong = result.answers.total(), len(result.wrong)
    print(f"{total:,} attempts, {wrong} that were not refused")  # noqa: T201
    if total > _WARM:
        print(f"memory grew by {result.grown / 2**20:.1f} MiB after the first {_WARM:,}")  # noqa: T201
    for line in result.lines:
        print(f"log: {line}")  # noqa: T201
    print("a valid link worked afterwards")  # noqa: T201
    return int(wrong > 0 or result.grown > MOST_GROWTH or len(result.lines) != 2)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)))
