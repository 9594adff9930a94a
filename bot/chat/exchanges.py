"""Exchanges in flight: claims, workers, and every change of state.

The row in the store is the truth (bot/lifecycle.py has the table of transitions); a Worker
holds only what a row cannot.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from itertools import count
from typing import Any, TypeVar

import structlog

from bot.chat.worker import ChannelQueues, Worker
from bot.domain import (
    UNREADABLE,
    Answer,
    Attachment,
    Author,
    ChannelKey,
    Exchange,
    FurtherKind,
    FurtherMessage,
    IncomingMessage,
    Kind,
    Part,
    QueueDepth,
    Status,
)
from bot.errors import ClaimLost
from bot.observability.logging import log_context
from bot.storage.base import Store
from bot.util.aio import Occasions, race
from bot.util.clock import Clock
from bot.util.retry import retry_until_stored

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds that a button waits for the id of the message under which it stands.
_SENDING_SECONDS = 5.0


class Exchanges:
    """Claims exchanges, orders them by channel, and performs their transitions.

    Within a channel, questions are answered one after the other in the order of their rows.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._workers: dict[int, Worker] = {}
        self.queues = ChannelQueues()
        # Ended workers whose claim was revoked by a transaction that nobody knows to have succeeded:
        # the next one needs their parts, which no row may have.
        self._orphans: dict[int, Worker] = {}
        self._numbers = count()
        # Called for each /clear and /forget me, by platform: an adapter that keeps what it received drops that.
        self.on_deletion: dict[str, Callable[[ChannelKey | None, Author | None], None]] = {}
        # Called once an exchange is stored as delivered or given up, by platform: after its last edit.
        self.on_finished: dict[str, Callable[[Exchange], None]] = {}
        self._settled = Occasions()  # a message's id was stored, or a worker has ended
        self._deletions = 0  # ever begun
        self._deletions_running = 0
        self._no_deletion = asyncio.Event()
        self._no_deletion.set()

    # Claims.

    async def enqueue(self, message: IncomingMessage, kind: Kind) -> Exchange | None:
        """Store a live message and claim it; None if it is known and not owed."""
        return self._register(await self._store.enqueue(message, kind))

    async def enqueue_backlog(self, message: IncomingMessage, kind: Kind) -> None:
        """Store a message that was missed; `claim_owed` then returns it with the others."""
        await self._store.enqueue(message, kind, claim=False)

    async def claim_owed(self, platform: str) -> list[Exchange]:
        """Claim everything owed on the platform, in the order of the rows."""
        owed = await self._store.claim_owed(platform)
        for exchange in owed:
            self._register(exchange)
            self._workers[exchange.id].is_backlog = True
        return owed

    async def claim(self, exchange: Exchange) -> Exchange | None:
        """Claim one exchange if it is owed."""
        return self._register(await self._store.claim(exchange))

    async def requeue(
        self,
        exchange: Exchange,
        text: str | None = None,
        files: Sequence[Attachment] | None = None,
        *,
        reply_address: str | None = None,
        is_admitted: bool = False,
    ) -> Exchange | None:
        """Open the exchange again, with a new seed and perhaps a new text and files, and claim it.

        An earlier worker loses its claim; its messages are reused.  The author's roles, and whether the
        text is addressed to the bot, are those of `exchange`.  With a `reply_address` the answer goes there.  None if the exchange was cleared.
        """
        previous = self._workers.get(exchange.id)
        if text is None:
            reopened = await self._store.requeue(exchange, reply_address=reply_address)
        else:
            async with self._prompt_barrier(exchange.message.channel):  # the old text must not reach a prompt any more
                reopened = await self._store.requeue(exchange, text, files, reply_address)
        if reopened is None:
            return None
        author = replace(reopened.message.author, roles=exchange.message.author.roles)
        is_addressed = exchange.message.is_addressed
        reopened = replace(reopened, message=replace(reopened.message, author=author, is_addressed=is_addressed))
        if self._register(reopened, previous) is None:
            return None
        self.worker(reopened).is_admitted = is_admitted
        return reopened

    async def join(
        self, question: Exchange, message: FurtherMessage, *, is_missed: bool = False, was_answered: bool = False
    ) -> Exchange | None:
        """Add a message to a question, open it again and claim it; None if that cannot be, or is known.

        An earlier worker loses its claim, and its messages are reused.  What a limit has let through, as one that
        `was_answered`, is let through still, and its answers count as one.
        """
        previous = self._workers.get(question.id)
        joined = self._register(await self._store.join(question, message), previous)
        if joined is not None:
            worker = self.worker(joined)
            worker.is_joined = True
            worker.is_admitted = was_answered or (previous is not None and previous.is_admitted)
            worker.is_counted = was_answered or (previous is not None and previous.is_counted)
            worker.is_backlog = is_missed
        return joined

    async def edit_continuation(
        self,
        channel: ChannelKey,
        message_id: str,
        text: str,
        files: Sequence[Attachment],
        *,
        is_admitted: bool = False,
    ) -> Exchange | None:
        """Take the new text of a message that is a part of a question, open that again and claim it; None if it is none."""
        async with self._prompt_barrier(channel):  # the old text must not reach a prompt any more
            edited = await self._store.edit_continuation(channel, message_id, text, files)
        claimed = self._register(edited, None if edited is None else self._workers.get(edited.id))
        if claimed is not None:
            self.worker(claimed).is_admitted = is_admitted
        return claimed

    async def answer_with(self, exchange: Exchange, answer: Answer) -> Exchange:
        """Store an answer that needs no generation; return the exchange, to be delivered."""
        await self.record_answer(exchange, answer)
        worker = self.worker(exchange)
        self.queues.leave(worker)
        worker.exchange = replace(exchange, status=Status.ANSWERED, answer=answer)
        return worker.exchange

    def postpone(self, exchange: Exchange) -> None:
        """Leave a claimed exchange to the next `take_pending`."""
        self._workers[exchange.id].is_pending = True

    def take_pending(self, platform: str) -> list[Exchange]:
        """Return the postponed exchanges of the platform."""
        pending = (worker for worker in self._workers.values() if worker.is_pending)
        here = [worker for worker in pending if worker.exchange.message.channel.platform == platform]
        for worker in here:
            worker.is_pending = False
        return [worker.exchange for worker in here]

    def release(self, exchange: Exchange) -> None:
        """Give the claim up: if the exchange is not finished, it is owed again."""
        if self._drop(exchange):
            self._store.release(exchange)

    def release_unstarted(self, platform: str) -> None:
        """Give up the claims that handlers of the platform, which has ended, held when they were cancelled."""
        for worker in list(self._workers.values()):
            is_held = worker.task is None and not worker.is_pending
            if is_held and worker.exchange.message.channel.platform == platform:
                self.release(worker.exchange)

    def _register(self, exchange: Exchange | None, previous: Worker | None = None) -> Exchange | None:
        """Add a worker for a new claim; None if there is no claim, or a newer one already."""
        if exchange is None:
            return None
        replaced = self._workers.get(exchange.id)
        if replaced is not None:
            if replaced.exchange.fence > exchange.fence:
                return None
            replaced.stop()
            self.queues.leave(replaced)
        orphan = self._orphans.pop(exchange.id, None)
        worker = Worker(exchange, next(self._numbers), replaced or previous or orphan)
        self._workers[exchange.id] = worker
        if worker.has_position:
            self.queues.add(worker)
        return exchange

    def _drop(self, exchange: Exchange) -> bool:
        worker = self.find(exchange)
        if worker is None:
            return False
        self.queues.leave(worker)
        del self._workers[exchange.id]
        self._settled.add()
        return True

    # Workers.

    @property
    def is_idle(self) -> bool:
        """Whether no exchange is in flight."""
        return not self._workers

    def find(self, exchange: Exchange) -> Worker | None:
        """Return the worker that holds the claim of `exchange`, or None if it was lost."""
        worker = self._workers.get(exchange.id)
        return worker if worker is not None and worker.exchange.fence == exchange.fence else None

    def in_flight(self, channel: ChannelKey, number: int) -> Exchange | None:
        """Return the exchange with this id, if it is in flight and of this channel."""
        worker = self._workers.get(number)
        return worker.exchange if worker is not None and worker.exchange.message.channel == channel else None

    def worker(self, exchange: Exchange) -> Worker:
        """Return the worker that holds the claim of `exchange`.

        Raises:
            ClaimLost: There is none.
        """
        if (worker := self.find(exchange)) is None:
            raise ClaimLost(exchange.id)
        return worker

    def start(
        self, exchange: Exchange, work: Callable[[Worker], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None] | None:
        """Run `work` in a task once an earlier worker has ended, then release; None if the claim was lost."""
        worker = self.find(exchange)
        if worker is None or worker.task is not None:
            return None
        worker.task = asyncio.create_task(self._run(worker, work), name=f"exchange {exchange.id}")
        return worker.task

    async def _run(self, worker: Worker, work: Callable[[Worker], Coroutine[Any, Any, None]]) -> None:
        with log_context(exchange=worker.exchange.id):
            try:
                await worker.end_previous()
                await work(worker)
            except ClaimLost:
                log.info("claim lost, another worker goes on")
                if self.find(worker.exchange) is worker:
                    self._orphans[worker.exchange.id] = worker
            finally:
                self.release(worker.exchange)

    def stop(self, exchange: Exchange) -> bool:
        """End the generation of an answer, running or waiting; return whether there is one."""
        worker = self._workers.get(exchange.id)
        if worker is None or not worker.has_position:
            return False
        worker.stop()
        return True

    def depth(self, exchange: Exchange) -> QueueDepth:
        """Count the earlier unanswered questions; a retry counts from when it was asked for."""
        return self.queues.depth(exchange.message, self.find(exchange))

    # Transitions of a worker.

    async def record_part(self, worker: Worker, number: int, message_id: str) -> None:
        """Store the id of the platform message that carries part `number` of the reply.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        if not await self._store.record_part(worker.exchange, number, message_id):
            self._check_deleted(worker)
        self._settled.add()

    async def move(self, worker: Worker, channel: ChannelKey) -> None:
        """Move an exchange to the thread that was opened for its answer: it belongs to that conversation then.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        if await self._store.move(worker.exchange, channel):
            self.queues.place(worker, channel)
        else:
            self._check_deleted(worker)

    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """Return the exchange whose reply a message carries.

        A message's button may be pressed before its id is stored, which is waited for.
        """
        give_up = self._clock.now() + _SENDING_SECONDS
        while True:
            # Both before the read, which may miss an id that is stored meanwhile.
            before = self._settled.count
            sending = (worker.exchange for worker in self._workers.values() if worker.is_sending)
            is_sending = any(_is_in(exchange, channel) for exchange in sending)
            found = await self._store.find_by_reply(channel, message_id)
            left = give_up - self._clock.now()
            if found is not None or left <= 0 or not is_sending:
                return found
            await race(self._settled.after(before), self._clock.sleep(left))

    async def is_reply(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether a message is recorded as a part of a reply, at this moment."""
        return await self._store.find_by_reply(channel, message_id) is not None

    async def record_files(
        self, worker: Worker, files: Sequence[Attachment], further: Sequence[FurtherMessage] = ()
    ) -> None:
        """Store what was read of the files of the message, and of its parts.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        if not await self._store.record_files(worker.exchange, files, further):
            self._check_deleted(worker)

    async def record_context(
        self, worker: Worker, messages: Sequence[FurtherMessage], kinds: Collection[FurtherKind]
    ) -> None:
        """Store what others said before the question, and what it links to, in place of what it has of these kinds.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        if not await self._store.record_context(worker.exchange, messages, kinds):
            self._check_deleted(worker)

    async def adopt_parts(self, exchange: Exchange, message_ids: Sequence[str]) -> Exchange:
        """Continue the reply in the messages that an earlier run has sent; return the exchange with them.

        The messages of another exchange are not touched, nor are those after them.
        """
        worker = self.worker(exchange)
        if worker.is_backlog and message_ids[: len(exchange.parts)] == exchange.parts:
            for number in range(len(exchange.parts), len(message_ids)):
                if await self._store.find_by_reply(exchange.message.channel, message_ids[number]) is not None:
                    break
                await self.record_part(worker, number, message_ids[number])
                worker.parts.append(Part(message_ids[number], is_recorded=True))
            worker.exchange = replace(exchange, parts=tuple(message_ids[: len(worker.parts)]))
        return worker.exchange

    async def record_answer(
        self,
        exchange: Exchange,
        answer: Answer,
        day: date | None = None,
        milliseconds: int = 0,
        *,
        is_counted: bool = False,
    ) -> None:
        """Store the answer; from now on it is owed to the platform.  With a `day`, count what it has used.

        With `is_counted` that is no further answer.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """

        def write() -> Awaitable[bool]:
            return self._store.record_answer(exchange, answer, day, milliseconds, is_counted=is_counted)

        if not await retry_until_stored(write, self._clock):
            self._check_deleted(self.worker(exchange))

    async def complete(self, exchange: Exchange) -> None:
        """Mark the exchange as delivered: the last edit has landed, or nothing is shown.

        One that could not be read has failed, also when that is shown.
        """
        if exchange.is_unreadable:
            await self.fail(exchange, UNREADABLE)
        else:
            await self._finish(exchange, lambda: self._store.complete(exchange))

    async def fail(self, exchange: Exchange, reason: str) -> None:
        """Give the exchange up: the platform will never show the reply."""
        await self._finish(exchange, lambda: self._store.fail(exchange, reason))

    async def settle(self, exchange: Exchange, answer: Answer) -> None:
        """Store an answer that is not shown."""
        await self.record_answer(exchange, answer)
        await self.complete(exchange)

    async def _finish(self, exchange: Exchange, write: Callable[[], Awaitable[object]]) -> None:
        worker = self.find(exchange)
        if worker is None:
            return
        if worker.leaves_no_trace:
            await retry_until_stored(lambda: self._store.erase(exchange), self._clock)
        else:
            await retry_until_stored(write, self._clock)
        self._drop(exchange)
        if (finished := self.on_finished.get(exchange.message.channel.platform)) is not None:
            finished(exchange)

    def _check_deleted(self, worker: Worker) -> None:
        # What was deleted has no claim any more, but its last edit still takes the Stop button away.
        if not worker.is_deleted:
            raise ClaimLost(worker.exchange.id)

    # Deletions.

    async def clear(self, channel: ChannelKey, before: Exchange | None = None, author: Author | None = None) -> int:
        """Delete the channel's exchanges, threads included; return the number of questions.

        With `before`, only those before that exchange; with `author`, only those of that person.  Answers in progress
        are stopped and not kept.
        """

        def is_covered(exchange: Exchange) -> bool:
            key = exchange.message.channel
            is_here = key == channel or (channel.thread is None and replace(key, thread=None) == channel)
            is_by = author is None or exchange.message.author.key == author.key
            return is_here and is_by and (before is None or exchange.id < before.id)

        async with self._deletion(is_covered, channel):
            self._drop_received(channel, author)
            return await self._store.clear(channel, before, author)

    async def forget(self, by: Exchange, reload_settings: Callable[[], Awaitable[None]]) -> int:
        """Delete everything its author said before this exchange, in all channels; return the number of questions.

        The settings are read again before any prompt is: they had texts of this person.
        """
        author = by.message.author
        async with self._deletion(lambda past: past.message.author.key == author.key and past.id < by.id):
            self._drop_received(None, author)
            try:
                return await self._store.forget(author, by)
            finally:
                await reload_settings()

    async def delete_messages(
        self, channel: ChannelKey, message_ids: Collection[str], *, is_expected: bool = False
    ) -> None:
        """Delete the exchanges of deleted messages, as far as there are any, and quotations of them."""

        def is_covered(exchange: Exchange) -> bool:
            return _is_in(exchange, channel) and exchange.message.id in message_ids

        async with self._deletion(is_covered, channel):
            await self._store.delete_messages(channel, message_ids, is_expected=is_expected)

    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        """Move all of a channel to the id that its platform gave it; return the number of exchanges.

        A reply in progress goes on in the platform's old channel; its messages there have other
        ids from now on, as in the store.
        """
        async with self._prompt_barrier(channel):
            count = await self._store.rename_channel(channel, to)
            for worker in self._workers.values():
                if _is_in(worker.exchange, channel):
                    self.queues.move(worker, to)
        return count

    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        """Let quotations of an edited message have its new text."""
        async with self._prompt_barrier(channel):
            await self._store.replace_quotes(channel, message_id, text)

    def _drop_received(self, channel: ChannelKey | None, author: Author | None) -> None:
        for drop in self.on_deletion.values():
            drop(channel, author)

    async def read_undeleted(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read for a prompt; once more if a deletion overlapped, since the result may hold deleted text."""
        while True:
            await self._no_deletion.wait()
            deletions = self._deletions
            result = await read()
            if deletions == self._deletions:
                return result

    @asynccontextmanager
    async def _deletion(
        self, is_covered: Callable[[Exchange], bool], channel: ChannelKey | None = None
    ) -> AsyncIterator[None]:
        """Stop what is covered, and hold the channel's prompts back until the deletion is done."""
        for worker in self._workers.values():
            if is_covered(worker.exchange):
                worker.is_deleted = True
                if worker.has_position:
                    worker.stop()
        async with self._prompt_barrier(channel):
            yield

    @asynccontextmanager
    async def _prompt_barrier(self, channel: ChannelKey | None) -> AsyncIterator[None]:
        """Hold prompts back, and let those that wait be read again: any of the platform may link to the channel."""
        for worker in self._workers.values():
            if channel is None or worker.exchange.message.channel.platform == channel.platform:
                worker.prompt_in_doubt.set()
        self._deletions += 1
        self._deletions_running += 1
        self._no_deletion.clear()
        try:
            yield
        finally:
            self._deletions_running -= 1
            if not self._deletions_running:
                self._no_deletion.set()


def _is_in(exchange: Exchange, channel: ChannelKey) -> bool:
    return replace(exchange.message.channel, thread=None) == replace(channel, thread=None)
