"""The pages under load: when a token is shown, what an open panel costs, the first load, the event loop.

python -m benchmarks.web token [--clients 49] [--answers 10]
python -m benchmarks.web loop [--clients 199] [--seconds 20]
python -m benchmarks.web panel [--replies 1000] [--seconds 20]
python -m benchmarks.web load [--tries 5]

The answers are scripted, so that the model takes no time; clients are in a process of their own.
`token` and `load` need Debian's chromium.  Exit code 1 if a target is missed.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from playwright.async_api import Page

from benchmarks.in_memory import log_to_memory
from benchmarks.report import SuiteRow, percentile, print_rows
from bot.domain import ChatRequest, Delta, EngineEvent, Finished, FinishReason, Usage
from tests.adapters.lossless_runs import lateness
from tests.adapters.test_panel import panel_of
from tests.adapters.test_web import Tab, browser, served
from tests.browser.conftest import chromium
from tests.harness.fakes import ScriptedEngine

# Of an answer: its tokens, and seconds between two of them.
TOKENS = 60
INTERVAL = 0.05
_MEASURED = "measured"

# Notes in the page when each token of the newest answer is shown, in milliseconds since the epoch.
_WATCH = """() => {
  window.shownAt = [];
  new MutationObserver(() => {
    const answer = [...document.querySelectorAll(".answer")].at(-1)?.textContent ?? "";
    const last = Number(answer.match(/t(\\d+)\\s*$/)?.[1] ?? -1);
    while (window.shownAt.length <= last) window.shownAt.push(Date.now());
  }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
}"""


class PacedEngine(ScriptedEngine):
    """Answers all requests at once, a token at a time; `made_at` are those of the measured answer."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.made_at: list[float] = []

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        is_measured = request.messages[-1].content.endswith(_MEASURED)
        self.running += 1
        try:
            for number in range(TOKENS):
                await asyncio.sleep(INTERVAL)
                if is_measured:
                    self.made_at.append(time.time())
                yield Delta(f"t{number} ")
            yield Finished(FinishReason.STOP, Usage(10, TOKENS))
        finally:
            self.running -= 1


async def token(clients: int, answers: int) -> list[SuiteRow]:
    """Measure the time from a token in the engine to its text in a browser, beside other clients."""
    waits: list[float] = []
    async with paced() as (engine, url), asking(url, clients, engine), chromium(url) as context:
        page = await context.new_page()
        for _ in range(answers):
            engine.made_at = []
            await page.goto("about:blank")
            await page.goto("/")
            await page.evaluate(_WATCH)
            await page.locator("#text").fill(_MEASURED)
            await page.keyboard.press("Enter")
            await page.wait_for_function(f"() => window.shownAt.length === {TOKENS}")
            shown = await page.evaluate("window.shownAt")
            waits += [at / 1e3 - made for at, made in zip(shown, engine.made_at, strict=True)]
    remark = f"{clients} clients; median {1000 * percentile(waits, 0.5):.0f} ms"
    return [SuiteRow("token shown after, p95", 1000 * percentile(waits, 0.95), "ms", 150.0, True, remark)]


async def loop(clients: int, seconds: float) -> list[SuiteRow]:
    """Measure how late the event loop wakes a sleep, before and beside clients that read answers."""
    async with paced() as (engine, url):
        async with lateness() as idle:
            await asyncio.sleep(seconds)
        async with asking(url, clients, engine), lateness() as busy:
            await asyncio.sleep(seconds)
    remark = f"{clients} clients; {1000 * percentile(idle, 0.99):.1f} ms without any"
    return [SuiteRow("event loop late, p99", 1000 * percentile(busy, 0.99), "ms", 50.0, True, remark)]


async def panel(replies: int, seconds: float) -> list[SuiteRow]:
    """Measure the CPU time that an open panel takes while replies are running; its reader is included."""
    engine = ScriptedEngine(default=["begun ", asyncio.Event()], max_batch_size=replies, max_waiting=replies)
    with tempfile.TemporaryDirectory() as folder:
        async with panel_of(Path(folder), engine) as bot, browser(bot.url) as http:
            for _ in range(replies):
                await Tab(http, uuid4().hex).ask("hello")
            await engine.asked(replies)
            await asyncio.sleep(seconds / 4)  # the last ones are shown
            without = await _cpu(seconds)
            async with bot.panel.http.get("/admin/events") as events:

                async def read() -> None:
                    async for _ in events.content.iter_any():
                        pass

                reading = asyncio.create_task(read())
                await asyncio.sleep(seconds / 4)  # the first event has everything
                beside = await _cpu(seconds)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
    remark = f"of a core; {replies:,} running replies take {without:.1%} without it"
    return [SuiteRow("CPU of an open panel", max(beside - without, 0.0), "share", 0.05, True, remark)]


async def load(tries: int) -> list[SuiteRow]:
    """Measure the time and bytes of the first load of the chat and the panel."""
    pages = {
        "/": "() => source?.readyState === EventSource.OPEN",
        "/admin": "() => !document.getElementById('pause').disabled",
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with panel_of(Path(folder), ScriptedEngine()) as bot:
            for path, is_ready in pages.items():
                times, sizes = [], []
                for _ in range(tries):
                    async with chromium(bot.url) as context:  # without a cache
                        page = await context.new_page()
                        began = time.monotonic()
                        await page.goto(path)
                        await page.wait_for_function(is_ready)
                        times.append(time.monotonic() - began)
                        sizes.append(await _transferred(page))
                rows += [
                    SuiteRow(f"first load of {path}", max(times), "s", 1.5, True, f"longest of {tries}"),
                    SuiteRow(f"bytes of {path}", max(sizes) / 1e6, "MB", 1.0, True, "as sent, not compressed"),
                ]
    return rows


async def clients(url: str, count: int) -> None:
    """Read answers in this many sessions until the process is killed."""

    async def read() -> None:
        async with browser(url) as http:
            while True:
                tab = Tab(http, uuid4().hex)
                await tab.ask("hello")
                await tab.until(lambda tab: len(tab.answers) == 1)

    async with asyncio.TaskGroup() as readers:
        for _ in range(count):
            readers.create_task(read())


@asynccontextmanager
async def paced() -> AsyncIterator[tuple[PacedEngine, str]]:
    """Serve the page with answers whose tokens come at a pace."""
    engine = PacedEngine()
    with tempfile.TemporaryDirectory() as folder:
        async with served(Path(folder), engine) as url:
            yield engine, url


@asynccontextmanager
async def asking(url: str, count: int, engine: PacedEngine) -> AsyncIterator[None]:
    """Let clients in another process ask and read, from when all of them are answered at once."""
    arguments = ("-m", "benchmarks.web", "clients", "--url", url, "--clients", str(count))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    try:
        while engine.running < count * 0.9:  # some are between two questions
            assert process.returncode is None, "the clients have ended"
            await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _cpu(seconds: float) -> float:
    """Return the share of a core that this process uses during these seconds."""
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - began)


async def _transferred(page: Page) -> int:
    entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    size: int = await page.evaluate(f"{entries}.reduce((sum, each) => sum + each.transferSize, 0)")
    return size


async def measured(options: argparse.Namespace) -> list[SuiteRow]:
    """Carry out the command."""
    match options.what:
        case "token":
            return await token(options.clients or 49, options.answers)
        case "loop":
            return await loop(options.clients or 199, options.seconds)
        case "panel":
            return await panel(options.replies, options.seconds)
        case "load":
            return await load(options.tries)
        case _:
            await clients(options.url, options.clients)
            return []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["token", "loop", "panel", "load", "clients"])
    for name, default in {"clients": 0, "answers": 10, "replies": 1000, "tries": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--url", default="", help="of `clients`, which the others start")
    log_to_memory()
    sys.exit(print_rows(asyncio.run(measured(parser.parse_args()))))


if __name__ == "__main__":
    main()
