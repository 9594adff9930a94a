"""Clocks for tests: one moved by hand, one that jumps, one that runs fast."""

import asyncio
import heapq
import time
from collections.abc import Awaitable
from itertools import count
from typing import TypeVar

T = TypeVar("T")

# More turns of the event loop than any chain of tasks in a test needs to settle.
_TURNS = 50


class ManualClock:
    """A Clock moved by hand; sleepers wake in the order of their due times."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._numbers), waiter))
        await waiter

    @property
    def next_wake(self) -> float | None:
        """Time at which the next sleeper wakes, or None."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def settle(self) -> None:
        """Run all tasks until each of them waits."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Advance the clock, stopping at each due time so that the sleeper acts then."""
        end = self._now + seconds
        await self.settle()
        while (wake := self.next_wake) is not None and wake <= end:
            self._now = wake
            heapq.heappop(self._sleepers)[2].set_result(None)
            await self.settle()
        self._now = end

    def jump(self, seconds: float) -> None:
        """Advance the clock at once; there must be no sleeper."""
        assert self.next_wake is None, "a task sleeps: use advance"
        self._now += seconds

    async def run(self, work: Awaitable[T], limit: float = 100_000.0) -> T:
        """Run `work` while advancing the clock by at most `limit` seconds."""
        task = asyncio.ensure_future(work)
        end = self._now + limit
        try:
            while not task.done():
                await self.settle()
                if task.done():
                    break
                wake = self.next_wake
                assert wake is not None, "the work waits for something other than the clock"
                assert wake <= end, f"the work is not done after {limit:g} s"
                await self.advance(wake - self._now)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return await task


class JumpingClock:
    """A clock whose sleeps return at once and advance the time."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class FastClock:
    """The real clock at `factor` times its speed, for tests with threads and sockets."""

    def __init__(self, factor: float = 50.0) -> None:
        self._factor = factor

    def now(self) -> float:
        return time.monotonic() * self._factor

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._factor)
