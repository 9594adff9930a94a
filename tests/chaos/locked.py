"""R7: the database, locked by another process for twice as long as the bot waits for it, while people ask.

On each platform some replies are under way when the lock comes; the rest is asked while it
is held.  Meanwhile a task measures how late the event loop is.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bot.domain import ChatRequest
from tests.adapters.lossless_runs import asked, flowing, lateness
from tests.chaos.faults import locked_by_another, percentile
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces

NAME = "R7"

_LATENESS = 0.05  # seconds that the loop may be later than it is when idle
_CHANNELS = 4
_PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class _Size:
    questions: int  # while the database is locked; some more are asked just before
    locked: float
    busy_timeout: float
    idle: float
    factor: float  # how much faster than the platforms' own time


_SIZES: dict[Scale, _Size] = {
    "full": _Size(questions=40, locked=10.0, busy_timeout=5.0, idle=3.0, factor=1.0),
    "short": _Size(questions=8, locked=0.8, busy_timeout=0.2, idle=0.2, factor=20.0),
}


@dataclass
class Toll:
    """What the lock cost."""

    size: _Size
    questions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    told: int = 0
    idle: float = 0.0
    busy: float = 0.0

    def __str__(self) -> str:
        return (
            f"locked for {self.size.locked:g} s, questions {len(self.questions)}: lost {len(self.lost)}, "
            f"answered twice {len(self.repeated)}, channels told to wait {self.told}; lateness of the event loop, "
            f"p99: idle {1e3 * self.idle:.1f} ms, locked {1e3 * self.busy:.1f} ms"
        )


def _words(question: str) -> str:
    return without_spaces(f"answer to {question}.")


def _answer(request: ChatRequest) -> AnswerScript:
    return flowing([f"answer to {asked(request)}", *"."], 0.3)


async def toll_of(name: str, size: _Size) -> Toll:
    """Lock it, ask, open it again, and count once all is settled."""
    toll = Toll(size)
    engine = ScriptedEngine(default=_answer, context_length=100_000, max_batch_size=64)
    async with open_bench(name, engine, FastClock(size.factor), busy_timeout=size.busy_timeout) as bench:
        async with lateness() as idle:
            await asyncio.sleep(size.idle)
        settled: list[asyncio.Future[object]] = []

        async def ask() -> None:
            question = f"question {len(toll.questions):03}"
            toll.questions.append(question)
            settled.append(asyncio.ensure_future(bench.exchanges.finished(question)))
            await bench.platform.say(question, channel=f"room{len(toll.questions) % _CHANNELS}")

        for _ in range(_CHANNELS):
            await ask()
        await engine.asked(_CHANNELS)
        async with locked_by_another(bench.database), lateness() as busy:
            for _ in range(size.questions):
                await ask()
                await asyncio.sleep(size.locked / size.questions)
        await asyncio.wait(settled, timeout=_PATIENCE)
        toll.idle, toll.busy = percentile(idle, 99), percentile(busy, 99)
        _count(toll, bench)
    return toll


def _count(toll: Toll, bench: Bench) -> None:
    channels = [f"room{number}" for number in range(_CHANNELS)]
    shown = [without_spaces(seen.visible) for channel in channels for seen in bench.replies(channel)]
    counts = Counter(shown)
    for question in toll.questions:
        holding = [text for text in shown if without_spaces(question) in text]
        if counts[_words(question)] == 0:
            toll.lost.append(f"{question}: {holding}")
        elif len(holding) > 1:
            toll.repeated.append(f"{question}: {holding}")
    answers = {_words(question) for question in toll.questions}
    toll.told = sum(text not in answers for text in shown)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        toll = await toll_of(name, _SIZES[scale])
        is_kept = not toll.lost and not toll.repeated
        yield Row(name, str(toll), is_kept, toll.busy - toll.idle <= _LATENESS)
