"""The work on one exchange: what its row cannot hold, such as the task, the stop flag and the turn in its channel."""

import asyncio
import bisect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from bot.domain import ChannelKey, Exchange, FinishReason, IncomingMessage, Kind, Part, QueueDepth
from bot.util.aio import finish_before_cancel


class Worker:
    """The work on one exchange whose claim this process holds."""

    def __init__(self, exchange: Exchange, number: int, previous: "Worker | None" = None) -> None:
        self.exchange = exchange
        self.number = number  # order in which exchanges of all channels were claimed
        self.parts: list[Part] = previous.parts if previous else [Part(id, is_recorded=True) for id in exchange.parts]
        self.has_position = exchange.kind is Kind.CHAT and exchange.answer is None  # in the queue of its channel
        self.is_admitted = False  # a limit let it through before its old answer was dropped
        self.is_counted = False  # in the ledger as an answer
        self.is_joined = False  # its question is that of the previous worker, with one more message
        self.is_backlog = False  # it was owed, and does not count as waiting
        self.is_pending = False  # `recover` will return it
        self.is_deleted = False
        self.leaves_no_trace = False  # its row is cleared once its reply was shown
        self.prompt_in_doubt = asyncio.Event()  # a deletion or an edit since the prompt was read
        self.most_pictures: int | None = None  # after a model server has refused more
        self.is_interrupted = False  # its prompt has changed, and is read again
        self.task: asyncio.Task[None] | None = None
        self._previous = previous
        self._generation: asyncio.Timeout | None = None
        self._position_changed = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def is_sending(self) -> bool:
        """Whether a message of the reply may be shown whose id is not stored yet."""
        return any(not part.is_recorded for part in self.parts)

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

    def rename_channel(self, to: str) -> None:
        """Take the ids that the store gives to all of a channel when its platform gives it another."""
        message = self.exchange.message
        prefix = f"{message.channel.channel} "
        server = to if message.server == message.channel.channel else message.server
        channel = replace(message.channel, channel=to)
        quoted_id = None if message.quoted_id is None else prefix + message.quoted_id
        renamed = replace(message, id=prefix + message.id, channel=channel, server=server, quoted_id=quoted_id)
        self.exchange = replace(self.exchange, message=renamed)
        for part in self.parts:
            if part.id is not None:
                part.id = prefix + part.id

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
            self.is_counted |= self.is_joined and previous.is_counted


class ChannelQueues:
    """The questions of each channel that wait or are being answered, in the order of their rows."""

    def __init__(self) -> None:
        self._workers: dict[ChannelKey, list[Worker]] = {}

    def in_channel(self, channel: ChannelKey) -> list[Exchange]:
        return [worker.exchange for worker in self._workers.get(channel, ())]

    def position(self, worker: Worker) -> int:
        """Return how many questions of the channel come first."""
        return self._workers[worker.exchange.message.channel].index(worker)

    def depth(self, message: IncomingMessage, own: Worker | None) -> QueueDepth:
        """Count the questions of the message's author and of its channel, those claimed before `own`."""
        earlier = [
            worker.exchange.message
            for queue in self._workers.values()
            for worker in queue
            if worker is not own and (own is None or worker.number < own.number)
        ]
        channel = (message.channel.platform, message.channel.channel)
        return QueueDepth(
            author=sum(other.author.key == message.author.key for other in earlier),
            channel=sum((other.channel.platform, other.channel.channel) == channel for other in earlier),
        )

    def add(self, worker: Worker) -> None:
        queue = self._workers.setdefault(worker.exchange.message.channel, [])
        bisect.insort(queue, worker, key=lambda other: other.exchange.id)

    def leave(self, worker: Worker) -> None:
        """Let the next question of the channel be answered."""
        if not worker.has_position:
            return
        worker.has_position = False
        self._remove(worker)
        for other in self._workers.get(worker.exchange.message.channel, ()):
            other.notify_position()

    def move(self, worker: Worker, to: str) -> None:
        """Move a worker to the id that its platform gave to the channel."""
        if worker.has_position:
            self._remove(worker)
        worker.rename_channel(to)
        if worker.has_position:
            self.add(worker)

    def place(self, worker: Worker, channel: ChannelKey) -> None:
        """Move a worker to a thread that was opened for its answer."""
        has_position = worker.has_position
        self.leave(worker)
        worker.exchange = replace(worker.exchange, message=replace(worker.exchange.message, channel=channel))
        worker.has_position = has_position
        if has_position:
            self.add(worker)

    def _remove(self, worker: Worker) -> None:
        channel = worker.exchange.message.channel
        self._workers[channel].remove(worker)
        if not self._workers[channel]:
            del self._workers[channel]
