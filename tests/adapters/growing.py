"""Slack's limits and growing replies: `python -m tests.adapters.growing` prints how late the last edits are.

Five replies grow at once for a minute and a half, in five channels, on a workspace that refuses more calls a minute than Slack
does: by edits, and as streams.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bot.domain import Action, ChatRequest
from tests.adapters.lossless_runs import asked
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import Item
from tests.harness.platform_bench import Bench, open_bench
from tests.harness.servers.slack import SlackServer

# Calls a minute: tiers 2, 3 and 4 of https://docs.slack.dev/apis/web-api/rate-limits.
LIMITS = {
    "chat.update": 50,
    "agents.sessions.setStatus": 50,
    "chat.startStream": 20,
    "chat.stopStream": 20,
    "chat.appendStream": 100,
}
_REPLIES = 5
_DELTAS_A_SECOND = 10.0
# Seconds that a last edit may take.
LATEST = 3.0


@dataclass(frozen=True, slots=True)
class Growing:
    """Seconds from the last token of each reply to its last edit; the most calls in any minute; how many were refused."""

    late: tuple[float, ...]
    calls: dict[str, int]
    refused: int

    def __str__(self) -> str:
        calls = ", ".join(f"{method} {count}" for method, count in sorted(self.calls.items()))
        return (
            f"last edits after at most {max(self.late):.1f} s, calls refused {self.refused}, most in a minute: {calls}"
        )

    @property
    def is_kept(self) -> bool:
        return max(self.late) <= LATEST and not self.refused


async def grow(form: str, seconds: float = 90.0, factor: float = 5.0) -> Growing:
    """Let the replies grow for so many of the bot's seconds, `factor` times as fast."""
    ended: dict[str, float] = {}
    late: list[float] = []

    def items(request: ChatRequest) -> Iterator[Item]:
        for number in range(int(seconds * _DELTAS_A_SECOND)):
            yield f"{number:03} 字 "
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(1 / _DELTAS_A_SECOND / factor, pause.set)
            yield pause
        ended[asked(request)] = time.monotonic()

    async def one(bench: Bench, number: int) -> None:
        question, channel = f"question {number}", f"room{number}"
        answering = asyncio.create_task(bench.ask(question, channel))
        await bench.platform.until(
            lambda: question in ended and bool(found := bench.replies(channel)) and found[-1].actions == {Action.RETRY}
        )
        late.append(factor * (time.monotonic() - ended[question]))
        await answering

    engine = ScriptedEngine(default=items, context_length=1_000_000, max_batch_size=_REPLIES)
    async with open_bench(form, engine, FastClock(factor)) as bench:
        server = bench.platform
        assert isinstance(server, SlackServer)
        server.per_minute = dict(LIMITS)
        async with asyncio.TaskGroup() as tasks:
            for number in range(_REPLIES):
                tasks.create_task(one(bench, number))
        calls = {method: _most(server.called_at.get(method, [])) for method in LIMITS}
        return Growing(tuple(late), {method: count for method, count in calls.items() if count}, server.over_limit)


def _most(times: list[float]) -> int:
    """Return the most calls within a minute."""
    return max((sum(start <= at < start + 60.0 for at in times) for start in times), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.growing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the replies grow (default: 90)")
    options = parser.parse_args()
    results = {form: asyncio.run(grow(form, options.seconds)) for form in ("slack", "slack-streams")}
    for form, result in results.items():
        sys.stdout.write(f"{form}: {result}\n")
    return 0 if all(result.is_kept for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
