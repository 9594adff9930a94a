"""R7: a database locked by another process for twice the busy timeout, while users write.

On each platform some replies are in flight when the lock is taken; the other questions
arrive while it is held.  A task measures the latency of the event loop meanwhile.
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

_LATENESS = 0.05  # seconds that the p99 may exceed that of the idle loop
_CHANNELS = 4
_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class _Size:
    questions: int  # while the database is locked; a few more come just before
    locked: float
    busy_timeout: float
    idle: float
    factor: float  # speed-up of the platforms' time


_SIZES: dict[Scale, _Size] = {
    "full": _Size(questions=40, locked=10.0, busy_timeout=5.0, idle=3.0, factor=1.0),
    "short": _Size(questions=8, locked=0.8, busy_timeout=0.2, idle=0.2, factor=20.0),
}


@dataclass
class LockResult:
    """Consequences of the lock."""

    size: _Size
    questions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    notified: int = 0
    idle: float = 0.0
    busy: float = 0.0

    def __str__(self) -> str:
        return (
            f"locked for {self.size.locked:g} s, questions {len(self.questions)}: lost {len(self.lost)}, "
            f"answered twice {len(self.repeated)}, channels with a notice {self.notified}; latency of the event loop, "
            f"p99: idle {1e3 * self.idle:.1f} ms, locked {1e3 * self.busy:.1f} ms"
        )


def _answer_text(question: str) -> str:
    return without_spaces(f"answer to {question}.")


def _script(request: ChatRequest) -> AnswerScript:
    return flowing([f"answer to {asked(request)}", *"."], 0.3)


async def lock_database(name: str, size: _Size) -> LockResult:
    """Ask while the database is locked, release it, and count when all exchanges have finished."""
    result = LockResult(size)
    engine = ScriptedEngine(default=_script, context_length=100_000, max_batch_size=64)
    async with open_bench(name, engine, FastClock(size.factor), busy_timeout=size.busy_timeout) as bench:
        async with lateness() as idle:
            await asyncio.sleep(size.idle)
        finished: list[asyncio.Future[object]] = []

        async def ask() -> None:
            question = f"question {len(result.questions):03}"
            result.questions.append(question)
            finished.append(asyncio.ensure_future(bench.exchanges.finished(question)))
            await bench.platform.say(question, channel=f"room{len(result.questions) % _CHANNELS}")

        for _ in range(_CHANNELS):
            await ask()
        await engine.asked(_CHANNELS)
        async with locked_by_another(bench.database), lateness() as busy:
            for _ in range(size.questions):
                await ask()
                await asyncio.sleep(size.locked / size.questions)
        await asyncio.wait(finished, timeout=_TIMEOUT)
        result.idle, result.busy = percentile(idle, 99), percentile(busy, 99)
        _count(result, bench)
    return result


def _count(result: LockResult, bench: Bench) -> None:
    channels = [f"room{number}" for number in range(_CHANNELS)]
    shown = [without_spaces(seen.visible) for channel in channels for seen in bench.replies(channel)]
    counts = Counter(shown)
    for question in result.questions:
        matching = [text for text in shown if without_spaces(question) in text]
        if counts[_answer_text(question)] == 0:
            result.lost.append(f"{question}: {matching}")
        elif len(matching) > 1:
            result.repeated.append(f"{question}: {matching}")
    answers = {_answer_text(question) for question in result.questions}
    result.notified = sum(text not in answers for text in shown)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        result = await lock_database(name, _SIZES[scale])
        is_kept = not result.lost and not result.repeated
        yield Row(name, str(result), is_kept, result.busy - result.idle <= _LATENESS)
