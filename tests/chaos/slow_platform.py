"""R12: a platform ten times slower than the model, while long answers stream in many channels.

Each call to it takes as long as the model takes for ten deltas.  Another platform of the
same bot is as quick as ever, and its people must not notice.  Memory is that of the whole
process, the loopback servers and what they have heard included.
"""

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from bot.domain import ChatRequest, Exchange, Status
from tests.adapters.lossless_runs import asked, flowing
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import Script
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces

NAME = "R12"

# So fast that what slows the edits is the platform, and not the interval that we keep.
FACTOR = 50.0
# Real seconds between two deltas; a call takes so many times as long.
_DELTA_SECONDS = 0.1
_SLOWER = 10
_BOUND = 50_000_000  # bytes
_PATIENCE = 120.0
# Which other platform the bot serves meanwhile.
_BESIDE = {"discord": "telegram", "telegram": "slack", "slack": "discord"}


@dataclass(frozen=True, slots=True)
class Size:
    """How many answers stream at once, of how many deltas, and how often somebody asks on the other platform."""

    channels: int
    deltas: int
    asked_beside: int


FULL, SHORT = Size(20, 300, 12), Size(6, 20, 2)


@dataclass
class Slowness:
    """What the slow platform cost."""

    size: Size
    bytes_more: int = 0
    edits: int = 0
    wrong: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # seconds from question to answer on the other platform
    beside: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        deltas = self.size.channels * self.size.deltas
        told = f"{self.size.channels} answers of {self.size.deltas} deltas: {self.bytes_more / 1e6:.1f} MB more, "
        told += f"{deltas:,} deltas in {self.edits:,} calls, wrong {len(self.wrong)}, "
        told += f"violations {len(self.violations)}; an answer on the other platform took "
        told += f"{statistics.median(self.alone):.2f} s before, {statistics.median(self.beside):.2f} s beside"
        return told + "".join(f"; {fault}" for fault in [*self.wrong, *self.violations][:3])

    @property
    def is_kept(self) -> bool:
        is_small = self.bytes_more < _BOUND
        # Beside a call for every tenth delta: the placeholder, its first text, and the whole one.
        is_merged = self.edits < self.size.channels * (2 * self.size.deltas / _SLOWER + 3)
        return is_small and is_merged and not (self.wrong or self.violations)

    @property
    def is_in_time(self) -> bool:
        """Whether nobody on the other platform waited for even one slow call."""
        waited = statistics.median(self.beside) - statistics.median(self.alone)
        return waited < _DELTA_SECONDS * _SLOWER


async def slowness_of(name: str, size: Size) -> Slowness:
    """Let long answers stream on this platform while somebody asks on another one."""
    slowness, clock = Slowness(size), FastClock(FACTOR)

    async def slowly(request: web.Request) -> None:
        slowness.edits += 1
        await asyncio.sleep(_DELTA_SECONDS * _SLOWER)

    @asynccontextmanager
    async def around(platform: Any) -> AsyncIterator[None]:
        platform.call_seconds = 30.0
        yield

    def answer(request: ChatRequest) -> Script:
        question = asked(request)
        return flowing(_deltas(question, size), _DELTA_SECONDS) if "long" in question else f"answer to {question}"

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=size.channels + 1)
    async with (
        open_bench(name, engine, clock, around=around) as bench,
        _beside(bench, _BESIDE[name]) as other,
    ):
        slowness.alone = await _asked(bench, other, size.asked_beside, "before")
        bench.platform.gate.guard = slowly  # type: ignore[attr-defined]  # each loopback platform has one
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            streaming = [
                asyncio.create_task(bench.ask(f"long {number}", f"room{number}", seconds=_PATIENCE))
                for number in range(size.channels)
            ]
            await bench.platform.until(lambda: slowness.edits > size.channels, _PATIENCE)
            slowness.beside = await _asked(bench, other, size.asked_beside, "beside")
            found = await asyncio.gather(*streaming, return_exceptions=True)
            slowness.bytes_more = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        for number, exchange in enumerate(found):
            slowness.wrong += _faults(bench, f"room{number}", exchange, "".join(_deltas(f"long {number}", size)))
        slowness.violations = [*bench.platform.violations, *other.violations]
    return slowness


def _deltas(question: str, size: Size) -> list[str]:
    return [f"{question}.{number} 一些文字 text " for number in range(size.deltas)]


@asynccontextmanager
async def _beside(bench: Bench, name: str) -> AsyncIterator[LoopbackPlatform]:
    """Serve another platform with the same bot."""
    profile = PROFILES[name]
    async with profile.open() as platform:
        adapter = asyncio.create_task(platform.adapter(bench.clock).run(bench.intake))
        try:
            await platform.until(lambda: profile.is_connected(platform) or adapter.done())
            yield platform
        finally:
            if adapter.done():
                adapter.result()
            adapter.cancel()
            await asyncio.gather(adapter, return_exceptions=True)


async def _asked(bench: Bench, platform: LoopbackPlatform, count: int, when: str) -> list[float]:
    """Seconds from question to delivered answer, one after the other."""
    took = []
    for number in range(count):
        question = f"{when} {number}"
        settled, began = bench.intake.settled(question), time.monotonic()
        await platform.say(question, channel=question)
        async with asyncio.timeout(_PATIENCE):
            await settled
        took.append(time.monotonic() - began)
    return took


def _faults(bench: Bench, channel: str, exchange: Exchange | BaseException, answer: str) -> list[str]:
    if not isinstance(exchange, Exchange) or exchange.status is not Status.DELIVERED:
        return [f"{channel}: {exchange!r}" if isinstance(exchange, BaseException) else f"{channel}: {exchange.status}"]
    replies = bench.replies(channel)
    text = "".join(seen.markdown for seen in replies)
    if [seen.id for seen in replies] != list(exchange.parts) or without_spaces(text) != without_spaces(answer):
        return [f"{channel} shows {len(text)} characters of {len(answer)}"]
    return []


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        slowness = await slowness_of(name, FULL if scale == "full" else SHORT)
        yield Row(name, str(slowness), slowness.is_kept, slowness.is_in_time)
