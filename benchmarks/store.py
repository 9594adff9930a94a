"""Latency of each store call over the size of the database, and what the others wait meanwhile.

python -m benchmarks.store [--sizes 100 1000000] [--calls 200] [--folder FOLDER]

The databases are SQLite files with the same channels: 1,000 of them, one with a fifth of all
exchanges.  The calls of all sizes alternate, so other load on the machine disturbs them alike.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, insert, select

from benchmarks.report import percentile
from bot.domain import Answer, Author, ChannelKey, IncomingMessage, Kind, Status, Usage
from bot.storage import migrate
from bot.storage.connections import locate, migrator
from bot.storage.keys import BATCH, keys_of
from bot.storage.rows import answer_texts, answer_values, message_values, question_texts
from bot.storage.schema import channels, exchanges, parts
from bot.storage.sql import SqlStore
from bot.storage.vault import KeyChanges, Vault

CHANNELS = 1_000
# The share of all exchanges that the first channel has.
LARGE = 0.2
AUTHORS = 5_000
QUESTION = "How do I read a large file line by line, and stop at the first empty one? " * 3
ANSWER = "Open it in a with statement and iterate over it; each step returns one line. " * 16
FIRST = datetime(2024, 1, 1, tzinfo=UTC)

# How often slower a call may be in the largest database.
LIMIT = 2.0
# Seconds that a new message may wait while something is deleted.
INTAKE_LIMIT = 0.1


def channel(number: int) -> ChannelKey:
    return ChannelKey("slack", f"C{number}")


def message(number: int, where: int, author: int) -> IncomingMessage:
    return IncomingMessage(
        id=f"17000{number:08}.000100",
        channel=channel(where),
        author=Author("slack", f"U{author}", f"Person {author}"),
        text=QUESTION,
        sent_at=FIRST + timedelta(seconds=40 * number),
    )


def build(path: Path, size: int) -> None:
    """Write a database of `size` delivered exchanges."""
    url = f"sqlite+aiosqlite:///{path}"
    migrate.upgrade(url, 5.0)
    location = locate(url)
    chance = random.Random(size)
    with closing(keys_of(location)) as keys, migrator(location).begin() as connection:
        vault = Vault(keys)
        changes = KeyChanges(connection, vault)
        vault.open(changes)
        for start in range(0, size, BATCH):
            numbers = range(start, min(start + BATCH, size))
            connection.execute(insert(exchanges), [_row(number, chance, vault, changes) for number in numbers])
            connection.execute(
                insert(parts),
                [{"exchange": number + 1, "number": 0, "message": f"17000{number:08}.000200"} for number in numbers],
            )
        place = exchanges.c.platform, exchanges.c.channel, func.coalesce(exchanges.c.thread, "")
        newest = select(*place, func.max(exchanges.c.id), exchanges.c.message).group_by(*place)
        names = ["platform", "channel", "thread", "last_exchange", "last_message"]
        connection.execute(insert(channels).from_select(names, newest))
        changes.prepare()


def _row(number: int, chance: random.Random, vault: Vault, changes: KeyChanges) -> dict[str, Any]:
    where = 0 if chance.random() < LARGE else chance.randrange(1, CHANNELS)
    said = message(number, where, chance.randrange(AUTHORS))
    answer = Answer(ANSWER, usage=Usage(400, 300))
    return {
        **message_values(said),
        **changes.encrypt(exchanges, "question_key", question_texts(said)),
        **answer_values(answer),
        **changes.encrypt(exchanges, "answer_key", answer_texts(answer)),
        "id": number + 1,
        "author": vault.pseudonym(said.author.platform, said.author.id),
        "kind": Kind.CHAT,
        "status": Status.DELIVERED,
        "seed": number,
        "fence": 1,
    }


Result = TypeVar("Result")


class Timings:
    """Seconds of each call, by its name and the size of the database."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    async def measure(self, name: str, size: int, call: Awaitable[Result]) -> Result:
        began = time.perf_counter()
        result = await call
        self.seconds[name][size].append(time.perf_counter() - began)
        return result


async def answer_one(store: SqlStore, size: int, number: int, where: int, timings: Timings) -> None:
    """Make the calls of an answered message, and those of a button under it."""
    place = "large channel" if where == 0 else "small channel"
    said = message(size + number, where, number % AUTHORS)
    exchange = await timings.measure("enqueue", size, store.enqueue(said, Kind.CHAT))
    assert exchange is not None, "a new message"
    await timings.measure(f"history, {place}", size, store.history(exchange, 20))
    reply = f"17900{number:08}.000300"
    await timings.measure("record_part", size, store.record_part(exchange, 0, reply))
    await timings.measure("record_answer", size, store.record_answer(exchange, Answer(ANSWER, usage=Usage(400, 300))))
    await timings.measure("complete", size, store.complete(exchange))
    await timings.measure("find", size, store.find(said.channel, said.id))
    await timings.measure(f"find_by_reply, {place}", size, store.find_by_reply(said.channel, reply))
    await timings.measure("latest", size, store.latest(said.channel, said.author))
    await timings.measure("has_history", size, store.has_history(said.channel))


