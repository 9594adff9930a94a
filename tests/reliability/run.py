"""Run one figure."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace

import structlog

from tests.chaos import channel_settings, ledger, one_platform, processes
from tests.chaos.figure import Figure, Row, Scale, figures, title, word
from tests.harness import platform_bench
from tests.harness.loop_monitor import LoopMonitor
from tests.harness.servers.engine_server import served
from tests.harness.servers.model_server import ModelServer


@dataclass(frozen=True, slots=True)
class Options:
    """Options of all figures; a figure in its own process gets them too."""

    scale: Scale
    seed: int
    engine: str
    seconds: float
    """Of each trouble of "one platform"."""
    questions: int | None = None
    """Of "ledger" and "channel settings", in place of their own numbers."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The rows of one figure, and the wall time they took."""

    name: str
    rows: list[Row]
    seconds: float

    @property
    def failed(self) -> int:
        return sum(not (row.is_kept and row.is_in_time) for row in self.rows)

    @property
    def is_only_slow(self) -> bool:
        return self.failed > 0 and all(row.is_kept for row in self.rows)


def measure_by_name(name: str, options: Options) -> Measurement:
    """Measure one figure in this process, printing its rows."""
    # Each injected fault is logged, which would bury the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    one_platform.SECONDS = options.seconds
    if options.questions is not None:
        ledger.QUESTIONS = channel_settings.QUESTIONS = options.questions
    figure = figures()[name]
    print(f"\n{word(figure)} ({name}): {title(figure)}", flush=True)
    began = time.monotonic()
    rows = asyncio.run(_rows(figure, options))
    seconds = time.monotonic() - began
    print(f"{name:<4} {seconds:.0f} s, seed {options.seed}", flush=True)
    return Measurement(name, rows, seconds)


async def _rows(figure: Figure, options: Options) -> list[Row]:
    async with remote_engine() if options.engine == "remote" else nullcontext():
        return await measure(figure, options.scale, options.seed)


async def measure(figure: Figure, scale: Scale, seed: int) -> list[Row]:
    """Run one figure, printing each row as it comes; bots in this process must not block the event loop."""
    rows: list[Row] = []
    with LoopMonitor(only_bots=True) as monitor:
        async with aclosing(figure.rows(scale, seed)) as found:  # type: ignore[type-var]  # they are generators
            async for each in found:
                row = each
                if monitor.slow:
                    longest = max(monitor.slow, key=lambda callback: callback.cpu)
                    told = f"{each.result}; slow callbacks {len(monitor.slow)}: {longest}"
                    row = replace(each, result=told, is_kept=False)
                    monitor.slow.clear()
                verdict = "ok" if row.is_kept and row.is_in_time else "FAILED" if not row.is_kept else "TOO SLOW"
                print(f"{figure.NAME:<4} {row.subject:<12} {verdict:<9} {row.result}", flush=True)
                rows.append(row)
    return rows


@asynccontextmanager
async def remote_engine() -> AsyncIterator[None]:
    """Let every bot of the figures answer from a model server: a process from one that repeats the question."""
    async with ModelServer(lambda question: [question[at : at + 8] for at in range(0, len(question), 8)]) as server:
        processes.ENGINE.update(BOT_ENGINE__BACKEND="remote", BOT_ENGINE__URLS=server.url, BOT_ENGINE__MODEL="scripted")
        direct, platform_bench.wrap_engine = platform_bench.wrap_engine, served
        try:
            yield
        finally:
            platform_bench.wrap_engine = direct
            processes.ENGINE.clear()
