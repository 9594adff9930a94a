"""Latency of each store call over the size of the database, and what the others wait meanwhile.

python -m benchmarks.store [--sizes 100 10000 100000 1000000] [--calls 200] [--folder FOLDER] [--postgres] [--plot FILE]

The databases have the same channels: 1,000 of them, one with a fifth of all exchanges.  The calls
of all sizes alternate, so other load on the machine disturbs them alike.
"""

import argparse
import asyncio
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from sqlalchemy import Engine, event

from benchmarks.report import percentile
from benchmarks.store_data import (
    ANSWER,
    AUTHORS,
    CHANNELS,
    FIRST,
    channel,
    copied,
    fill,
    growth_by_encryption,
    kept,
    message,
)
from bot.domain import Answer, Author, Kind, Usage
from bot.storage.connections import locate, migrator
from bot.storage.sql import SqlStore
from tests.harness.postgres import PostgresServer, programs

# How often slower a call may be in the largest database.
LIMIT = 2.0
# Seconds that a new message may wait while something is deleted.
INTAKE_LIMIT = 0.1
# Seconds that the largest database may take longer to start than the smallest.
START_LIMIT = 1.0
ENQUEUES, FSYNCS = 200, 10
CLEARED, FORGOTTEN = 80, 10_000
# A channel and a person that only the deletions use.
CLEARED_CHANNEL, FORGOTTEN_AUTHOR = CHANNELS, AUTHORS
GROWTH_LIMIT, GROWTH_SIZE = 0.15, 10_000
# Servers hold their databases in memory here.
LARGEST_ON_SERVER = 100_000

# Tables that grow with the messages; the others have one row, or what a start reads whole.
_SCAN = re.compile(r"(SCAN|Seq Scan on) (exchanges|parts|channels)\b")

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


@dataclass
class Line:
    """One line of the table; values are seconds by size.

    The largest database may take `limit` seconds (infinity for any time), or `more` seconds more
    than the smallest; without both, LIMIT times as long.
    """

    name: str
    values: Mapping[int, float]
    limit: float | None = None
    more: float | None = None

    def __str__(self) -> str:
        sizes = sorted(self.values)
        small, large = self.values[sizes[0]], self.values[sizes[-1]]
        cells = "  ".join(f"{1000 * self.values[size]:>10,.1f}" for size in sizes)
        if self.limit == math.inf:
            return f"{self.name:36}{cells}  {large / small:8.1f} times"
        if self.limit is not None:
            bound, is_kept = f"≤ {1000 * self.limit:g} ms", large <= self.limit
        elif self.more is not None:
            bound, is_kept = f"≤ {1000 * self.more:g} ms more", large - small <= self.more
        else:
            bound, is_kept = f"≤ {LIMIT:g} times", large <= LIMIT * small
        return f"{self.name:36}{cells}  {large / small:8.1f} times   {bound:14} {'ok' if is_kept else 'MISSED'}"


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


async def start(store: SqlStore, size: int, timings: Timings) -> None:
    """Make the calls between the start of the program and its first answer."""
    began = time.perf_counter()
    await timings.measure("settings", size, store.settings())
    await timings.measure("claim_owed", size, store.claim_owed("slack"))
    await timings.measure("last_message_ids", size, store.last_message_ids("slack"))
    since = FIRST + timedelta(seconds=40 * (2 * size + CLEARED + FORGOTTEN) - 1800)
    await timings.measure("said_since, 30 minutes", size, store.said_since("slack", since))
    timings.seconds["start to ready"][size][-1] += time.perf_counter() - began


async def while_messages_arrive(store: SqlStore, first: int, work: Awaitable[object]) -> tuple[float, float]:
    """Return the seconds of the work, and the longest that a new message waited meanwhile."""
    longest, is_done = 0.0, False

    async def arrive() -> None:
        nonlocal longest
        for number in count(first):
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


