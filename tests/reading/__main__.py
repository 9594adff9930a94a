"""Read hostile files, one process each: `python -m tests.reading [COUNT] [SEED]`; status 1 if one gets through."""

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import AsyncIterator
from itertools import islice
from time import monotonic
from typing import NamedTuple

import psutil

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.reader import read_file
from tests.reading.hostile import hostile_files

MOST_BYTES, MOST_CHARACTERS = 20 * 2**20, 50_000
# The reader's 5 s, and the start of a process on a busy machine.
MOST_SECONDS = 6.0
MOST_GROWTH = 16 * 2**20
_AT_ONCE = 2


class Figures(NamedTuple):
    """Results of a run; times in seconds, memory in bytes."""

    files: int
    outcomes: Counter[str]
    crashes: list[str]
    slowest: tuple[float, str]
    growth: int
    connections: int

    @property
    def is_good(self) -> bool:
        return not (self.crashes or self.connections) and self.slowest[0] <= MOST_SECONDS and self.growth <= MOST_GROWTH


async def read_hostile(count: int, seed: int) -> Figures:
    """Read so many hostile files, whose entities name a server that counts its connections."""
    connections = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    outcomes: Counter[str] = Counter()
    crashes: list[str] = []
    slowest, growth = (0.0, ""), 0
    process = psutil.Process()

    async def read(kind: str, data: bytes) -> None:
        nonlocal slowest
        began = monotonic()
        try:
            reading = await read_file(_chunks(data), most_bytes=MOST_BYTES, most_characters=MOST_CHARACTERS, sees=True)
            outcomes["picture" if reading.picture else "cut" if reading.is_cut else "text"] += 1
            if len(reading.text) > MOST_CHARACTERS or "root:" in reading.text:
                crashes.append(f"{kind}: not its own text")
        except Unreadable as error:
            outcomes[error.fault] += 1
        except Exception as error:  # noqa: BLE001  # counted
            crashes.append(f"{kind}: {type(error).__name__}")
        slowest = max(slowest, (monotonic() - began, kind))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        files = hostile_files(count, seed, url)
        while some := list(islice(files, _AT_ONCE)):
            gc.collect()
            before = process.memory_info().rss  # with the files themselves
            await asyncio.gather(*(read(kind, data) for kind, data in some))
            growth = max(growth, process.memory_info().rss - before)
    return Figures(count, outcomes, crashes, slowest, growth, connections)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 2**16):
        yield data[start : start + 2**16]


def main() -> int:
    count, seed = (int(value) for value in (sys.argv[1:] + ["2000", "1"][len(sys.argv) - 1 :]))
    figures = asyncio.run(read_hostile(count, seed))
    seconds, kind = figures.slowest
    print(f"{count} files: {dict(figures.outcomes.most_common())}")  # noqa: T201
    print(  # noqa: T201
        f"{len(figures.crashes)} crashes, slowest {seconds:.2f} s ({kind}), parent's memory "
        f"+{figures.growth / 2**20:.1f} MB, {figures.connections} foreign addresses asked"
    )
    for crash in figures.crashes:
        print(crash)  # noqa: T201
    return not figures.is_good


if __name__ == "__main__":
    sys.exit(main())
