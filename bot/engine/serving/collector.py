"""One request's events on their way to its reader; lives on the event loop."""

from __future__ import annotations

import asyncio
from typing import assert_never

from bot.domain import Delta, EngineEvent, Finished, Queued
from bot.errors import EngineFailed

StreamItem = EngineEvent | EngineFailed


class Stream:
    """Keeps what is unread as one event of each kind, however slow the reader is.

    >>> stream = Stream()
    >>> for item in Queued(2), Queued(1), Delta("Hel"), Delta("lo"):
    ...     stream.put(item)
    >>> asyncio.run(stream.get())
    Delta(text='Hello')
    """

    def __init__(self) -> None:
        self._queued: Queued | None = None
        self._texts: list[str] = []
        self._end: Finished | EngineFailed | None = None
        self._news = asyncio.Event()

    def put(self, item: StreamItem) -> None:
        match item:
            case Queued():
                self._queued = item
            case Delta(text):
                self._queued = None
                self._texts.append(text)
            case Finished() | EngineFailed():
                self._queued = None
                self._end = item
            case _:
                assert_never(item)
        self._news.set()

    async def get(self) -> EngineEvent:
        """Wait for the next event; what failed the request is raised after the text before it."""
        while True:
            await self._news.wait()
            if self._queued is not None:
                queued, self._queued = self._queued, None
                return queued
            if self._texts:
                text = "".join(self._texts)
                self._texts.clear()
                return Delta(text)
            if isinstance(self._end, EngineFailed):
                raise self._end
            if self._end is not None:
                return self._end
            self._news.clear()
