"""Buffer of one request's events between the worker thread and its reader."""

import asyncio
from typing import assert_never

from bot.domain import Delta, Finished, Queued, Thought
from bot.errors import EngineFailed

OutputItem = Queued | Thought | Delta | Finished | EngineFailed


class OutputCollector:
    """Merges unread events, so that a slow reader gets at most one of each kind.

    Used on the event loop only.

    >>> collector = OutputCollector()
    >>> for item in Queued(2), Queued(1), Delta("Hel"), Delta("lo"):
    ...     collector.put(item)
    >>> asyncio.run(collector.get())
    Delta(text='Hello')
    """

    def __init__(self) -> None:
        self._queued: Queued | None = None
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._end: Finished | EngineFailed | None = None
        self._has_output = asyncio.Event()

    def put(self, item: OutputItem) -> None:
        match item:
            case Queued():
                self._queued = item
            case Thought(text):
                self._queued = None
                self._thoughts.append(text)
            case Delta(text):
                self._queued = None
                self._texts.append(text)
            case Finished() | EngineFailed():
                self._queued = None
                self._end = item
            case _:
                assert_never(item)
        self._has_output.set()

    async def get(self) -> Queued | Thought | Delta | Finished:
        """Wait for the next event.

        Raises:
            EngineFailed: The request failed; raised after the text before the failure.
        """
        while True:
            await self._has_output.wait()
            if self._queued is not None:
                queued, self._queued = self._queued, None
                return queued
            if self._thoughts:
                text = "".join(self._thoughts)
                self._thoughts.clear()
                return Thought(text)
            if self._texts:
                text = "".join(self._texts)
                self._texts.clear()
                return Delta(text)
            if isinstance(self._end, EngineFailed):
                raise self._end
            if self._end is not None:
                return self._end
            self._has_output.clear()
