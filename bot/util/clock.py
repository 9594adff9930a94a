"""Clocks: monotonic time, and a date that is robust against jumps of the system clock."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds; tests use a manual implementation."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


# Seconds until a wall clock that jumped ahead is trusted.
_TRUST_SECONDS = 3600.0


class Calendar:
    """Date for irreversible decisions: deleting old texts, expiring old questions.

    Follows the monotonic clock.  A wall clock that is set back is followed at once, one that
    jumps ahead only after an hour, so that a wrong date for a minute deletes nothing.  The
    date at the start is trusted.
    """

    def __init__(self, clock: Clock, wall: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._wall = wall
        self._ahead = wall().timestamp() - clock.now()  # seconds ahead of the monotonic clock
        self._ahead_since: float | None = None

    def today(self) -> datetime:
        now = self._clock.now()
        ahead = self._wall().timestamp() - now
        if ahead <= self._ahead + 1.0:  # NTP may speed the clock up slightly
            self._ahead, self._ahead_since = ahead, None
        elif self._ahead_since is None:
            self._ahead_since = now
        elif now - self._ahead_since >= _TRUST_SECONDS:
            self._ahead, self._ahead_since = ahead, None
        return datetime.fromtimestamp(now + self._ahead, UTC)


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