async def while_messages_arrive(store: SqlStore, size: int, work: Awaitable[object]) -> tuple[float, float]:
    """Return the seconds of the work, and the longest that a new message waited meanwhile."""
    longest, is_done = 0.0, False

    async def arrive() -> None:
        nonlocal longest
        for number in count(2 * size + 10_000):
            began = time.perf_counter()
            await store.enqueue(message(number, CHANNELS - 1, 0), Kind.CHAT)
            longest = max(longest, time.perf_counter() - began)
            if is_done:
                return

    arriving = asyncio.create_task(arrive())
    began = time.perf_counter()
    await work
    seconds = time.perf_counter() - began
    is_done = True
    await arriving
    return seconds, longest


@dataclass
class Line:
    """One line of the table; values are seconds by size."""

    name: str
    values: dict[int, float]
    limit: float | None = None  # seconds in the largest database; None compares with the smallest

    def __str__(self) -> str:
        sizes = sorted(self.values)
        cells = "  ".join(f"{1000 * self.values[size]:>12,.1f}" for size in sizes)
        ratio = self.values[sizes[-1]] / self.values[sizes[0]]
        is_kept = ratio <= LIMIT if self.limit is None else self.values[sizes[-1]] <= self.limit
        bound = f"≤ {LIMIT:g} times" if self.limit is None else f"≤ {1000 * self.limit:g} ms"
        return f"{self.name:36}{cells}  {ratio:8.1f} times   {bound:12} {'ok' if is_kept else 'MISSED'}"


async def measure(folder: Path, sizes: list[int], calls: int) -> Iterator[Line]:
    timings = Timings()
    lines: list[Line] = []
    async with AsyncExitStack() as stack:
        stores: dict[int, SqlStore] = {}
        for size in sizes:
            path = folder / f"{size}.db"
            store = SqlStore(f"sqlite+aiosqlite:///{path}")
            stores[size] = await timings.measure("start", size, stack.enter_async_context(store))
        for number in range(calls):
            for size, store in stores.items():
                await answer_one(store, size, number, 0 if number % 2 else 1 + number % (CHANNELS - 1), timings)
        since = {size: FIRST + timedelta(seconds=40 * size - 1800) for size in sizes}
        for size, store in stores.items():
            for _ in range(10):
                await timings.measure("claim_owed", size, store.claim_owed("slack"))
                await timings.measure("said_since, 30 minutes", size, store.said_since("slack", since[size]))
                await timings.measure("last_message_ids", size, store.last_message_ids("slack"))
        lines += [
            Line(f"{name}, p{share}", {size: percentile(each[size], share / 100) for size in sizes})
            for name, each in timings.seconds.items()
            for share in ((50, 99) if len(each[sizes[0]]) > 10 else (50,))
        ]
        deletions: dict[str, dict[int, float]] = defaultdict(dict)
        for size, store in stores.items():
            began = time.perf_counter()
            await asyncio.gather(*(store.enqueue(message(3 * size + 20_000 + n, 7, n), Kind.CHAT) for n in range(200)))
            deletions["200 enqueue at once"][size] = time.perf_counter() - began
            half = FIRST + timedelta(seconds=20 * size)
            works: dict[str, Callable[[], Awaitable[object]]] = {
                "/clear of a channel": partial(store.clear, channel(5)),
                "/forget me": partial(store.forget, Author("slack", "U7", "")),
                "retention of half": partial(store.expire, half),
            }
            for name, work in works.items():
                seconds, waited = await while_messages_arrive(store, size, work())
                deletions[name][size] = seconds
                deletions[f"{name}: intake waits"][size] = waited
        limits = {"200 enqueue at once": 0.5, "/clear of a channel": 0.2, "/forget me": 2.0}
        lines += [
            Line(name, values, INTAKE_LIMIT if name.endswith("waits") else limits.get(name, 1e9))
            for name, values in deletions.items()
        ]
    return iter(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the latency of store calls over the size of the database.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="keep the databases here, and use those of an earlier run")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for size in sizes:
            if not (folder / f"{size}.db").exists():
                print(f"writing {size:,} exchanges …", flush=True)
                build(folder / f"{size}.db", size)
        print(f"{'milliseconds':36}" + "  ".join(f"{size:>12,}" for size in sizes))
        for line in asyncio.run(measure(folder, sizes, options.calls)):
            print(line)


if __name__ == "__main__":
    main()
