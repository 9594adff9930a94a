"""Transactions of the store: writers one after the other, readers beside them, and none that a cancellation tears."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.storage import connections
from bot.storage.connections import Location
from bot.storage.errors import map_errors

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FairLock:
    """A lock that is had in the order in which it was asked for; whoever is in a `urgent` passes the others."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def acquire(self, *, max_wait: float | None = None, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for it, `max_wait` so many seconds: else raise TimeoutError."""
        async with asyncio.timeout(max_wait):
            await self._wait(self._urgent if urgent else self._waiting)
        try:
            yield
        finally:
            self._hand_over()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was ours already
                self._hand_over()
            with suppress(ValueError):
                queue.remove(place)
            raise

    def _hand_over(self) -> None:
        for queue in (self._urgent, self._waiting):
            while queue:
                place = queue.popleft()
                if not place.done():  # else whoever waited was cancelled
                    place.set_result(None)
                    return
        self._is_taken = False


class Transactions:
    """One connection writes, a few others read; each transaction runs in a task of its own, which nobody cancels.

    `busy_timeout` is how long another program's lock is waited for, `queue_timeout` how
    long one's turn; a transaction older than `suspicious` is reported.  All in seconds.
    """

    def __init__(self, location: Location, *, busy_timeout: float, queue_timeout: float, suspicious: float) -> None:
        self.lock = FairLock()
        self.writer = connections.writer(location, busy_timeout)
        self._reader = connections.reader(location, busy_timeout)
        # SQLite then commits a statement with its own end: one way to the connection's thread instead of three.
        self._statement = self.writer.execution_options(skip_begin=True)
        self._name = location.name
        self._queue_timeout = queue_timeout
        self._suspicious = suspicious
        self._in_flight: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """Begin what makes transactions; `close` waits for it."""
        task = asyncio.create_task(work, name=name)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        return task

    @asynccontextmanager
    async def writing(self, *, urgent: bool = False) -> AsyncIterator[AsyncConnection]:
        """Change something, in turn; `urgent`, with a single statement, before all others that wait."""
        # The pool has one connection, but lets a newcomer pass those that wait for it; the lock does not.
        turn = self.lock.acquire(max_wait=self._queue_timeout, urgent=urgent)
        with map_errors(self._name):
            async with turn, self._transaction(self._statement if urgent else self.writer) as tx:
                yield tx

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Look at something as it is at one moment."""
        return self._transaction(self._reader)

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        task = asyncio.current_task()
        assert task is not None
        assert task in self._in_flight, "a transaction belongs into a shielded method"
        with map_errors(self._name):
            async with engine.begin() as connection:
                watchdog = asyncio.get_running_loop().call_later(self._suspicious, self._report, task.get_name())
                try:
                    yield connection
                finally:
                    watchdog.cancel()

    def _report(self, name: str) -> None:
        log.warning("a transaction is still open", transaction=name, seconds=self._suspicious)

    async def wait_idle(self) -> None:
        """Wait until nothing is under way."""
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def dispose(self) -> None:
        """Let the connections go."""
        with map_errors(self._name):
            await self._reader.dispose()
            await self.writer.dispose()
