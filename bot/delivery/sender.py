"""Bring a growing reply to its platform: merged, paced, retried, and in the end always complete."""

import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import structlog

from bot.chat.stream import ReplyStream
from bot.delivery.messenger import Messenger, Streams, nonce
from bot.delivery.pacer import Budget, Pacer
from bot.delivery.view import MessageView, ReplyView
from bot.domain import Exchange, Finished, FinishReason, Notice, Part
from bot.errors import (
    AccessDenied,
    AppendLimited,
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
    ReplyFull,
    StoreError,
)
from bot.observability.metrics import Metrics
from bot.util.aio import finish_before_cancel, race
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Stores the id of the platform message that carries part number 0, 1, … of the reply.
RecordPart = Callable[[int, str], Awaitable[None]]

# Runs a computation that may take long: at once, or in a thread.
Compute = Callable[[Callable[[], None]], Awaitable[None]]

# Seconds between retries: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
# Seconds to wait for a permission that was taken away: before the first message, and for the rest of a reply, whose half
# would stand there for good.
_ACCESS_PATIENCE = 300.0
_REST_PATIENCE = 3600.0
# Seconds that an edit in flight may delay a cancellation, so that it does not land after a later one.
_EDIT_PATIENCE = 2.0
# Messages in one place that may be lost before the text is sent whole, once it is complete.
_COPIES = 2
# Seconds that an answer has to be complete, and be sent whole, before a placeholder is sent.
_PLACEHOLDER_DELAY = 0.3
# Characters that are split and rendered in a few milliseconds, whatever they are.
_CHEAP = 300


async def compute_here(work: Callable[[], None]) -> None:
    """Run a computation at once."""
    work()


@dataclass(slots=True)
class _Message:
    """One message of the reply; `shown` and `standing` are None while its content is unknown."""

    part: Part
    shown: MessageView | None = None
    standing: str | None = None  # the model's text in it
    first: MessageView | None = None  # the content of a send whose response was lost
    last_call: int = 0  # number of the last call for it
    level: int = 0  # of its markup: a higher one where the platform has refused this one
    is_held: bool = False  # a filter refused its text; it is tried again when it is complete

    def lose(self) -> None:
        """Forget the message; the part can be sent again."""
        self.part.replaces, self.part.id = self.part.id, None
        self.part.is_recorded = False
        self.part.lost += 1
        self.shown, self.standing = None, ""


