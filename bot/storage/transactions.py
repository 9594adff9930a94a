"""Transactions of the store: one writer at a time, concurrent readers, group commit, safe from cancellation."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.errors import StoreError
from bot.storage import connections
from bot.storage.connections import Location
from bot.storage.errors import is_disk_full, map_errors
from bot.storage.open_files import OpenFiles
from bot.storage.vault import WriteTransaction

# Pages of SQLite's log after which it is reused, once the disk was full; else see connections.py.
_SHORT_LOG = 16
# Pages after which it should begin again.
_LONG_LOG = 1000
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
# Transactions between two checkpoints beside the writers.
_CHECKPOINT_AFTER = 50

Item = TypeVar("Item")
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
        self._checkpointer = None if location.path is None else self._reader.execution_options(skip_begin=True)
        self.name = location.name
        self.files = OpenFiles()
        self._queue_timeout = queue_timeout
        self._slow_after = slow_after
        self._was_full = False
        self._unwritten = 0  # transactions since the last checkpoint
        self._checkpoint: asyncio.Task[None] | None = None
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
                    self.files.check()  # a commit to a deleted file would be acknowledged
                    if self._was_full:
                        await self._reuse_log()
                    async with self._transaction(self._statement if urgent else self.writer) as tx:
                        yield tx
        except StoreError as error:
            self._was_full = self._was_full or is_disk_full(error)
            raise
        self._unwritten += 1
        if self._unwritten >= _CHECKPOINT_AFTER:
            self._begin_checkpoint()

    async def _reuse_log(self) -> None:
        """Empty SQLite's log and keep it short: it grows by megabytes otherwise, and takes all that is freed."""
        async with self._statement.connect() as connection:
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            await connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint={_SHORT_LOG}")
        self._was_full = False

    async def checkpoint(self) -> None:
        """Write SQLite's log into the database while others write; later a commit would, and they would wait for it."""
        self._begin_checkpoint()
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])

    def _begin_checkpoint(self) -> None:
        if self._checkpointer is not None and (self._checkpoint is None or self._checkpoint.done()):
            self._unwritten = 0
            self._checkpoint = self.start(self._write_log(self._checkpointer), "checkpoint")

    async def _write_log(self, checkpointer: AsyncEngine) -> None:
        try:
            with map_errors(self.name):
                self.files.check()  # it would write into another database
                async with checkpointer.connect() as connection:
                    row: Row[*tuple[int, ...]] = (await connection.exec_driver_sql(_CHECKPOINT)).one()
                    if row[1] > _LONG_LOG:
                        # Once all of it is written, the log begins again: the writer waits for the last pages.
                        async with self.lock.acquire():
                            await connection.exec_driver_sql(_CHECKPOINT)
        except StoreError as error:
            log.warning("the database's log grows, it could not be written into the database", error=str(error))

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


async def write_first_page(tx: AsyncConnection) -> None:
    """Write the first page of a SQLite file, and change nothing."""
    version = (await tx.exec_driver_sql("PRAGMA user_version")).scalar_one()
    await tx.exec_driver_sql(f"PRAGMA user_version={version}")


class _Group(Generic[Item, Result]):
    """Items of one transaction; `turn` is its number among the writers."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.items: list[Item] = []
        self.results: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()


class GroupCommit(Generic[Item, Result]):
    """Executes items in the order of their calls: a commit waits for the disk, an item hardly costs more.

    An item joins the group that still waits for the writer, if no other transaction has queued
    since.  `begin` opens the transaction, `execute` returns a result per item.
    """

    def __init__(
        self,
        transactions: Transactions,
        begin: Callable[[], AbstractAsyncContextManager[WriteTransaction]],
        execute: Callable[[WriteTransaction, Sequence[Item]], Awaitable[Sequence[Result]]],
    ) -> None:
        self._transactions = transactions
        self._begin = begin
        self._execute = execute
        self._waiting: _Group[Item, Result] | None = None

    async def run(self, item: Item) -> Result:
        """Return the result of an item once it is committed.

        Raises:
            StoreError: The transaction failed, for all of its items.
        """
        group = self._waiting
        if group is None or group.turn != self._transactions.turn:
            group = self._waiting = _Group(self._transactions.turn + 1)
            group.items.append(item)
            await self._commit(group)
            return group.results.result()[0]
        number = len(group.items)
        group.items.append(item)
        return (await asyncio.shield(group.results))[number]

    async def _commit(self, group: _Group[Item, Result]) -> None:
        try:
            async with self._begin() as tx:
                self._close(group)
                results = await self._execute(tx, group.items)
        except BaseException as error:
            self._close(group)
            if len(group.items) > 1:  # the others wait for it
                group.results.set_exception(error)
            raise
        group.results.set_result(results)

    def _close(self, group: _Group[Item, Result]) -> None:
        if self._waiting is group:
            self._waiting = None