async def measure_deletions(stores: Mapping[int, SqlStore]) -> Iterator[Line]:
    """Delete what `add_deletable` has added, and at last half of all."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    names = f"/clear of {CLEARED}", f"/forget me of {FORGOTTEN:,}", "retention of half"
    for size, store in stores.items():
        half = FIRST + timedelta(seconds=20 * size)
        works: tuple[Callable[[], Awaitable[object]], ...] = (
            partial(store.clear, channel(CLEARED_CHANNEL)),
            partial(store.forget, Author("slack", f"U{FORGOTTEN_AUTHOR}", "")),
            partial(store.expire, half),
        )
        for number, (name, work) in enumerate(zip(names, works, strict=True)):
            seconds, waited = await while_messages_arrive(store, 10 * size + 1_000_000 * (1 + number), work())
            found[name][size] = seconds
            found[f"{name}: intake waits"][size] = waited
    limits = dict(zip(names, (0.2, 2.0, math.inf), strict=True))
    return iter([Line(name, each, limits.get(name, INTAKE_LIMIT)) for name, each in found.items()])


def add_deletable(url: str, size: int) -> None:
    """Add a channel to clear and a person to forget, alike in databases of all sizes."""

    def place(number: int, chance: Random) -> tuple[int, int]:
        if number < 2 * size + CLEARED:
            return CLEARED_CHANNEL, chance.randrange(AUTHORS)
        return chance.randrange(1, CHANNELS), FORGOTTEN_AUTHOR

    fill(url, 2 * size, CLEARED + FORGOTTEN, place)


async def enqueue_at_once(store: SqlStore, first: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(store.enqueue(message(first + n, 7, n), Kind.CHAT) for n in range(ENQUEUES)))
    return time.perf_counter() - began


async def count_fsyncs(store: SqlStore, first: int, folder: Path) -> int | None:
    """Return the fsyncs of many enqueues at once; None where strace is not installed."""
    strace, log = shutil.which("strace"), folder / "fsyncs"
    if strace is None:
        return None
    command = [strace, "-f", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(os.getpid())]
    tracing = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    assert tracing.stderr is not None
    is_attached = b"attached" in await tracing.stderr.readline()
    await enqueue_at_once(store, first)
    if is_attached:
        tracing.send_signal(signal.SIGINT)
    await tracing.communicate()
    return len(re.findall(r"f(?:data)?sync\(", log.read_text())) if is_attached else None


@contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """Yield the statements that are executed, with parameters of one call."""
    statements: dict[str, Any] = {}

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *more: Any) -> None:
        if statement.split(None, 1)[0] in ("SELECT", "UPDATE", "INSERT", "DELETE"):
            statements.setdefault(statement, parameters[0] if more[-1] else parameters)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def print_plans(statements: Mapping[str, Any], url: str) -> None:
    """Print the statements whose plan grows with the database, or that there is none."""
    growing = []
    with migrator(locate(url)).connect() as connection:
        is_file = connection.dialect.name == "sqlite"
        explain = "EXPLAIN QUERY PLAN" if is_file else "EXPLAIN"
        for statement, parameters in statements.items():
            rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            steps = [str(row[-1]) for row in rows]
            text = " ".join(statement.split())[:200]
            growing += [f"  {step}: {text}" for step in steps if _SCAN.search(step)]
    print(f"{len(statements)} statements, {len(growing)} of them scan a table that grows", *growing, sep="\n")


async def measure(urls: Mapping[int, str], calls: int, folder: Path) -> Iterator[Line]:
    timings, lines = Timings(), []
    sizes = sorted(urls)
    async with AsyncExitStack() as stack:
        stores = {size: SqlStore(url) for size, url in urls.items()}
        with recorded() as statements:
            for size, store in stores.items():
                await timings.measure("start to ready", size, stack.enter_async_context(store))
                await start(store, size, timings)
            for number in range(calls):
                for size, store in stores.items():
                    await answer_one(store, size, number, 0 if number % 2 else 1 + number % (CHANNELS - 1), timings)
        lines += [
            Line(
                f"{name}, p{share}",
                {size: percentile(each[size], share / 100) for size in sizes},
                more=START_LIMIT if len(each[sizes[0]]) == 1 else None,
            )
            for name, each in timings.seconds.items()
            for share in ((50, 99) if len(each[sizes[0]]) > 10 else (50,))
        ]
        at_once = {size: await enqueue_at_once(store, 10 * size + 1_000_000) for size, store in stores.items()}
        lines.append(Line(f"{ENQUEUES} enqueues at once", at_once, 0.5))
        lines += await measure_deletions(stores)
        fsyncs = await count_fsyncs(stores[sizes[-1]], 10 * sizes[-1] + 5_000_000, folder)
        print(f"fsyncs of {ENQUEUES} enqueues at once (≤ {FSYNCS}): {'not counted' if fsyncs is None else fsyncs}")
    print_plans(statements, urls[sizes[-1]])
    return iter(lines)


def plot(lines: list[Line], path: Path) -> None:
    """Draw the median of each call over the size of the database."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        if line.name.endswith(", p50") and line.more is None:
            axes.plot(
                *zip(*sorted(line.values.items()), strict=True), marker="o", label=line.name.removesuffix(", p50")
            )
    axes.set(xscale="log", yscale="log", xlabel="exchanges in the database", ylabel="seconds, median")
    axes.legend(fontsize="small", ncols=2)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "store"}):
        figure.savefig(path, metadata={"Date": None})


@contextmanager
def databases(sizes: list[int], kept_in: Path | None, folder: Path, *, on_server: bool) -> Iterator[dict[int, str]]:
    """Yield the URLs of databases to measure, by size; they end with this."""
    with ExitStack() as stack:
        urls = {}
        if on_server:
            found = programs()
            assert found is not None, "PostgreSQL is not installed"
            server = stack.enter_context(PostgresServer(found))
            for size in sizes:
                print(f"writing {size:,} exchanges into PostgreSQL …", flush=True)
                urls[size] = server.url(server.database())
                fill(urls[size], 0, size)
        else:
            for size in sizes:
                path = kept(folder, size) if kept_in is None else copied(kept(kept_in, size), folder)
                urls[size] = f"sqlite+aiosqlite:///{path}"
        for size, url in urls.items():
            add_deletable(url, size)
        os.sync()  # they were written without: the first checkpoint would wait for all of it
        yield urls


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the latency of store calls over the size of the database.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000, 100_000, 1_000_000])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="keep the databases here, and use those of an earlier run")
    parser.add_argument("--postgres", action="store_true", help="measure a PostgreSQL server, to 100,000 exchanges")
    parser.add_argument("--plot", type=Path, help="draw the medians into this file, in the format of its suffix")
    options = parser.parse_args()
    sizes = sorted(size for size in options.sizes if size <= LARGEST_ON_SERVER or not options.postgres)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        growth = growth_by_encryption(folder, GROWTH_SIZE)
        print(f"growth by encryption: {100 * growth:.1f} % (< {100 * GROWTH_LIMIT:g} %)")
        with databases(sizes, options.folder, folder, on_server=options.postgres) as urls:
            lines = list(asyncio.run(measure(urls, options.calls, folder)))
    print(f"{'milliseconds':36}" + "  ".join(f"{size:>10,}" for size in sizes))
    print(*lines, sep="\n")
    if options.plot is not None:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