class Sender:
    """Delivers one reply.

    Each message of the reply is first sent as "…", its id is recorded, and only then it is
    edited; messages that exist already are edited and never sent again.  Events that
    arrive during a call are merged into the next one, and the last edit is guaranteed.

    `parts` is one list for all senders of an exchange, which follow one another: each
    continues with the messages that the one before has sent.

    A message that was deleted is sent again, once; the messages below follow it.  After that, or
    where edits are refused, the text is sent whole when it is complete, and the old messages are deleted.
    Where the platform takes no further message, the last one ends with a sentence about that.

    With `sends_whole`, an answer that is complete at once is sent without a placeholder while the
    channel is busy or the budget of edits is used up: it saves a call where few are allowed.  With
    `looks_first`, the messenger looks for what an earlier run may have sent.  `streams` are those of
    the messenger, if it has any.
    """

    def __init__(
        self,
        messenger: Messenger,
        exchange: Exchange,
        view: ReplyView,
        pacer: Pacer,
        parts: list[Part],
        record_part: RecordPart,
        metrics: Metrics,
        *,
        sends_whole: bool = False,
        looks_first: bool = False,
        streams: Streams | None = None,
        compute: Compute = compute_here,
    ) -> None:
        self._messenger = messenger
        self._exchange = exchange
        self._channel = exchange.message.channel
        self._reply_to: str | None = exchange.message.id
        self._view = view
        self._pacer = pacer
        self._parts = parts
        self._record_part = record_part
        self._metrics = metrics
        self._messages = [_Message(part, standing=None if part.id else "") for part in parts]
        self._compute = compute
        self._sends_whole = sends_whole and not parts
        self._looks_first = looks_first
        self._streams = streams
        self._whole_from: int | None = None  # messages from this number on are sent whole
        self._surplus: list[str] = []  # ids of replaced messages, deleted at the end
        self._is_calling = False
        self._denied_since: float | None = None
        self._is_resumed = any(part.id is not None for part in parts)
        self._calls = 0
        # With jitter: replies that fail together must not return together.
        self._backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.Random(exchange.id).random)

    async def run(self, stream: ReplyStream) -> None:
        """Show the reply until its last edit has landed.

        Raises:
            AccessDenied: The permission to write has not come back in time.
            ChannelGone: The channel cannot be written to any more.
            PlatformError: The platform refuses the reply for good.
            ClaimLost: Another worker goes on with the exchange.
        """
        budget = self._pacer.budget_of(self._channel)
        if self._sends_whole and self._pacer.is_busy(self._channel):
            await race(stream.wait_finished(), self._pacer.clock.sleep(_PLACEHOLDER_DELAY))
        elif budget is None or not budget.counts_sends:
            self._sends_whole = False
        with nullcontext() if budget is None else budget.reserve():
            await self._show(stream)

    async def _show(self, stream: ReplyStream) -> None:
        while True:
            self._is_calling = False
            await self._read(stream)
            number = self._next()
            if number is None and not self._view.is_complete:
                await stream.wait()
                continue
            if number is None and not self._surplus:
                return
            is_urgent = number is not None and self._is_urgent(number)
            try:
                if number is not None and (budget := self._budget(number)) is not None:
                    await self._take_turn(budget, stream)
                await self._pacer.call(self._channel, partial(self._step, stream, is_urgent), urgent=is_urgent)
            except RateLimited:
                continue  # the pacer delays the next call
            except AccessDenied as denied:
                await self._wait_for_access(denied)
            except (PlatformUnavailable, StoreError):
                # Also for a store error: the id of a sent message is known only here.
                await self._pacer.clock.sleep(self._backoff.after_failure())
            else:
                self._backoff.succeeded()
                self._denied_since = None

    async def explain(self, sentence: str) -> None:
        """After a fault of `run`, end the reply with a sentence below the text that stands."""
        for message in self._messages:
            message.is_held = False
        if self._is_calling:
            self._view.freeze([message.standing for message in self._messages], sentence)
        else:
            self._view.apply(Notice(sentence))
            self._view.apply(Finished(FinishReason.ERROR))
        await self.run(ReplyStream())

    async def _take_turn(self, budget: Budget, stream: ReplyStream) -> None:
        """Wait for an edit of the budget; a reply that is complete meanwhile has another share."""
        if not self._view.is_complete:
            await race(budget.take_growing(), stream.wait_finished())
            await self._read(stream)
        if self._view.is_complete:
            await budget.take_last()

    async def _wait_for_access(self, denied: AccessDenied) -> None:
        now = self._pacer.clock.now()
        has_begun = any(message.part.id is not None for message in self._messages)
        patience = _REST_PATIENCE if has_begun else _ACCESS_PATIENCE
        if self._denied_since is None:
            self._denied_since = now
            log.warning("permission denied; waiting for it", seconds=patience, error=str(denied))
        if now - self._denied_since >= patience:
            raise denied
        await self._pacer.clock.sleep(self._backoff.after_failure())

    async def _read(self, stream: ReplyStream) -> None:
        for event in () if self._view.is_complete else stream.drain():
            self._view.apply(event)
            if isinstance(event, Finished):
                for message in self._messages:
                    # The markup or the words of half a text may be refused, and the whole text's accepted.
                    message.level, message.is_held = 0, False
        if self._view.pending > _CHEAP:
            await self._compute(self._view.prepare)

    def _next(self) -> int | None:
        """Return the message to act on: the first unsent one, else the one whose last call is the oldest."""
        if self._is_resumed and not self._view.has_begun:
            return None  # the old text stays until there is a new one
        wanted = len(self._view.messages())
        waiting = [number for number in range(len(self._messages)) if self._needs_call(number, wanted)]
        for number in waiting:
            if self._messages[number].part.id is None:
                return number  # messages are sent in order
        lacks_one = len(self._messages) < wanted and not self._waits_for_end(len(self._messages))
        # The next message is begun while the last one is still edited, or its text would come late.
        if lacks_one and (not waiting or (waiting == [len(self._messages) - 1] and not self._view.is_complete)):
            return len(self._messages)
        # The last message of a complete reply comes last: its button tells that the reply is complete.
        last = wanted - 1 if self._view.is_complete else None
        return min(waiting, key=lambda number: (number == last, self._messages[number].last_call), default=None)

    def _is_urgent(self, number: int) -> bool:
        """Return whether users wait for this message: the first one, or the next while text flows."""
        is_new = number == len(self._messages) or self._messages[number].part.id is None
        has_sent = any(message.part.id is not None for message in self._messages)
        return is_new and not (self._view.is_complete and has_sent)

    def _budget(self, number: int) -> Budget | None:
        """Return the budget that the next call for message `number` counts in."""
        part, budget = Part(), self._pacer.budget_of(self._channel)
        if number < len(self._messages):
            part = self._messages[number].part
        if part.id is None:
            return budget if budget is not None and budget.counts_sends else None
        if not part.is_recorded:
            return None
        is_stream = self._streams is not None and self._streams.is_open(self._channel, part.id)
        return self._pacer.appends if is_stream else budget

    def _waits_for_end(self, number: int) -> bool:
        """Return whether message `number` is sent whole, and is not complete yet."""
        return self._whole_from is not None and number >= self._whole_from and not self._view.is_complete

    def _needs_call(self, number: int, wanted: int) -> bool:
        message = self._messages[number]
        if message.part.id is not None and not message.part.is_recorded:
            return True
        if message.is_held or self._view.is_untouched(number) or self._waits_for_end(number):
            return False
        if number < wanted:
            return message.shown != self._view.message(number, message.level)
        # A reply that became shorter: its last messages are emptied now and deleted at the end.
        placeholder = self._view.placeholder(level=message.level)
        return message.part.id is not None and (self._view.is_complete or message.shown != placeholder)

    async def _step(self, stream: ReplyStream, is_urgent: bool) -> None:
        """Make the call that is needed at this moment, which the pacer may have delayed."""
        await self._read(stream)
        number = self._next()
        if number is not None and self._is_urgent(number):
            await self._call(number)
            if is_urgent:
                return
            await self._read(stream)
            number = self._next()  # an urgent call does not use up the turn of an edit
        if number is not None and not is_urgent:
            await self._call(number)
        elif self._view.is_complete and self._surplus and not is_urgent:
            await self._delete(self._surplus[0])
            del self._surplus[0]

    async def _call(self, number: int) -> None:
        if number == len(self._messages):
            self._parts.append(Part())
            self._messages.append(_Message(self._parts[-1], standing=""))
        message = self._messages[number]
        self._is_calling = True
        self._calls += 1
        message.last_call = self._calls
        wanted = len(self._view.messages())
        if message.level and number < wanted and not self._view.fits(number, message.level):
            self._view.simplify(message.level)  # it has grown; the next call is for what then is the message
            return
        try:
            if message.part.id is None:
                content = self._view.message(number, message.level)
                if not self._is_sent_whole(number):
                    content = self._view.placeholder(content.controls, message.level)
                await finish_before_cancel(self._send(message, number, message.first or content))
            elif not message.part.is_recorded:
                await self._record(message.part, number)
            elif number < wanted:
                content = self._view.message(number, message.level)
                await finish_before_cancel(self._edit(message, number, content), _EDIT_PATIENCE)
            elif self._view.is_complete:
                await self._delete(message.part.id)
                message.lose()
            else:
                content = self._view.placeholder(level=message.level)
                await finish_before_cancel(self._edit(message, number, content), _EDIT_PATIENCE)
        except ReplyFull:
            if number == 0:
                raise
            # Those below have no message either: they are sent in order.
            del self._messages[number:], self._parts[number:]
            self._view.end_after(number)
        except ContentRefused:
            if not self._view.is_complete and message.part.id is not None:
                message.is_held = True
            elif self._view.is_filtered(number):
                raise
            else:
                log.info("a filter of the platform refuses the text", message=message.part.id)
                self._view.filter(number, message.standing)
        except MarkupRefused:
            level = self._view.simpler(message.level)
            if level is None:
                raise
            message.first = None  # what it holds would be refused again
            if self._view.fits(number, level):
                message.level = level
            else:
                self._view.simplify(level)

    def _is_sent_whole(self, number: int) -> bool:
        if not self._view.is_complete:
            return False
        if self._whole_from is not None and number >= self._whole_from:
            return True
        return self._sends_whole and len(self._view.messages()) == 1

    async def _send(self, message: _Message, number: int, content: MessageView) -> None:
        try:
            with self._metrics.platform_call(self._channel.platform, "send", self._pacer.clock):
                message.part.id = await self._messenger.send(
                    self._channel,
                    content.text,
                    reply_to=self._reply_to if number == 0 else None,
                    controls=content.controls,
                    nonce=nonce(self._exchange.message, number, message.part.replaces),
                    may_exist=self._may_be_sent(message.part),
                    continues=self._parts[0].id if number else None,
                )
        except MessageGone:
            if self._reply_to is None:
                raise
            self._reply_to = None
            return
        except PlatformUnavailable:
            message.first = content
            raise
        except RateLimited as limited:
            # Also if this call was cancelled, and the pacer does not see its error.
            self._pacer.pause(self._channel, limited.seconds)
            raise
        message.shown, message.standing, message.first = content, content.answer, None
        await self._record(message.part, number)

    def _may_be_sent(self, part: Part) -> bool:
        """Return whether an earlier run may have sent this message without having recorded its id."""
        return self._looks_first if part.replaces is None else self._is_resumed

    async def _record(self, part: Part, number: int) -> None:
        assert part.id is not None, "only a sent message is recorded"
        await self._record_part(number, part.id)
        part.is_recorded = True

    async def _edit(self, message: _Message, number: int, content: MessageView) -> None:
        assert message.part.id is not None, "only a sent message is edited"
        before, budget = (message.shown, message.standing), self._budget(number)
        # A call that is cut off, or whose response cannot be read, may have landed.
        message.shown = message.standing = None
        try:
            with self._metrics.platform_call(self._channel.platform, "edit", self._pacer.clock):
                await self._messenger.edit(self._channel, message.part.id, content.text, controls=content.controls)
        except MessageGone:
            self._replace_from(number, is_gone=True)
        except EditRefused as refused:
            log.info("a message may not be edited any more", message=message.part.id, error=str(refused))
            self._replace_from(number, is_gone=False)
        except PlatformUnavailable:
            message.standing = content.answer
            raise
        except PlatformError as error:
            message.shown, message.standing = before
            # The edit of a stream may have been another call than an append.
            is_counted = budget is not self._pacer.appends or isinstance(error, AppendLimited)
            if isinstance(error, RateLimited) and budget is not None and is_counted:
                budget.pause(error.seconds)
            raise
        else:
            message.shown, message.standing = content, content.answer

    def _replace_from(self, number: int, *, is_gone: bool) -> None:
        """Send this message again, and those below it, so that the order stays."""
        replaced = [message for message in self._messages[number:] if message.part.id is not None]
        self._surplus += [message.part.id for message in replaced[is_gone:] if message.part.id is not None]
        for message in replaced:
            message.lose()
        if not is_gone or any(message.part.lost >= _COPIES for message in replaced):
            self._whole_from = number if self._whole_from is None else min(number, self._whole_from)

    async def _delete(self, message_id: str) -> None:
        try:
            with self._metrics.platform_call(self._channel.platform, "delete", self._pacer.clock):
                await self._messenger.delete(self._channel, message_id)
        except (RateLimited, PlatformUnavailable, AccessDenied, ChannelGone, LoginRefused):
            raise
        except PlatformError as error:
            # Deleted already, or not deletable: the reply is complete in the messages before it.
            log.info("a surplus message was not deleted", message=message_id, error=str(error))
