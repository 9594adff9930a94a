"""The work on one exchange: what its row cannot hold, such as the task and the stop flag."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bot.domain import Exchange, FinishReason, Kind, Part
from bot.util.aio import finish_before_cancel


class Worker:
    """The work on one exchange whose claim this process holds."""

    def __init__(self, exchange: Exchange, number: int, previous: "Worker | None" = None) -> None:
        self.exchange = exchange
        self.number = number  # order in which exchanges of all channels were claimed
        self.parts: list[Part] = previous.parts if previous else [Part(id, is_recorded=True) for id in exchange.parts]
        self.has_position = exchange.kind is Kind.CHAT and exchange.answer is None
        self.is_admitted = False  # a limit let it through before its old answer was dropped
        self.is_backlog = False  # it was owed, and does not count as waiting
        self.is_pending = False  # `recover` will return it
        self.is_deleted = False
        self.leaves_no_trace = False  # its row is cleared once its reply was shown
        self.prompt_in_doubt = asyncio.Event()  # a deletion or an edit since the prompt was read
        self.is_interrupted = False  # its prompt has changed, and is read again
        self.task: asyncio.Task[None] | None = None
        self._previous = previous
        self._generation: asyncio.Timeout | None = None
        self._position_changed = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def notify_position(self) -> None:
        self._position_changed.set()

    async def wait_for_position(self) -> None:
        """Wait until the position in the channel changed, or the worker was stopped."""
        await self._position_changed.wait()
        self._position_changed.clear()

    async def wait_stopped(self) -> None:
        """Wait until the worker was stopped."""
        await self._stopped.wait()

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        """Run the block until `stop`, or until the time that it sets with `limit`.

        Raises:
            TimeoutError: It was stopped, or the time is over.
        """
        async with asyncio.timeout(None) as timeout:
            self._generation = timeout
            try:
                yield
            finally:
                self._generation = None

    def limit(self, seconds: float) -> None:
        """End the generation after this time."""
        if self._generation is not None and not self.is_stopped:
            self._generation.reschedule(asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """End the generation, running or waiting for its turn; a partial answer is kept."""
        self._stopped.set()
        self._position_changed.set()
        if self._generation is not None and not self._generation.expired():
            self._generation.reschedule(asyncio.get_running_loop().time())

    def interrupt(self) -> None:
        """End the generation without a result: it begins again with another prompt."""
        self.is_interrupted = True
        if self._generation is not None and not self._generation.expired():
            self._generation.reschedule(asyncio.get_running_loop().time())

    def cut_off_reason(self) -> FinishReason:
        """Return why `generating` raised TimeoutError."""
        return FinishReason.CANCELLED if self.is_stopped else FinishReason.LENGTH

    async def end_previous(self) -> None:
        """Wait until an earlier worker of the exchange has ended, and so on back.

        Two workers of one exchange would edit the same messages against each other.
        """
        previous, self._previous = self._previous, None
        if previous is None:
            return
        if previous.task is None:
            previous._previous, self._previous = None, previous._previous
            await self.end_previous()
        else:
            previous.task.cancel()
            await finish_before_cancel(asyncio.wait([previous.task]))
