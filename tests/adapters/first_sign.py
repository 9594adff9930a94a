"""A busy engine, and the first thing that people see after a mention: `python -m tests.adapters.first_sign`.

One answer occupies the engine while questions arrive in channels of their own, five at a time.  Measured is the time from each
question to the first message of its reply, which is "…" or the place in the queue; to the message that shows the question where it is
a command.
"""

import argparse
import asyncio
import logging
import random
import sys
import time
from dataclasses import dataclass

import structlog

from bot.domain import Exchange
from bot.util.clock import MonotonicClock
from tests.chaos.faults import percentile
from tests.harness.fakes import ScriptedEngine
from tests.harness.platform_bench import FORMS, PROFILES, Bench, open_bench
from tests.harness.servers.discord_forms import AskingByCommand

FORM_NAMES = tuple(name for name in PROFILES | FORMS if not name.endswith(("-late", "-refused")))
QUESTIONS = 60
# Seconds of the 95th percentile.
LATEST = 2.0
# Questions that arrive together, and the pause after them.
_TOGETHER, _PAUSE = 5, 0.5


@dataclass(frozen=True, slots=True)
class Signs:
    """Seconds from each question to the first sign, and calls that the platform forbids."""

    seconds: tuple[float, ...]
    violations: tuple[str, ...]

    def __str__(self) -> str:
        p50, p95 = (percentile(list(self.seconds), rank) for rank in (50, 95))
        told = (
            f"{len(self.seconds)} questions to a busy engine, first sign after {p50:.2f} s (p50), {p95:.2f} s (p95), "
        )
        return f"{told}{max(self.seconds):.2f} s at most" + "".join(f"; FAILED {each}" for each in self.violations)

    @property
    def is_kept(self) -> bool:
        return percentile(list(self.seconds), 95) <= LATEST and not self.violations


async def measure(form: str, questions: int = QUESTIONS, seed: int = 7) -> Signs:
    """Ask while the engine is busy, then let it answer everything."""
    chance = random.Random(f"{seed} {form}")
    seconds: list[float] = []
    answers: list[asyncio.Task[Exchange]] = []
    engine = ScriptedEngine(max_batch_size=1, max_waiting=2 * questions)

    async def ask(bench: Bench, number: int) -> None:
        channel = f"room{number}"
        await asyncio.sleep(chance.uniform(0.0, _PAUSE / 5))
        began = time.monotonic()
        question = f"question {number}"
        answering = asyncio.create_task(bench.ask(question, channel))
        await bench.platform.until(lambda: _has_sign(bench, channel, question))
        seconds.append(time.monotonic() - began)
        answers.append(answering)

    async with open_bench(form, engine, MonotonicClock()) as bench:
        engine.go_on.clear()
        occupying = asyncio.create_task(bench.ask("the first question", "first"))
        await engine.asked(1)
        async with asyncio.TaskGroup() as tasks:
            for number in range(questions):
                tasks.create_task(ask(bench, number))
                if number % _TOGETHER == _TOGETHER - 1:
                    await asyncio.sleep(_PAUSE)
        engine.go_on.set()
        await asyncio.gather(occupying, *answers)
        return Signs(tuple(seconds), tuple(bench.platform.violations))


def _has_sign(bench: Bench, channel: str, question: str) -> bool:
    if isinstance(bench.platform, AskingByCommand):
        return bench.platform.has_acknowledged(question)
    return bool(bench.replies(channel))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.first_sign", description=__doc__)
    parser.add_argument("forms", nargs="*", default=FORM_NAMES, metavar="FORM", help=f"of {', '.join(FORM_NAMES)}")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help=f"number of questions (default: {QUESTIONS})")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    is_kept = True
    for form in options.forms:
        signs = asyncio.run(measure(form, options.questions))
        is_kept &= signs.is_kept
        sys.stdout.write(f"{form}: {signs}\n")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
