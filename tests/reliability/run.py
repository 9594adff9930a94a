"""Run one figure."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from tests.chaos import processes
from tests.chaos.figure import Figure, Row, Scale
from tests.harness import platform_bench
from tests.harness.loop_monitor import LoopMonitor
from tests.harness.servers.engine_server import served
from tests.harness.servers.model_server import ModelServer


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
