"""R6: a disk without room, while people ask; then there is room again.

Once the database may not grow (max_page_count), once no file of this process may
(RLIMIT_FSIZE), which also hits the log beside it.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field

from bot.domain import ChatRequest
from tests.adapters.lossless_runs import asked
from tests.chaos.faults import Disk, limited_disk
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces

NAME = "R6"

_EXCUSE = without_spaces("I can't save messages right now. Yours is queued and will be answered.")
_CHANNELS = 4
_PATIENCE = 60.0
_FACTOR = 20.0
# Questions that need more pages than there are.
_LONG = " and so on" * 700


@dataclass
class Toll:
    """What became of those who asked."""

    questions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"questions {len(self.questions)}: lost {len(self.lost)}, answered twice {len(self.repeated)}, "
            f"channels not told why they wait {len(self.untold)}, or told twice; recovered without a restart"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.repeated or self.untold)


Full = Callable[[Bench, Disk], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _no_more_pages(bench: Bench, disk: Disk) -> AsyncIterator[None]:
    await disk.limit(1)
    try:
        yield
    finally:
        await disk.limit(1_000_000)


@asynccontextmanager
async def _no_larger_files(bench: Bench, disk: Disk) -> AsyncIterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bench.database.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _answer(request: ChatRequest) -> list[str]:
    return [f"answer to {asked(request)[:12]}", "."]


async def toll_of(name: str, full: Full, questions: int) -> Toll:
    """Fill the disk, ask until all channels are told, make room, and count once all is settled."""
    toll = Toll()
    engine = ScriptedEngine(default=_answer, context_length=10_000_000, max_batch_size=64, max_waiting=1000)
    with limited_disk() as disk:
        async with open_bench(name, engine, FastClock(_FACTOR)) as bench:
            settled: list[asyncio.Future[object]] = []

            async def ask() -> None:
                question = f"question {len(toll.questions):03}{_LONG}"
                toll.questions.append(question[:12])
                settled.append(asyncio.ensure_future(bench.exchanges.finished(question)))
                await bench.platform.say(question, channel=f"room{len(toll.questions) % _CHANNELS}")

            for _ in range(_CHANNELS):
                await ask()
            await asyncio.wait(settled, timeout=_PATIENCE)
            async with full(bench, disk):
                for _ in range(questions):
                    await ask()
                with suppress(TimeoutError):  # who is not told is counted
                    await bench.platform.until(lambda: all(_told(bench)), _PATIENCE)
            await asyncio.wait(settled, timeout=_PATIENCE)
            _count(toll, bench)
    return toll


def _shown(bench: Bench, channel: int) -> list[str]:
    return [without_spaces(seen.visible) for seen in bench.replies(f"room{channel}")]


def _told(bench: Bench) -> list[bool]:
    return [_shown(bench, channel).count(_EXCUSE) == 1 for channel in range(_CHANNELS)]


def _count(toll: Toll, bench: Bench) -> None:
    shown = [text for channel in range(_CHANNELS) for text in _shown(bench, channel)]
    for question in map(without_spaces, toll.questions):
        holding = [text for text in shown if question in text]
        if f"answerto{question}." not in holding:
            toll.lost.append(f"{question}: {holding}")
        elif len(holding) > 1:
            toll.repeated.append(f"{question}: {holding}")
    toll.untold = [f"room{channel}" for channel, is_told in enumerate(_told(bench)) if not is_told]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        toll = await toll_of(name, _no_more_pages, 60 if scale == "full" else 12)
        yield Row(name, f"database that may not grow: {toll}", toll.is_kept)
    toll = await toll_of("telegram", _no_larger_files, 60 if scale == "full" else 12)
    yield Row("files", f"files that may not grow: {toll}", toll.is_kept)
