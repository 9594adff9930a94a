"""CPU time per answered mention of three bots that share the platforms, as a multiple of one bot's.

python -m benchmarks.cluster_cpu [--channels 2000] [--mentions 2] [--rounds 3]

Real processes, the platforms' libraries on loopback servers, the echo engine, PostgreSQL.  In each round one bot and three
bots answer the same mentions on Discord, one channel after the other; rounds alternate.  CPU time is that of all
threads of all bots, also of those that serve no platform, and PostgreSQL's apart.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.chaos.processes import run_bot, until
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES
from tests.harness.postgres import PostgresServer, programs

GOAL = 1.15
WARM_UP = 200
AT_ONCE = 50  # channels whose mentions are under way
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU milliseconds per mention, and the seconds that all took."""

    bots: float
    postgres: float
    seconds: float


def cpu_seconds(processes: Iterable[int]) -> float:
    """Return the CPU seconds of processes and of their ended children."""
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / _TICKS


def server_processes(server: PostgresServer) -> list[int]:
    """Return the ids of the server and its workers."""
    first = int((server.folder / "data" / "postmaster.pid").read_text(encoding="ascii").split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text(encoding="ascii")
    return [first, *map(int, children.split())]


async def ask(platform: LoopbackPlatform, channels: int, mentions: int) -> None:
    """Mention the bot in each channel, and wait for the answers."""
    names = [f"channel-{number}" for number in range(channels)]
    answered = {name: finished(platform, name) for name in names}

    def all_answered(some: Sequence[str]) -> bool:
        return all(finished(platform, name) >= answered[name] for name in some)

    for _ in range(mentions):
        for first in range(0, channels, AT_ONCE):
            some = names[first : first + AT_ONCE]
            for name in some:
                answered[name] += 1
                await platform.say("What is the answer to this question, please?", channel=name)
            await until(partial(all_answered, some))


def finished(platform: LoopbackPlatform, channel: str) -> int:
    """Return how many answers of a channel are complete: the echo engine repeats the question."""
    return sum("please?" in seen.visible for seen in platform.seen(channel) if seen.author == "bot")


async def measure(server: PostgresServer, bots: int, channels: int, mentions: int) -> Cost:
    """Start bots on a new database, let them answer, and return the cost."""
    database = server.url(server.database())
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as opened:
            platforms = {name: await opened.enter_async_context(profile.open()) for name, profile in PROFILES.items()}
            processes = []
            for _ in range(bots):
                home = Path(tempfile.mkdtemp(dir=folder))
                shared = {"BOT_CLUSTER__ENABLED": "true", "BOT_CLUSTER__SHARE": "true"} if bots > 1 else {}
                more = {"BOT_STORAGE__URL": database, **shared}
                processes.append(await opened.enter_async_context(run_bot(platforms, home, more)))
            await until(lambda: all(PROFILES[name].is_connected(each) for name, each in platforms.items()))
            discord = platforms["discord"]
            await ask(discord, min(WARM_UP, channels), 1)
            ids = [each.process.pid for each in processes]
            before, began = (cpu_seconds(ids), cpu_seconds(server_processes(server))), time.monotonic()
            await ask(discord, channels, mentions)
            seconds = time.monotonic() - began
            after = cpu_seconds(ids), cpu_seconds(server_processes(server))
    count = channels * mentions / 1000
    return Cost((after[0] - before[0]) / count, (after[1] - before[1]) / count, seconds)


async def run(channels: int, mentions: int, rounds: int) -> bool:
    folder = programs()
    if folder is None:
        sys.exit("PostgreSQL's server is not installed: apt-get install postgresql")
    costs: dict[int, list[Cost]] = {1: [], 3: []}
    with PostgresServer(folder) as server:
        for number in range(rounds):
            for bots, measured in costs.items():
                measured.append(cost := await measure(server, bots, channels, mentions))
                print(
                    f"round {number + 1}/{rounds}, {bots} bots: {cost.bots:.2f} ms CPU per mention, "
                    f"PostgreSQL {cost.postgres:.2f} ms, {channels * mentions / cost.seconds:.0f} mentions/s",
                    flush=True,
                )
    one, three = ([each.bots for each in costs[bots]] for bots in (1, 3))
    times = median(three) / median(one)
    walls = [median(each.seconds for each in costs[bots]) for bots in (1, 3)]
    print(
        f"three bots: {times:.2f} times the CPU of one per mention (≤ {GOAL}), {walls[1] / walls[0]:.2f} times as long "
        f"on {os.cpu_count()} cores"
    )
    return times <= GOAL


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the CPU time per mention of three bots and of one.")
    parser.add_argument("--channels", type=int, default=2000)
    parser.add_argument("--mentions", type=int, default=2, help="in each channel")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sys.exit(0 if asyncio.run(run(options.channels, options.mentions, options.rounds)) else 1)


if __name__ == "__main__":
    main()
