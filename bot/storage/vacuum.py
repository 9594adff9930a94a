"""Deleted text leaves no byte in a SQLite database's files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.errors import StoreError
from bot.storage.connections import milliseconds
from bot.storage.errors import map_errors
from bot.storage.transactions import FairLock
from bot.util.aio import detach_on_cancel
from bot.util.clock import Clock

CHECKPOINT_TIMEOUT = 0.1  # seconds that one try to empty the log may keep the writers waiting
CHECKPOINT_INTERVAL = 0.05  # seconds between two tries
# Seconds after which what failed is tried again by itself: at first, and at most.
RETRY_AFTER, RETRY_MAX = 60.0, 3600.0

MAX_SHARE = 0.02  # of the time that scrubbing may keep the writers waiting
BURST = 1.0  # seconds of it that are saved up while nothing is deleted
SLOW = 1.0  # seconds of scrubbing from which on it is told, and left to the next start when the program ends

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DutyCycle:
    """A small share of the time, saved up to a second of it and never taken twice.

    What is due may take as long as it must: the next one is due once that is made up for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._saved = BURST
        self._at = clock.now()

    def spend(self, seconds: float) -> None:
        self._saved = self._now() - seconds
        self._at = self._clock.now()

    def delay(self) -> float:
        """Seconds until something is due; 0 if it is now."""
        return max(0.0, -self._now() / MAX_SHARE)

    def _now(self) -> float:
        return min(BURST, self._saved + (self._clock.now() - self._at) * MAX_SHARE)


class Vacuum:
    """Rewrites the file without what was deleted, then empties its write-ahead log.

    secure_delete zeroes what is deleted where it is.  But when SQLite balances its tree
    it copies rows to other pages, and leaves old copies in the unused middle of a page:
    in 28 of 40 random histories of 400 messages some text outlived it.  VACUUM writes
    only what lives, in about 5 ms per MiB, while all writers wait: so it is done at once
    only as long as it takes at most MAX_SHARE of the time, and else for all deletions
    that have come together by then.

    The file's `user_version` counts the deletions that still wait for this; it is
    written in their transactions, so a crash forgets none.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        lock: FairLock,
        name: str,
        clock: Clock,
        *,
        busy_timeout: float,
        patience: float,
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._name = name
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._patience = patience
        self._one_at_a_time = asyncio.Lock()
        self._duty_cycle = DutyCycle(clock)
        self._later: asyncio.Task[None] | None = None
        self._is_owed = False  # as far as this process knows
        self._pause = 0.0  # before the next try by itself
        self._rewritten = 0  # the count of the deletions for which only the log must still be emptied
        self._took = 0.0

    async def record_deletion(self, tx: AsyncConnection) -> None:
        """Note, in the transaction that deletes something, that it did."""
        await tx.exec_driver_sql(f"PRAGMA user_version={await _deletions(tx) + 1}")

    @property
    def last_run_failed(self) -> bool:
        """Whether the last try failed: another program was in the way, or the disk was full."""
        return self._pause > 0

    async def run(self) -> None:
        """Make good on all that was marked, by whomever: now if that is due, else as soon as it is.

        Nothing to do takes no time.  What cannot be done now stays owed, and is tried again
        by itself: `last_run_failed` tells.
        """
        self._is_owed = True
        await self._run_if_due()
        if self._is_owed:
            self.schedule()

    def schedule(self) -> None:
        """Do so as soon as it is due, with nobody waiting for it."""
        self._is_owed = True
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._run_when_due(), name="vacuum")

    async def close(self) -> None:
        """Do what is owed if that is a matter of a moment; else the next start does."""
        self._patience = 0.0
        if self._later is not None:
            self._later.cancel()
            await asyncio.wait([self._later])
        async with self._one_at_a_time:  # what was under way has ended
            if self._is_owed and self._took < SLOW:
                try:
                    await self._execute()
                except StoreError as error:
                    log.warning("deleted text could not be scrubbed; the next start tries again", error=str(error))

    async def _run_when_due(self) -> None:
        while self._is_owed:
            await self._clock.sleep(max(self._pause, self._duty_cycle.delay()))
            # Cancelled in the middle, the connection would stay as it is just then.
            await detach_on_cancel(asyncio.create_task(self._run_if_due(), name="vacuum"))

    async def _run_if_due(self) -> None:
        async with self._one_at_a_time:
            if self._duty_cycle.delay():
                return
            try:
                await self._execute()
            except StoreError as error:
                log.warning("deleted text could not be scrubbed; trying again", seconds=self._pause, error=str(error))

    async def _execute(self) -> None:
        self._is_owed = False  # what is deleted from here on is owed anew
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
            self._is_owed = True
            # A try writes as much as the whole file, on a disk that may be full.
            self._pause = min(max(RETRY_AFTER, 2 * self._pause), RETRY_MAX)
            raise
        self._pause = 0.0

    async def _rewrite_file(self, connection: AsyncConnection) -> None:
        began = self._clock.now()
        # In memory its copy would take as much as the whole file.
        await connection.exec_driver_sql("PRAGMA temp_store=FILE")
        try:
            await connection.exec_driver_sql("VACUUM")
        finally:
            await connection.exec_driver_sql("PRAGMA temp_store=MEMORY")
        self._took = self._clock.now() - began
        if self._took >= SLOW:
            log.info("database rewritten without what was deleted", seconds=round(self._took, 1))

    async def _clear_counter(self, deletions: int) -> None:
        with map_errors(self._name):
            async with self._lock.acquire(), self._engine.begin() as tx:
                if await _deletions(tx) == deletions:  # else there are new ones
                    await tx.exec_driver_sql("PRAGMA user_version=0")
                    self._rewritten = 0

    async def _truncate_log(self) -> None:
        began = self._clock.now()
        while not await self._log_is_empty():
            if self._clock.now() - began >= self._patience:
                raise StoreError(
                    f"the text is deleted, but {self._name}-wal still holds it, because another program keeps "
                    "reading the database: close that, and the bot empties it by itself within the hour, or when it "
                    "next starts"
                )
            await self._clock.sleep(CHECKPOINT_INTERVAL)

    async def _log_is_empty(self) -> bool:
        async with self._without_transaction() as connection:
            # This keeps every writer out while it waits for the readers: not for long.
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={milliseconds(CHECKPOINT_TIMEOUT)}")
            try:
                busy = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one()
            finally:
                await connection.exec_driver_sql(f"PRAGMA busy_timeout={milliseconds(self._busy_timeout)}")
        return not busy

    @asynccontextmanager
    async def _without_transaction(self) -> AsyncIterator[AsyncConnection]:
        """The writing connection without a transaction, while all others wait for it."""
        with map_errors(self._name):
            async with self._lock.acquire():
                began = self._clock.now()
                try:
                    async with self._engine.connect() as connection:
                        await connection.execution_options(skip_begin=True)
                        yield connection
                finally:
                    self._duty_cycle.spend(self._clock.now() - began)


async def _deletions(connection: AsyncConnection) -> int:
    count: int = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
    return count
