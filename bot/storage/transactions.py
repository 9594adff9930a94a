"""Transactions of the store: one writer at a time, concurrent readers, safe from cancellation."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.errors import StoreError
from bot.storage import connections
from bot.storage.connections import Location
from bot.storage.errors import is_disk_full, map_errors

# Pages of SQLite's log after which it is reused, once the disk was full; the default is 1000.
_SHORT_LOG = 16

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FairLock:
    """FIFO lock; `urgent` jumps the queue."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def acquire(self, *, max_wait: float | None = None, urgent: bool = False) -> AsyncIterator[None]:
        """Hold the lock; raise TimeoutError after `max_wait` seconds in the queue."""
        async with asyncio.timeout(max_wait):
            await self._wait(self._urgent if urgent else self._waiting)
        try:
            yield
        finally:
            self._hand_over()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if not self._is_held:
            self._is_held = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the lock was handed over already
                self._hand_over()
            with suppress(ValueError):
                queue.remove(waiter)
            raise

    def _hand_over(self) -> None:
        for queue in (self._urgent, self._waiting):
            while queue:
                waiter = queue.popleft()
                if not waiter.done():  # else it was cancelled
                    waiter.set_result(None)
                    return
        self._is_held = False


class Transactions:
    """One connection writes, a few others read; each transaction runs in a task that nothing cancels.

    `busy_timeout` limits the wait for another program's lock, `queue_timeout` the wait for
    the writer; a transaction older than `slow_after` is logged.  All in seconds.
    """

    def __init__(self, location: Location, *, busy_timeout: float, queue_timeout: float, slow_after: float) -> None:
        self.lock = FairLock()
        self.turn = 0  # number of the last transaction that queued for the writer
        self.writer = connections.writer(location, busy_timeout)
        self._reader = connections.reader(location, busy_timeout)
        # SQLite commits a single statement by itself: one call to the connection's thread instead of three.
        self._statement = self.writer.execution_options(skip_begin=True)
        self.name = location.name
        self._queue_timeout = queue_timeout
        self._slow_after = slow_after
        self._was_full = False
        self._in_flight: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """Run a method with transactions as a task; `wait_idle` waits for it."""
        task = asyncio.create_task(work, name=name)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        return task

    @asynccontextmanager
    async def writing(self, *, urgent: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction in FIFO order; `urgent`, for a single statement, jumps the queue."""
        # The pool has one connection, but serves a newcomer before its waiters; the lock does not.
        lock = self.lock.acquire(max_wait=self._queue_timeout, urgent=urgent)
        self.turn += not urgent
        try:
            with map_errors(self.name):
                async with lock:
                    if self._was_full:
                        await self._reuse_log()
                    async with self._transaction(self._statement if urgent else self.writer) as tx:
                        yield tx
        except StoreError as error:
            self._was_full = self._was_full or is_disk_full(error)
            raise

    async def _reuse_log(self) -> None:
        """Empty SQLite's log and keep it short: it grows by megabytes otherwise, and takes all that is freed."""
        async with self._statement.connect() as connection:
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            await connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint={_SHORT_LOG}")
        self._was_full = False

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a read-only transaction on one snapshot."""
        return self._transaction(self._reader)

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        task = asyncio.current_task()
        assert task is not None
        assert task in self._in_flight, "open a transaction in a shielded method only"
        with map_errors(self.name):
            async with engine.begin() as connection:
                watchdog = asyncio.get_running_loop().call_later(self._slow_after, self._report, task.get_name())
                try:
                    yield connection
                finally:
                    watchdog.cancel()

    def _report(self, name: str) -> None:
        log.warning("transaction still open", transaction=name, seconds=self._slow_after)

    async def wait_idle(self) -> None:
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def dispose(self) -> None:
        with map_errors(self.name):
            await self._reader.dispose()
            await self.writer.dispose()
