"""Vacuum a SQLite file, so that no byte of deleted text is left in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.errors import StoreError
from bot.storage.connections import milliseconds
from bot.storage.errors import map_errors
from bot.storage.transactions import Transactions
from bot.util.aio import detach_on_cancel
from bot.util.clock import Clock

# All in seconds, but for the share.
CHECKPOINT_TIMEOUT = 0.1  # a checkpoint keeps the writers waiting at most this long
CHECKPOINT_INTERVAL = 0.05
RETRY_AFTER, RETRY_MAX = 60.0, 3600.0  # backoff after a failed run
MAX_SHARE = 0.02  # part of the time in which the vacuum may block the writers
BURST = 1.0  # blocking time that accumulates while nothing is deleted
SLOW = 1.0  # a vacuum of this duration is logged, and not started on shutdown

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DutyCycle:
    """Limits an activity to MAX_SHARE of the time, with a burst of BURST seconds.

    One run may exceed the budget; the next one is delayed until the debt is paid.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._budget = BURST
        self._updated_at = clock.now()

    def spend(self, seconds: float) -> None:
        self._budget = self._current() - seconds
        self._updated_at = self._clock.now()

    def delay(self) -> float:
        """Return the seconds until the next run is allowed; 0 if it is allowed now."""
        return max(0.0, -self._current() / MAX_SHARE)

    def _current(self) -> float:
        return min(BURST, self._budget + (self._clock.now() - self._updated_at) * MAX_SHARE)


class Vacuum:
    """Rewrites the file without deleted text, then truncates the write-ahead log.

    secure_delete zeroes deleted text in place.  But when SQLite balances its B-tree, it
    copies rows to other pages and leaves old copies in the unused middle of a page: in 28
    of 40 random histories of 400 messages some text survived.  VACUUM writes live rows
    only, at about 5 ms per MiB, and blocks all writers.  So it runs at once only within
    the duty cycle; otherwise one later run covers all deletions up to then.

    The file's `user_version` counts the deletions that still need a vacuum.  It is
    written in their transactions, so the count survives a crash.
    """

    def __init__(self, transactions: Transactions, clock: Clock, *, busy_timeout: float, patience: float) -> None:
        self._transactions = transactions
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._patience = patience
        self._one_run = asyncio.Lock()
        self._duty_cycle = DutyCycle(clock)
        self._scheduled: asyncio.Task[None] | None = None
        self._is_needed = False  # as far as this process knows
        self._backoff = 0.0
        self._rewritten = 0  # deletions that are out of the file, but maybe not out of its log
        self._duration = 0.0

    async def record_deletion(self, tx: AsyncConnection) -> None:
        """Count a deletion, in its own transaction."""
        await tx.exec_driver_sql(f"PRAGMA user_version={await _deletions(tx) + 1}")

    @property
    def last_run_failed(self) -> bool:
        """True after a run that another reader blocked, or a full disk."""
        return self._backoff > 0

    async def run(self) -> None:
        """Vacuum now if the duty cycle allows it, else schedule it.

        Does nothing if no deletion is recorded.  A failed run is retried in the
        background; see `last_run_failed`.
        """
        self._is_needed = True
        await self._run_if_allowed()
        if self._is_needed:
            self.schedule()

    def schedule(self) -> None:
        """Vacuum in the background as soon as the duty cycle allows it."""
        self._is_needed = True
        if self._scheduled is None or self._scheduled.done():
            self._scheduled = asyncio.create_task(self._run_when_allowed(), name="vacuum")

    async def close(self) -> None:
        """Run a last time if that is quick; else the next start does."""
        self._patience = 0.0
        if self._scheduled is not None:
            self._scheduled.cancel()
            await asyncio.wait([self._scheduled])
        async with self._one_run:
            if self._is_needed and self._duration < SLOW:
                try:
                    await self._execute()
                except StoreError as error:
                    log.warning(
                        "vacuum failed, deleted text is still in the file; the next start retries", error=str(error)
                    )

    async def _run_when_allowed(self) -> None:
        while self._is_needed:
            await self._clock.sleep(max(self._backoff, self._duty_cycle.delay()))
            # A cancelled VACUUM would leave the connection with its settings.
            await detach_on_cancel(asyncio.create_task(self._run_if_allowed(), name="vacuum"))

    async def _run_if_allowed(self) -> None:
        async with self._one_run:
            if self._duty_cycle.delay():
                return
            try:
                await self._execute()
            except StoreError as error:
                log.warning(
                    "vacuum failed, deleted text is still in the file", retry_in=self._backoff, error=str(error)
                )

    async def _execute(self) -> None:
        self._is_needed = False  # deletions from here on set it again
        try:
            async with self._without_transaction() as connection:
                deletions = await _deletions(connection)
                if deletions != self._rewritten:
                    await self._rewrite_file(connection)
                    self._rewritten = deletions
            if deletions:
                await self._truncate_log()
                await self._clear_counter(deletions)
        except StoreError:
            self._is_needed = True
            # A run writes as much as the whole file, on a disk that may be full.
            self._backoff = min(max(RETRY_AFTER, 2 * self._backoff), RETRY_MAX)
            raise
        self._backoff = 0.0

    async def _rewrite_file(self, connection: AsyncConnection) -> None:
        began = self._clock.now()
        # In memory the copy would take as much as the whole file.
        await connection.exec_driver_sql("PRAGMA temp_store=FILE")
        try:
            await connection.exec_driver_sql("VACUUM")
        finally:
            await connection.exec_driver_sql("PRAGMA temp_store=MEMORY")
        self._duration = self._clock.now() - began
        if self._duration >= SLOW:
            log.info("vacuum finished", seconds=round(self._duration, 1))

    async def _clear_counter(self, deletions: int) -> None:
        with map_errors(self._transactions.name):
            async with self._transactions.lock.acquire(), self._transactions.writer.begin() as tx:
                if await _deletions(tx) == deletions:  # else there are new ones
                    await tx.exec_driver_sql("PRAGMA user_version=0")
                    self._rewritten = 0

    async def _truncate_log(self) -> None:
        began = self._clock.now()
        while not await self._checkpoint():
            if self._clock.now() - began >= self._patience:
                raise StoreError(
                    f"deleted text is still in {self._transactions.name}-wal, because another program is reading the database: "
                    "close that program; the bot retries within the hour, and at its next start"
                )
            await self._clock.sleep(CHECKPOINT_INTERVAL)

    async def _checkpoint(self) -> bool:
        async with self._without_transaction() as connection:
            # A checkpoint blocks every writer while it waits for the readers.
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={milliseconds(CHECKPOINT_TIMEOUT)}")
            try:
                busy = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one()
            finally:
                await connection.exec_driver_sql(f"PRAGMA busy_timeout={milliseconds(self._busy_timeout)}")
        return not busy

    @asynccontextmanager
    async def _without_transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend the writer's connection outside a transaction; other writers wait."""
        with map_errors(self._transactions.name):
            async with self._transactions.lock.acquire():
                began = self._clock.now()
                try:
                    async with self._transactions.writer.connect() as connection:
                        await connection.execution_options(skip_begin=True)
                        yield connection
                finally:
                    self._duty_cycle.spend(self._clock.now() - began)


async def _deletions(connection: AsyncConnection) -> int:
    count: int = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
    return count
