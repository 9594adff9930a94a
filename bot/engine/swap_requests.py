"""Requests of an engine whose model may change: submitted, held back, or requeued for the next model."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from bot.domain import EngineEvent, Queued
from bot.errors import EngineError


class SwapRequest:
    """A request: held back during a change, or submitted to the engine."""

    def __init__(self) -> None:
        self.is_submitted = False
        self.has_output = False  # its reader has received some of the answer
        self._requeued = asyncio.Event()
        self.changed = asyncio.Event()  # its position or wait, or the end of the change
        self._next: asyncio.Future[EngineEvent] | None = None

    def submit(self) -> None:
        self.is_submitted = True
        self._requeued.clear()

    def requeue(self) -> None:
        """Withdraw it from the engine, unless it has output."""
        if self.is_submitted and not self.has_output:
            self._requeued.set()
            if self._next is not None:
                self._next.cancel()

    async def next_event(self, events: AsyncGenerator[EngineEvent, None]) -> EngineEvent | None:
        """Return the next event; None if requeued, whatever the engine returned or raised."""
        if self.has_output:
            return await anext(events)
        if self._requeued.is_set():
            return None
        self._next = asyncio.ensure_future(anext(events))
        try:
            event = await self._next
        except asyncio.CancelledError:
            # Either `requeue` cancelled the step, or the caller was cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None
        except EngineError:
            if self._requeued.is_set():
                return None
            raise
        finally:
            self._next = None
        if self._requeued.is_set():
            return None
        self.has_output = not isinstance(event, Queued)
        return event


class SwapRequests:
    """The requests in order of arrival."""

    def __init__(self) -> None:
        self._all: dict[SwapRequest, None] = {}
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def held(self) -> int:
        """Number of requests that no model has."""
        return sum(not request.is_submitted for request in self._all)

    @property
    def begun(self) -> int:
        """Number of requests with output, which finish on the model that they have."""
        return sum(request.has_output for request in self._all)

    def add(self) -> SwapRequest:
        request = SwapRequest()
        self._all[request] = None
        return request

    def remove(self, request: SwapRequest) -> None:
        del self._all[request]
        self._ended.set()

    def position(self, request: SwapRequest) -> int:
        """Return the position among the requests without output, from 1."""
        return [each for each in self._all if not each.has_output].index(request) + 1

    def requeue(self) -> None:
        """Withdraw all requests without output from the model."""
        for request in self._all:
            request.requeue()

    def notify_held(self) -> None:
        """Tell the requests that are held back that their position, wait or model has changed."""
        for request in self._all:
            if not request.is_submitted:
                request.changed.set()

    def next_end(self) -> Coroutine[Any, Any, object]:
        """Return the wait for the next request that ends, from this call on."""
        self._ended.clear()
        return self._ended.wait()
