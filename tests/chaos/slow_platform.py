"""R12: a platform ten times slower than the model, while long answers stream in many channels.

Each call takes as long as ten deltas of the model.  A second platform of the same bot has
its normal speed, and must not slow down.  Memory includes the loopback servers and the
messages they store.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from bot.domain import ChatRequest, Exchange, Status
from tests.adapters.lossless_runs import asked
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ManualClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript, Item
from tests.harness.loop_monitor import start_bot
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces

NAME = "R12"

# The platform limits the edits at this speed, not the edit interval.
FACTOR = 50.0
# Seconds between two deltas; a call takes `_SLOWER` times as long.  On a busy machine these seconds are longer for both.
_DELTA_SECONDS = 0.1
_SLOWER = 10
_BOUND = 50_000_000  # bytes
_TIMEOUT = 600.0
# The second platform.
_OTHER = {"discord": "telegram", "telegram": "slack", "slack": "discord"}


@dataclass(frozen=True, slots=True)
class Size:
    """Concurrent answers, deltas of each, and questions on the second platform."""

    channels: int
    deltas: int
    other_questions: int


FULL, SHORT = Size(20, 300, 12), Size(6, 20, 2)


@dataclass
class SlowdownResult:
    """Memory, calls and errors on the slow platform, and latencies on the second one."""

    size: Size
    bytes_more: int = 0
    edits: int = 0
    wrong: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    before: list[float] = field(default_factory=list)  # seconds per answer on the second platform
    meanwhile: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        deltas = self.size.channels * self.size.deltas
        text = f"{self.size.channels} answers of {self.size.deltas} deltas: {self.bytes_more / 1e6:.1f} MB more, "
        text += f"{deltas:,} deltas in {self.edits:,} calls, wrong {len(self.wrong)}, "
        text += f"violations {len(self.violations)}; an answer on the other platform took "
        text += f"{statistics.median(self.before):.2f} s before, {statistics.median(self.meanwhile):.2f} s beside"
        return text + "".join(f"; {fault}" for fault in [*self.wrong, *self.violations][:3])

    @property
    def is_kept(self) -> bool:
        is_small = self.bytes_more < _BOUND
        # Besides a call per ten deltas: the placeholder, its first text and the final text.
        is_merged = self.edits < self.size.channels * (2 * self.size.deltas / _SLOWER + 3)
        return is_small and is_merged and not (self.wrong or self.violations)

    @property
    def is_in_time(self) -> bool:
        """Return whether the second platform waited less than one slow call."""
        waited = statistics.median(self.meanwhile) - statistics.median(self.before)
        return waited < _DELTA_SECONDS * _SLOWER


async def slow_down(name: str, size: Size) -> SlowdownResult:
    """Stream long answers on a slow platform while questions are asked on the second one."""
    result, clock, pace = SlowdownResult(size), FastClock(FACTOR), ManualClock()

    async def delay(request: web.Request) -> None:
        result.edits += request.method != "GET"  # Slack is asked for names, the more often the slower it is
        await pace.sleep(_DELTA_SECONDS * _SLOWER)

    @asynccontextmanager
    async def around(platform: Any) -> AsyncIterator[None]:
        platform.call_seconds = 30.0
        yield

    def answer(request: ChatRequest) -> AnswerScript:
        question = asked(request)
        return _flowing(_deltas(question, size), pace) if "long" in question else f"answer to {question}"

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=size.channels + 1)
    async with (
        _keeping(pace),
        open_bench(name, engine, clock, around=around) as bench,
        _serve_other(bench, _OTHER[name]) as other,
    ):
        result.before = await _latencies(bench, other, size.other_questions, "before")
        bench.platform.gate.guard = delay  # type: ignore[attr-defined]  # each loopback platform has one
        gc.collect()
        start = _restart_peak()
        streaming = [
            asyncio.create_task(bench.ask(f"long {number}", f"room{number}", seconds=_TIMEOUT))
            for number in range(size.channels)
        ]
        await bench.platform.until(lambda: result.edits > size.channels, _TIMEOUT)
        result.meanwhile = await _latencies(bench, other, size.other_questions, "beside")
        found = await asyncio.gather(*streaming, return_exceptions=True)
        result.bytes_more = _memory("VmHWM") - start
        for number, exchange in enumerate(found):
            result.wrong += _faults(bench, f"room{number}", exchange, "".join(_deltas(f"long {number}", size)))
        result.violations = [*bench.platform.violations, *other.violations]
    return result


def _memory(field: str) -> int:
    """Return a field of this process's memory in bytes; tracing each allocation would slow the event loop down."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def _restart_peak() -> int:
    """Let the peak of resident memory begin at its present value, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return _memory("VmRSS")


def _deltas(question: str, size: Size) -> list[str]:
    return [f"{question}.{number} 一些文字 text " for number in range(size.deltas)]


def _flowing(deltas: list[str], pace: ManualClock) -> Iterator[Item]:
    for delta in deltas:
        yield delta
        yield _pause(pace)


def _pause(pace: ManualClock) -> asyncio.Event:
    over = asyncio.Event()
    asyncio.ensure_future(pace.sleep(_DELTA_SECONDS)).add_done_callback(lambda _: over.set())
    return over


@asynccontextmanager
async def _keeping(pace: ManualClock) -> AsyncIterator[None]:
    """Advance the clock by a delta after another, each at least as long as in real time."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(_DELTA_SECONDS)
            await pace.advance(_DELTA_SECONDS)

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def _serve_other(bench: Bench, name: str) -> AsyncIterator[LoopbackPlatform]:
    """Serve a second platform with the same bot."""
    profile = PROFILES[name]
    async with profile.open() as platform:
        work = platform.adapter(bench.clock).run(bench.intake)
        adapter = start_bot(work, lambda: profile.is_connected(platform))
        try:
            await platform.until(lambda: profile.is_connected(platform) or adapter.done())
            yield platform
        finally:
            if adapter.done():
                adapter.result()
            adapter.cancel()
            await asyncio.gather(adapter, return_exceptions=True)


async def _latencies(bench: Bench, platform: LoopbackPlatform, count: int, when: str) -> list[float]:
    """Ask one question after another; return the seconds until each is delivered."""
    seconds = []
    for number in range(count):
        question = f"{when} {number}"
        finished, began = bench.exchanges.finished(question), time.monotonic()
        await platform.say(question, channel=question)
        async with asyncio.timeout(_TIMEOUT):
            await finished
        seconds.append(time.monotonic() - began)
    return seconds


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
        result = await slow_down(name, FULL if scale == "full" else SHORT)
        yield Row(name, str(result), result.is_kept, result.is_in_time)
