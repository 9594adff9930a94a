"""R6: a full disk while users write; later it has space again.

First only the database cannot grow (max_page_count), then no file of this process can
(RLIMIT_FSIZE), which also affects the write-ahead log.
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

_NOTICE = without_spaces("I can't save messages right now. Yours is queued and will be answered.")
_CHANNELS = 4
_TIMEOUT = 600.0
_FACTOR = 20.0
# Seconds between further questions until the disk is full.
_PAUSE = 0.05
# Shorter than the longest message: of one that is cut off there more may follow, which would be added to it.
_LONG = " and so on" * 160


@dataclass
class FullDiskResult:
    """Consequences of the full disk."""

    questions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unnotified: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"questions {len(self.questions)}: lost {len(self.lost)}, answered twice {len(self.repeated)}, "
            f"channels without exactly one notice {len(self.unnotified)}; recovered without a restart"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.repeated or self.unnotified)


Full = Callable[[Bench, Disk], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _limit_pages(bench: Bench, disk: Disk) -> AsyncIterator[None]:
    await disk.limit(1)
    try:
        yield
    finally:
        await disk.limit(1_000_000)


@asynccontextmanager
async def _limit_file_size(bench: Bench, disk: Disk) -> AsyncIterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bench.database.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _answer(request: ChatRequest) -> list[str]:
    return [f"answer to {asked(request)[:12]}", "."]


async def fill_disk(name: str, full: Full, questions: int) -> FullDiskResult:
    """Fill the disk, ask until every channel has the notice, free space, and count at the end."""
    result = FullDiskResult()
    engine = ScriptedEngine(default=_answer, context_length=10_000_000, max_batch_size=64, max_waiting=1000)
    with limited_disk() as disk:
        async with open_bench(name, engine, FastClock(_FACTOR)) as bench:
            finished: list[asyncio.Future[object]] = []

            async def ask() -> None:
                question = f"question {len(result.questions):03}{_LONG}"
                result.questions.append(question[:12])
                finished.append(asyncio.ensure_future(bench.exchanges.finished(question)))
                await bench.platform.say(question, channel=f"room{len(result.questions) % _CHANNELS}")

            for _ in range(_CHANNELS):
                await ask()
            await asyncio.wait(finished, timeout=_TIMEOUT)
            async with full(bench, disk):
                for _ in range(questions):
                    await ask()
                # The log may have room for a while, as in a database with many tables.
                with suppress(TimeoutError):  # channels without the notice are counted
                    async with asyncio.timeout(_TIMEOUT):
                        while not all(_notified(bench)):
                            await ask()
                            await asyncio.sleep(_PAUSE)
            await asyncio.wait(finished, timeout=_TIMEOUT)
            _count(result, bench)
    return result


def _shown(bench: Bench, channel: int) -> list[str]:
    return [without_spaces(seen.visible) for seen in bench.replies(f"room{channel}")]


def _notified(bench: Bench) -> list[bool]:
    return [_shown(bench, channel).count(_NOTICE) == 1 for channel in range(_CHANNELS)]


def _count(result: FullDiskResult, bench: Bench) -> None:
    shown = [text for channel in range(_CHANNELS) for text in _shown(bench, channel)]
    for question in map(without_spaces, result.questions):
        matching = [text for text in shown if question in text]
        if f"answerto{question}." not in matching:
            result.lost.append(f"{question}: {matching}")
        elif len(matching) > 1:
            result.repeated.append(f"{question}: {matching}")
    result.unnotified = [f"room{channel}" for channel, is_notified in enumerate(_notified(bench)) if not is_notified]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        result = await fill_disk(name, _limit_pages, 60 if scale == "full" else 12)
        yield Row(name, f"database that may not grow: {result}", result.is_kept)
    result = await fill_disk("telegram", _limit_file_size, 60 if scale == "full" else 12)
    yield Row("files", f"files that may not grow: {result}", result.is_kept)
