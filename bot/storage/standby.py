"""Several bots on one database: one serves, the others wait to take over; or each platform has one that serves it.

The lock on the database, or on the platform, decides.  A file's is released when its process has ended, and the next
bot begins.  A server releases it with the session, and a session can end while its process runs
on: the server restarts, or the network between the two fails.  Two bots would answer then.  So
the one that serves checks its session every second, and ends itself when no check has succeeded
for `LOST_AFTER` seconds.  The others end a session that was not checked for `LEASE` seconds by the
server's clock, that of a process that is stopped, say.  The one that takes over waits `GRACE`
seconds before it begins, unless the one before has said that it has ended.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import structlog

from bot.errors import StoreError, StoreInUse
from bot.storage.instance_lock import InstanceLock
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds: between two tries to acquire the lock, and between two checks of one that is held.
_RETRY = 0.5
_CHECK = 1.0
# Seconds without a successful check until a process ends itself, until the others end its session, and from then
# until the next one begins.
LOST_AFTER = 3.0
LEASE = 6.0
GRACE = 4.0


@asynccontextmanager
async def in_turn(
    lock: InstanceLock, clock: Clock, report: Callable[[str | None], None], *, grace: float = GRACE
) -> AsyncIterator[None]:
    """Hold the lock once no other process has it; if it is lost, this process ends at once.

    `grace` are the seconds to wait for one before that may not have ended.
    """
    try:
        await acquire_in_turn(lock, clock, report)
        with HolderWatch(lock):
            if not lock.is_handed_over:
                await clock.sleep(grace)
            yield
    finally:
        await asyncio.to_thread(lock.release)


async def acquire_in_turn(lock: InstanceLock, clock: Clock, report: Callable[[str | None], None]) -> None:
    """Wait for the lock for as long as another process has it.

    `report` is called with None while the database can be reached, and else with the reason.
    """
    reason: str | None = None
    # A separate thread: with several platforms, those of asyncio would all wait, perhaps for weeks.
    thread, loop = ThreadPoolExecutor(1, "lock-wait"), asyncio.get_running_loop()
    try:
        while True:
            try:
                if await loop.run_in_executor(thread, lock.try_acquire):
                    return
            except StoreError as error:
                if str(error) != reason:
                    log.warning("the database cannot be reached, standing by", error=str(error))
                reason = str(error)
                report(reason)
                await clock.sleep(_RETRY)
            else:
                if reason is not None:
                    log.info("the database can be reached again, standing by")
                reason = None
                report(None)
                await loop.run_in_executor(thread, lock.wait, _RETRY)
    finally:
        thread.shutdown(wait=False)


def _exit() -> None:
    os._exit(1)


class HolderWatch:
    """Ends the process once it may no longer have the lock; a context manager with a thread of its own.

    The exit is immediate, as a kill: another bot may already serve, and finds in the database what this
    one leaves.  Time counts while the process is stopped (SIGSTOP) and, on Linux, while the machine sleeps.
    """

    def __init__(self, lock: InstanceLock, *, exit: Callable[[], object] = _exit) -> None:
        self._lock = lock
        self._exit = exit
        self._is_ended = threading.Event()
        self._checked_at = _now()
        self._thread = threading.Thread(target=self._run, name="database-lock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ended.set()
        self._thread.join()

    def _run(self) -> None:
        # In a thread: a session whose server is silent blocks for half a minute.
        checks = ThreadPoolExecutor(1, "database-lock-check")
        try:
            while not self._is_ended.wait(_CHECK):
                if reason := self._find_reason(checks):
                    log.error("another bot may serve the database: this one ends at once", reason=reason)
                    self._exit()
                    return
        finally:
            checks.shutdown(wait=False)

    def _find_reason(self, checks: ThreadPoolExecutor) -> str | None:
        reason = "this process was stopped for a while"
        if (left := self._left()) > 0:
            began = _now()
            reason = "the server did not respond"
            try:
                with suppress(TimeoutError):
                    checks.submit(self._lock.renew).result(timeout=left)
                    self._checked_at = began
            except StoreInUse as error:
                return str(error)
            except StoreError as error:
                reason = str(error)
        return reason if self._left() <= 0 else None

    def _left(self) -> float:
        return LOST_AFTER - (_now() - self._checked_at)


def _now() -> float:
    """Return seconds of a clock that also runs while the machine sleeps, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
