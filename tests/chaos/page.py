"""R31: the chat page in a browser, whose bot is killed or stopped and whose connection is cut while answers grow.

The page is never reloaded until the end.  It must show one whole answer to each question, and the same ones after
a reload.
"""

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Error, Locator, Page, async_playwright, expect

from tests.browser.conftest import CHROMIUM
from tests.chaos.figure import Row, Scale
from tests.chaos.processes import logged_errors
from tests.chaos.tcp_proxy import CUTS, TcpProxy, open_tcp_proxy

NAME = "R31"

_ROOT = Path(__file__).parents[2]
# Milliseconds; only a page that hangs takes as long, on any machine.
_HANGS = 300_000
_WORDS = "and so on " * 15
_SETTINGS = {
    "BOT_ENGINE__BACKEND": "echo",
    "BOT_LIMITS__REQUESTS_PER_MINUTE": "0",
    "BOT_LIMITS__REQUESTS_PER_MINUTE_CHANNEL": "0",
    "BOT_LIMITS__WAITING_PER_USER": "0",
    "BOT_LIMITS__TOKENS_PER_HOUR": "0",
    "BOT_LIMITS__TOKENS_PER_HOUR_CHANNEL": "0",
    "SLOW_TOKENS": "0.01",
}
# The most bytes after which a connection is cut: some cuts come while a page asks, most while it gets an answer.
_MOST_BYTES = 20_000


class Scene:
    """A page, the bot behind it, and the proxy between the two."""

    proxy: TcpProxy

    def __init__(self, page: Page, folder: Path, chance: random.Random) -> None:
        self.page = page
        self.chance = chance
        self.asked = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.server_port: int = free.getsockname()[1]
        self._folder = folder

    def set_port(self, port: int) -> None:
        """Let the page ask this port, which is the proxy's."""
        self._url = f"http://127.0.0.1:{port}/"

    async def start(self) -> None:
        environment = os.environ | _SETTINGS | {"PYTHONPATH": str(_ROOT), "BOT_SERVER__PORT": str(self.server_port)}
        with (self._folder / "log").open("ab") as log:
            self.bot = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.slow_bot", "serve"),
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    async def open(self) -> None:
        await self.start()
        while True:
            try:
                await self.page.goto(self._url)
            except Error:  # the bot does not listen yet
                await asyncio.sleep(0.1)
            else:
                return

    async def ask(self) -> None:
        self.asked += 1
        await self.page.locator("#text").fill(self.question(self.asked))
        await self.page.keyboard.press("Enter")

    def question(self, number: int) -> str:
        return f"q{number}e {_WORDS}q{number}e"

    @property
    def answers(self) -> Locator:
        """Return the finished answers, which repeat their questions."""
        return self.page.locator(".reply:not(.open) .answer", has_text="and so on")

    async def all_is_answered(self) -> None:
        await expect(self.answers).to_have_count(self.asked, timeout=_HANGS)

    async def judge(self, subject: str, what: str) -> Row:
        """Compare the page with what was asked, before and after a reload."""
        texts = await self.answers.all_inner_texts()
        bubbles = await self.page.locator(".bubble").all_inner_texts()
        await self.page.reload()
        await self.all_is_answered()
        changed = sum(one != other for one, other in zip(texts, await self.answers.all_inner_texts(), strict=True))
        wanted = [self.question(number) for number in range(1, self.asked + 1)]
        lost = sum(question not in bubbles for question in wanted)
        torn = sum(question not in texts for question in wanted)
        twice = len(bubbles) - len(set(bubbles))
        errors = logged_errors(self._folder)
        result = (
            f"{what}, questions {self.asked}: lost {lost}, twice {twice}, torn {torn}, "
            f"changed by a reload {changed}, errors logged {len(errors)}"
        )
        result += "".join(f"; {line[:300]}" for line in errors[:3])
        return Row(subject, result, not (lost or twice or torn or changed or errors))


async def kills(scene: Scene, count: int) -> Row:
    for _ in range(count):
        await scene.ask()
        await scene.ask()
        await asyncio.sleep(scene.chance.uniform(0, 1.5))
        scene.bot.kill()
        await scene.bot.wait()
        await scene.ask()
        await scene.start()
        await scene.all_is_answered()
    return await scene.judge("kills", f"kills {count}")


async def signals(scene: Scene, count: int) -> Row:
    wrong = 0
    for number in range(count):
        await scene.ask()
        await asyncio.sleep(scene.chance.uniform(0, 1.0))
        allowed = {0}
        if number % 2:  # a second signal ends it at once
            scene.bot.send_signal(signal.SIGTERM)
            allowed.add(128 + signal.SIGTERM)
        scene.bot.send_signal(signal.SIGTERM)
        wrong += await scene.bot.wait() not in allowed
        await scene.ask()
        await scene.start()
        await scene.all_is_answered()
    row = await scene.judge(
        "signals", f"ended {count} times, by two signals each second time, wrong exit codes {wrong}"
    )
    return Row(row.subject, row.result, row.is_kept and not wrong)


async def cuts(scene: Scene, count: int) -> Row:
    for _ in range(count):
        cut = asyncio.create_task(scene.proxy.cut(scene.chance.choice(CUTS), scene.chance.randrange(_MOST_BYTES)))
        while not cut.done():
            await scene.ask()
            await scene.all_is_answered()
        await cut
    return await scene.judge("cuts", f"cuts {count} ({scene.proxy.torn} within a message)")


_TROUBLES: dict[Callable[[Scene, int], Awaitable[Row]], dict[Scale, int]] = {
    kills: {"full": 30, "short": 1},
    signals: {"full": 14, "short": 2},
    cuts: {"full": 40, "short": 2},
}


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    """Yield a row for each kind of trouble."""
    if CHROMIUM is None:
        yield Row("page", "not measured: this machine has no Chromium (apt install chromium)", is_kept=True)
        return
    for trouble, counts in _TROUBLES.items():
        async with open_page(seed) as scene:
            yield await trouble(scene, counts[scale])


@asynccontextmanager
async def open_page(seed: int) -> AsyncIterator[Scene]:
    """Open a page in a browser before a bot with a slow engine."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene(await browser.new_page(), Path(folder), random.Random(seed))
            async with open_tcp_proxy(scene, seed) as scene.proxy:
                try:
                    await scene.open()
                    yield scene
                finally:
                    if scene.bot.returncode is None:
                        scene.bot.kill()
                        await scene.bot.wait()
                    await browser.close()
