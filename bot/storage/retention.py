"""Delete texts that are older than storage.retention_days, and sums of use whose periods have ended."""

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import Self

import structlog

from bot.config.quotas import oldest_day
from bot.errors import StoreError
from bot.storage.base import Store
from bot.util.aio import race
from bot.util.clock import Calendar, Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_INTERVAL = 3600.0


class Retention:
    """Background task that deletes old texts; 0 days keeps all of them, and all sums but those of people."""

    def __init__(self, store: Store, days: int, clock: Clock) -> None:
        self._store = store
        self._days = days
        self._clock = clock
        self._calendar = Calendar(clock)
        self._changed = asyncio.Event()

    def reconfigure(self, days: int) -> None:
        if days != self._days:
            self._days = days
            self._changed.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            await self._expire()
            await race(self._changed.wait(), self._clock.sleep(_INTERVAL))

    async def _expire(self) -> None:
        now = self._calendar.today()
        before = now - timedelta(days=self._days)
        try:
            if self._days:
                await self._store.expire(before)
            await self._store.end_usage(oldest_day(now.date()), before.date() if self._days else None)
        except StoreError as error:
            log.warning("old texts not deleted", error=str(error))
