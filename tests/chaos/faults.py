"""Faults of a SQLite file: a lock held by another process, a full disk."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, Pool

_LOCKER = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
other.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked_by_another(path: Path) -> AsyncIterator[None]:
    """Lock the database from another process while the block runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LOCKER, str(path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"locked\n", "the other process did not get the lock"
        yield
    finally:
        process.stdin.close()
        await process.wait()


@dataclass
class Disk:
    """The size limit of a database."""

    connections: list[aiosqlite.Connection]

    async def limit(self, pages: int) -> None:
        """Limit the file to `pages` of 4 KiB; a file that is larger keeps its size."""
        for connection in self.connections:
            with suppress(ValueError):  # the connection is closed
                # Closed, because an open cursor keeps the snapshot that its connection reads.
                async with connection.execute(f"PRAGMA max_page_count={pages}"):
                    pass


@contextmanager
def limited_disk() -> Iterator[Disk]:
    """Collect the connections opened while the block runs, to limit them."""
    disk = Disk([])

    def opened(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        driver = getattr(connection, "driver_connection", None)
        if isinstance(driver, aiosqlite.Connection):
            disk.connections.append(driver)

    event.listen(Pool, "connect", opened)
    try:
        yield disk
    finally:
        event.remove(Pool, "connect", opened)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
