"""The events of one reply, between the task that produces them and the one that shows them."""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from bot.domain import Answer, Delta, Finished, FinishReason, Queued, ReplyEvent, Thought

# The end of a refused question, told by its identity: stored and shown like an error, but counted apart.
REFUSED = Finished(FinishReason.ERROR)


def refused(sentence: str) -> Answer:
    """Return the answer of a question that gets a sentence instead."""
    return Answer("", sentence, FinishReason.ERROR)


class ReplyStream:
    """Merges unread events, so that a slow reader holds back neither the model nor memory.

    An async context manager: entering starts `produce`, leaving cancels it.  Iterating
    yields the events up to `Finished`; `drain` takes all unread events without waiting.

    >>> stream = ReplyStream()
    >>> for event in Queued(2), Queued(1), Delta("Hel"), Delta("lo"):
    ...     stream.put(event)
    >>> stream.drain()
    [Delta(text='Hello')]
    """

    def __init__(self, produce: "Callable[[ReplyStream], Coroutine[Any, Any, None]] | None" = None) -> None:
        self._produce = produce
        self._producer: asyncio.Task[None] | None = None
        self._unread: list[ReplyEvent] = []
        self._texts: list[str] = []  # deltas after `_unread`, joined when they are read
        self._is_finished = False
        self._has_news = asyncio.Event()
        self._has_ended = asyncio.Event()
        self.changes = 0  # number of events ever put

    def put(self, event: ReplyEvent) -> None:
        self.changes += 1
        last = self._unread[-1] if self._unread else None
        if isinstance(event, Delta | Queued | Thought) and isinstance(last, Queued):
            self._unread.pop()
        if isinstance(event, Thought) and isinstance(last, Thought) and not self._texts:
            self._unread.pop()
            event = Thought(last.text + event.text, event.seconds)
        if isinstance(event, Delta):
            self._texts.append(event.text)
        else:
            self._join_texts()
            self._unread.append(event)
            self._is_finished = isinstance(event, Finished)
            if self._is_finished:
                self._has_ended.set()
        self._has_news.set()

    def drain(self) -> list[ReplyEvent]:
        """Take all unread events, in order."""
        self._join_texts()
        events, self._unread = self._unread, []
        if self._producer is None or not self._producer.done():
            self._has_news.clear()
        return events

    def put_back(self, events: list[ReplyEvent]) -> None:
        """Give back events that were read: they are the next ones."""
        self._join_texts()
        self._unread[:0] = events
        if events:
            self._has_news.set()

    async def wait(self) -> None:
        """Wait until there are unread events.

        Raises:
            Exception: The producer ended with it, and its events were read.
        """
        await self._has_news.wait()
        if self._unread or self._texts or self._is_finished:
            return
        assert self._producer is not None, "only a producer ends without an event"
        self._producer.result()
        raise AssertionError("the producer of a reply ended without Finished")

    async def wait_finished(self) -> None:
        """Wait until the reply is complete, or its producer has ended."""
        await self._has_ended.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReplyEvent:
        while not (events := self.drain()):
            if self._is_finished:
                raise StopAsyncIteration
            await self.wait()
        event, *self._unread = events
        self._has_news.set()
        return event

    async def __aenter__(self) -> Self:
        if self._produce is not None:
            self._producer = asyncio.create_task(self._produce(self), name="answer")
            self._producer.add_done_callback(lambda _: self._has_news.set())
            self._producer.add_done_callback(lambda _: self._has_ended.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            self._producer.cancel()
            await asyncio.gather(self._producer, return_exceptions=True)

    def _join_texts(self) -> None:
        if self._texts:
            self._unread.append(Delta("".join(self._texts)))
            self._texts.clear()
