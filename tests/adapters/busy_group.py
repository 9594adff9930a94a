"""Twelve short questions within six seconds in a Telegram group that allows 20 calls a minute.

`python -m tests.adapters.busy_group` prints how long the last one waits for its answer, in the bot's seconds.
"""

import argparse
import asyncio
import logging
import math
import sys
from collections import Counter, deque
from dataclasses import dataclass, field

import structlog

from bot.util.clock import Clock
from tests.adapters.lossless_runs import asked, flowing
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform import Fault
from tests.harness.platform_bench import open_bench

QUESTIONS = 12
SECONDS = 6.0
PER_MINUTE = 20
# The longest that the last answer may take, and the model's time for a short answer.
LIMIT = 40.0
_ANSWER = 1.5
_MINUTE = 60.0


@dataclass(slots=True)
class GroupLimit:
    """A FaultScript that allows PER_MINUTE calls in any minute, edits included: Telegram does not say whether they count."""

    clock: Clock
    calls: Counter[str] = field(default_factory=Counter)
    _allowed: deque[float] = field(default_factory=deque)

    def __call__(self, number: int, name: str) -> Fault | None:
        now = self.clock.now()
        while self._allowed and self._allowed[0] <= now - _MINUTE:
            self._allowed.popleft()
        if len(self._allowed) >= PER_MINUTE:
            self.calls["429"] += 1
            return Fault("429", math.ceil(self._allowed[0] + _MINUTE - now))
        self.calls[name] += 1
        self._allowed.append(now)
        return None


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from each question to its complete answer, and the calls made."""

    seconds: tuple[float, ...]
    calls: Counter[str]
    violations: tuple[str, ...]

    @property
    def longest(self) -> float:
        return max(self.seconds)


async def measure(factor: float = 4.0) -> Waits:
    clock = FastClock(factor)
    limit = GroupLimit(clock)
    engine = ScriptedEngine(
        default=lambda request: flowing(
            [f"{word} " for word in ("short", "answer", asked(request))], _ANSWER / 3 / factor
        ),
        context_length=1_000_000,
        max_batch_size=QUESTIONS,
        max_waiting=QUESTIONS,
    )
    async with open_bench("telegram-rich", engine, clock) as bench:
        bench.platform.script = limit

        async def one(number: int) -> float:
            await clock.sleep(number * SECONDS / QUESTIONS)
            began = clock.now()
            await bench.ask(f"question {number}", "general")
            return clock.now() - began

        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(one(number)) for number in range(QUESTIONS)]
        shown = Counter(seen.visible.strip() for seen in bench.replies("general"))
        wrong = shown != Counter(f"short answer question {number}" for number in range(QUESTIONS))
        violations = [*bench.platform.violations, *([f"wrong answers: {dict(shown)}"] if wrong else [])]
    return Waits(tuple(task.result() for task in asking), limit.calls, tuple(violations))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.busy_group", description=__doc__)
    parser.add_argument("--factor", type=float, default=4.0, help="speed of the bot's clock (default: 4)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    waits = asyncio.run(measure(options.factor))
    calls = ", ".join(f"{name} {count}" for name, count in sorted(waits.calls.items()))
    sys.stdout.write(
        f"{QUESTIONS} questions in {SECONDS:.0f} s, {PER_MINUTE} calls a minute: answered after "
        f"{min(waits.seconds):.1f} to {waits.longest:.1f} s (limit {LIMIT:.0f}); calls: {calls}\n"
    )
    for each in waits.violations:
        sys.stdout.write(f"FAILED {each}\n")
    return 1 if waits.violations or waits.longest > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
