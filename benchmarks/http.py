"""What the HTTP APIs cost: their overhead over the bare engine, and slow clients beside a chat.

python -m benchmarks.http overhead [--rounds 7] [--tokens 96]
python -m benchmarks.http slow [--clients 500] [--seconds 30]

The demo model; clients are in a process of their own.  Exit code 1 if a target is missed.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from statistics import median

import psutil

from benchmarks.http_clients import ReadAnswer, hang, read_answers
from benchmarks.in_memory import UNLIMITED, log_to_memory, running_bot
from benchmarks.report import SuiteRow, percentile, print_rows, quantity
from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import ServerSection
from bot.config.schema import AccessSection, Config, EngineSection, LimitsSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, SamplingParams
from bot.engine import open_engine
from bot.engine.base import Engine
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from bot.util.clock import MonotonicClock
from tests.harness.ports import reserved_port

BATCH = 8
QUESTION = "Tell me everything about this bot"
# Of first tokens, one at a time.
_SINGLE = 15
_INTERVAL = 0.01


@asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[int]:
    """Serve the engine without limits; yield the port."""
    clock = MonotonicClock()
    access = Access(AccessSection(), LimitsSection(**dict.fromkeys(UNLIMITED, 0)), clock)
    backend = Backend(engine, ChatSettings.of(Config()), access, 64, Metrics())
    async with serve_apis(ServerSection(port=0), backend, clock) as port:
        yield port


@contextmanager
def clients() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()  # started, with its imports
        yield pool


async def ask_engine(engine: Engine, tokens: int) -> ReadAnswer:
    """Read one answer without HTTP."""
    request = ChatRequest((ChatMessage("user", QUESTION),), SamplingParams(temperature=0, max_tokens=tokens))
    began, first, used = time.perf_counter(), 0.0, 0
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta) and not first:
                first = time.perf_counter() - began
            if isinstance(event, Finished):
                used = event.usage.completion_tokens
    return ReadAnswer(first, time.perf_counter() - began, used)


def rate(answers: list[ReadAnswer]) -> float:
    """Return the tokens per second of answers that began together."""
    return sum(each.tokens for each in answers) / max(each.whole for each in answers)


async def overhead(rounds: int, tokens: int) -> list[SuiteRow]:
    """Compare `BATCH` answers at once, and first tokens one at a time, with and without HTTP."""
    loop = asyncio.get_running_loop()
    bare_rates, ratios, bare_first, http_first = [], [], [], []
    with clients() as pool:
        async with open_engine(EngineSection(max_batch_size=BATCH)) as engine, served(engine) as port:

            async def over_http(count: int, length: int) -> list[ReadAnswer]:
                return await loop.run_in_executor(pool, read_answers, port, count, QUESTION, length)

            async def bare(count: int, length: int) -> list[ReadAnswer]:
                return await asyncio.gather(*(ask_engine(engine, length) for _ in range(count)))

            for turn in range(rounds + 1):
                # Alternating, so that a machine that becomes slower makes both slower.
                without, with_http = rate(await bare(BATCH, tokens)), rate(await over_http(BATCH, tokens))
                if turn:  # the first warms both
                    bare_rates.append(without)
                    ratios.append(with_http / without)
            for _ in range(_SINGLE):
                bare_first.append((await bare(1, 2))[0].first)
                http_first.append((await over_http(1, 2))[0].first)
    later = 1000 * (median(http_first) - median(bare_first))
    remark = (
        f"bare {quantity(median(bare_rates), 'tok/s')}, {rounds} rounds {min(ratios):.3f} to {max(ratios):.3f} of it"
    )
    return [
        SuiteRow(f"tokens/s lost, batch {BATCH}", 1 - median(ratios), "share", 0.05, is_limit=True, remark=remark),
        SuiteRow(
            "first token later",
            later,
            "ms",
            5.0,
            is_limit=True,
            remark=f"{1000 * median(bare_first):.1f} ms bare, {1000 * median(http_first):.1f} ms over HTTP",
        ),
    ]


@dataclass(slots=True)
class Watch:
    """Lateness of the event loop in seconds, and most open files of the process."""

    late: list[float] = field(default_factory=list)
    files: int = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _INTERVAL
            await asyncio.sleep(_INTERVAL)
            self.late.append(loop.time() - due)
            self.files = max(self.files, psutil.Process().num_fds())


async def slow(count: int, seconds: float) -> list[SuiteRow]:
    """Let a bot with a chat platform serve slow and hanging clients."""
    loop = asyncio.get_running_loop()
    # The defaults bound what one address may ask at once; the rest is counted for chat alone.
    limits = LimitsSection(
        requests_per_minute=0, requests_per_minute_channel=0, tokens_per_hour=0, tokens_per_hour_channel=0
    )
    with reserved_port() as port, clients() as pool:
        server = ServerSection(enabled=True, port=port)
        async with running_bot(server=server, limits=limits, engine=EngineSection()) as platform:

            async def chat(until: float) -> list[float]:
                times = []
                while loop.time() < until:
                    began = loop.time()
                    await platform.mention(0, "hello")
                    await platform.idle()
                    times.append(loop.time() - began)
                return times

            await chat(loop.time() + 1)
            before = await chat(loop.time() + min(seconds, 10.0))
            watch = Watch()
            watching = asyncio.create_task(watch.run())
            hanging = loop.run_in_executor(pool, partial(hang, port, count, seconds))
            during = await chat(loop.time() + seconds)
            await hanging
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    remark = f"{count} clients: silent, dripping headers, half a body, unread answers"
    return [
        SuiteRow("event loop late, p99", 1000 * percentile(watch.late, 0.99), "ms", 50.0, is_limit=True, remark=remark),
        SuiteRow(
            "chat answer, median",
            1000 * median(during),
            "ms",
            remark=f"{1000 * median(before):.0f} ms without these clients",
        ),
        SuiteRow("open files, most", watch.files, "files", 1024, is_limit=True, remark="at most 512 are connections"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["overhead", "slow"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    log_to_memory()
    measuring = (
        overhead(options.rounds, options.tokens)
        if options.what == "overhead"
        else slow(options.clients, options.seconds)
    )
    sys.exit(print_rows(asyncio.run(measuring)))


if __name__ == "__main__":
    main()
