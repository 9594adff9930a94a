"""Migrate a database of release 0.1.0 under load, while the process is killed again and again.

python -m benchmarks.migration [--exchanges 100000] [--kills 20] [--seed 1]

Prints what was lost, what was answered twice, and how often an old text is in the files at the end: 0 each.
The last start runs until everything is answered and encrypted.  Exit code 1 for any other result.
"""

import argparse
import asyncio
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from benchmarks.store_data import QUESTION
from bot.domain import Answer, Author, ChannelKey, Exchange, IncomingMessage, Kind, Status
from bot.storage.sql import SqlStore
from bot.util.clock import Calendar, MonotonicClock

RELEASE = Path(__file__).parents[1] / "tests" / "data" / "release-0.1.0" / "bot.sql"
# Every old text begins with this.
OLD_WORDS = "the old words"
CHANNELS = 100
# The share of old exchanges that are owed an answer, or its delivery.
OWED = 0.01
# Seconds between two new messages, and until a kill.
INTERVAL = 0.02
SOONEST, LATEST = 0.5, 8.0


def channel(number: int) -> ChannelKey:
    return ChannelKey("slack", f"C{number % CHANNELS}")


def build(path: Path, exchanges: int) -> None:
    """Write the database as release 0.1.0 did."""
    columns = (
        "platform, channel, message, kind, status, seed, author_platform, author, author_name, author_roles, "
        "author_is_bot, text, sent_at, is_direct, answer, notice, reason, prompt_tokens, completion_tokens, parts"
    )

    def row(number: int) -> tuple[object, ...]:
        status = "delivered"
        if number % round(1 / OWED) == 0:
            status = "open" if number % 2 else "answered"
        answer = (None,) * 5 if status == "open" else (f"{OLD_WORDS}, answer {number}", "", "stop", 1, 2)
        said = f"{OLD_WORDS}, question {number}: {QUESTION}"
        place = "slack", f"C{number % CHANNELS}", f"old{number}", "chat", status, number
        return *place, "slack", "U1", "Mei", "[]", 0, said, "2026-11-20 12:00:00.000000", 0, *answer, f'["m{number}"]'

    with closing(sqlite3.connect(path)) as database:
        database.executescript(RELEASE.read_text(encoding="utf-8"))
        database.execute("DELETE FROM exchanges")
        marks = ", ".join("?" * len(columns.split(",")))
        insert = f"INSERT INTO exchanges ({columns}) VALUES ({marks})"  # noqa: S608  # constants
        database.executemany(insert, map(row, range(exchanges)))
        database.commit()


async def serve(url: str, log: Path, run: int, *, is_last: bool) -> None:
    """Answer what is owed and what arrives; note in the log what was acknowledged, until killed."""
    with log.open("a", buffering=1) as acknowledged:

        async def answer(exchange: Exchange) -> None:
            if exchange.answer is None and await store.record_answer(exchange, Answer("a new answer")):
                print("answered", exchange.message.id, file=acknowledged)
            await store.complete(exchange)

        async with SqlStore(url) as store:
            converting = [task for task in asyncio.all_tasks() if task.get_name() == "conversion"]
            for exchange in await store.claim_owed("slack"):
                await answer(exchange)
            for number in count():
                said = IncomingMessage(
                    f"new{run}.{number}",
                    channel(number),
                    Author("slack", "U2", "Ben"),
                    "a new question",
                    Calendar(MonotonicClock()).today(),
                )
                new = await store.enqueue(said, Kind.CHAT)
                assert new is not None, "a new message"
                print("stored", said.id, file=acknowledged)
                await answer(new)
                if is_last and all(task.done() for task in converting):
                    return
                await asyncio.sleep(INTERVAL)


def run_once(url: str, log: Path, run: int, is_killed: Callable[[], bool] | None) -> None:
    """Run the program until a kill, or, without one, until it is done."""
    command = [sys.executable, "-m", "benchmarks.migration", "--serve", url, str(log), str(run)]
    command += ["last"] if is_killed is None else []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603  # itself
        while is_killed is not None and not is_killed() and process.poll() is None:
            time.sleep(0.02)
        if is_killed is not None and process.returncode is None:
            process.kill()
        elif process.wait() != 0 or is_killed is not None:
            raise RuntimeError(f"the program ended with {process.returncode}")


def kill_times(log: Path, chance: random.Random) -> Iterator[Callable[[], bool]]:
    """Yield moments in turn: some seconds after the start, and after some acknowledged messages."""

    def lines() -> int:
        return log.read_text().count("\n") if log.exists() else 0

    while True:
        end = time.monotonic() + chance.uniform(SOONEST, LATEST)
        yield lambda end=end: time.monotonic() >= end  # type: ignore[misc]  # bound at once
        most = lines() + chance.randrange(1, 200)
        yield lambda most=most: lines() >= most  # type: ignore[misc]


async def count_lost(url: str, exchanges: int, noted: list[list[str]]) -> tuple[int, int]:
    """Return how many exchanges are lost or undelivered, and how many messages were answered twice."""
    expected = {
        f"old{n}": (f"{OLD_WORDS}, question {n}: {QUESTION}", f"{OLD_WORDS}, answer {n}") for n in range(exchanges)
    }
    answered = Counter(id for what, id in noted if what == "answered")
    for _, id in noted:
        text = expected[id][0] if id in expected else "a new question"
        expected[id] = text, "a new answer"
    async with SqlStore(url) as store:
        found = await store.said_since("slack", datetime(2000, 1, 1, tzinfo=UTC))
    kept = {
        each.message.id: (each.message.text, each.answer.text)
        for each in found
        if each.status is Status.DELIVERED and each.answer is not None
    }
    return sum(kept.get(id) != texts for id, texts in expected.items()), sum(n > 1 for n in answered.values())


def main() -> int:
    parser = argparse.ArgumentParser(description="Migrate a database of 0.1.0 under load and kills.")
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        url, log, run, *last = options.serve
        asyncio.run(serve(url, Path(log), int(run), is_last=bool(last)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log, data = folder / "log", folder / "data"
        data.mkdir()
        build(data / "bot.db", options.exchanges)
        before = (data / "bot.db").stat().st_size
        url, chance, began = f"sqlite+aiosqlite:///{data / 'bot.db'}", random.Random(options.seed), time.monotonic()
        for run, is_killed in zip(range(options.kills), kill_times(log, chance), strict=False):
            run_once(url, log, run, is_killed)
        run_once(url, log, options.kills, None)
        seconds = time.monotonic() - began
        plain = sum(path.read_bytes().count(OLD_WORDS.encode()) for path in data.iterdir())
        noted = [line.split() for line in log.read_text().splitlines()]
        lost, twice = asyncio.run(count_lost(url, options.exchanges, noted))
        new = sum(what == "stored" for what, _ in noted)
    size = f"{before / 1e6:.0f} MB, {seconds:.0f} s"
    print(f"{options.exchanges:,} exchanges of 0.1.0 ({size}), {options.kills} kill -9, {new:,} new messages")
    print(f"lost {lost}, answered twice {twice}, old plaintext in the files at the end {plain}")
    return int(bool(lost or twice or plain))


if __name__ == "__main__":
    sys.exit(main())
