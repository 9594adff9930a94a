"""Time as the program sees it: monotonic, and replaced by hand in tests."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Seconds that only ever grow; never the wall clock, which people may move."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


# Seconds for which the wall clock must have stood ahead before that is believed.
_BELIEVED = 3600.0


class Calendar:
    """The date, for what cannot be undone: which texts are old enough to be deleted, which questions too old.

    It goes on with the monotonic clock.  Where somebody sets the wall clock back, it follows
    at once; set ahead, the wall clock is believed an hour after that was first seen.  So a
    clock that jumps to another year for a minute deletes nothing and turns nobody away.
    What it says at the start is believed: there is nothing to hold against it.
    """

    def __init__(self, clock: Clock, wall: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._wall = wall
        self._ahead = wall().timestamp() - clock.now()  # of the monotonic clock, in seconds
        self._doubted_since: float | None = None

    def today(self) -> datetime:
        now = self._clock.now()
        ahead = self._wall().timestamp() - now
        if ahead <= self._ahead + 1.0:  # clocks that are kept right by a server go a little faster at times
            self._ahead, self._doubted_since = ahead, None
        elif self._doubted_since is None:
            self._doubted_since = now
        elif now - self._doubted_since >= _BELIEVED:
            self._ahead, self._doubted_since = ahead, None
        return datetime.fromtimestamp(now + self._ahead, UTC)


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
