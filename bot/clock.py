"""Time as the program sees it: monotonic, and replaced by hand in tests."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only ever grow; never the wall clock, which people may move."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
