"""Bring a growing reply to its platform: merged, paced, retried, and in the end always complete."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from bot.chat.stream import ReplyStream
from bot.delivery.messenger import Messenger, nonce
from bot.delivery.pacer import Pacer
from bot.delivery.view import MessageView, ReplyView
from bot.domain import Exchange, Finished, Part
from bot.errors import (
    ChannelGone,
    EditRefused,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
    StoreError,
)
from bot.observability.metrics import Metrics
from bot.util.aio import finish_before_cancel
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Stores the id of the platform message that carries part number 0, 1, … of the reply.
RecordPart = Callable[[int, str], Awaitable[None]]

# Seconds between retries: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0


@dataclass(slots=True)
class _Message:
    """One message of the reply; `shown` is None while its content is unknown."""

    part: Part
    shown: MessageView | None = None
    last_call: int = 0  # number of the last call for it
    is_plain: bool = False

    def lose(self) -> None:
        """Forget a deleted message; the part can be sent again."""
        self.part.replaces, self.part.id, self.shown = self.part.id, None, None
        self.part.is_recorded = False


class Sender:
    """Delivers one reply.

    Each message of the reply is first sent as "…", its id is recorded, and only then it is
    edited; messages that exist already are edited and never sent again.  Events that
    arrive during a call are merged into the next one, and the last edit is guaranteed.

    `parts` is one list for all senders of an exchange, which follow one another: each
    continues with the messages that the one before has sent.
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
        self._messages = [_Message(part) for part in parts]
        self._is_resumed = any(part.id is not None for part in parts)
        self._calls = 0
        # With jitter: replies that fail together must not return together.
        self._backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.Random(exchange.id).random)

    async def run(self, stream: ReplyStream) -> None:
        """Show the reply until its last edit has landed.

        Raises:
            ChannelGone: The channel cannot be written to any more.
            PlatformError: The platform refuses the reply for good.
            ClaimLost: Another worker goes on with the exchange.
        """
        while True:
            self._read(stream)
            number = self._next()
            if number is None:
                if self._view.is_complete:
                    return
                await stream.wait()
                continue
            is_urgent = self._is_urgent(number)
            try:
                await self._pacer.call(self._channel, partial(self._step, stream, is_urgent), urgent=is_urgent)
            except RateLimited:
                continue  # the pacer delays the next call
            except (PlatformUnavailable, StoreError):
                # Also for a store error: the id of a sent message is known only here.
                await self._pacer.clock.sleep(self._backoff.after_failure())
            else:
                self._backoff.succeeded()

    def _read(self, stream: ReplyStream) -> None:
        for event in () if self._view.is_complete else stream.drain():
            self._view.apply(event)
            if isinstance(event, Finished):
                for message in self._messages:
                    message.is_plain = False  # the markup of half a text may be refused, the whole text's accepted

    def _next(self) -> int | None:
        """Return the message to act on: the first unsent one, else the one whose last call is the oldest."""
        if self._is_resumed and not self._view.has_begun:
            return None  # the old text stays until there is a new one
        wanted = len(self._view.messages())
        waiting = [number for number in range(len(self._messages)) if self._needs_call(number, wanted)]
        for number in waiting:
            if self._messages[number].part.id is None:
                return number  # messages are sent in order
        lacks_one = len(self._messages) < wanted
        # The next message is begun while the last one is still edited, or its text would come late.
        if lacks_one and (not waiting or (waiting == [len(self._messages) - 1] and not self._view.is_complete)):
            return len(self._messages)
        return min(waiting, key=lambda number: self._messages[number].last_call, default=None)

    def _is_urgent(self, number: int) -> bool:
        """Return whether users wait for this message: the first one, or the next while text flows."""
        is_new = number == len(self._messages) or self._messages[number].part.id is None
        has_sent = any(message.part.id is not None for message in self._messages)
        return is_new and not (self._view.is_complete and has_sent)

    def _needs_call(self, number: int, wanted: int) -> bool:
        message = self._messages[number]
        if message.part.id is not None and not message.part.is_recorded:
            return True
        if number < wanted:
            return message.shown != self._view.message(number, plain=message.is_plain)
        # A reply that became shorter: its last messages are emptied now and deleted at the end.
        placeholder = self._view.placeholder(plain=message.is_plain)
        return message.part.id is not None and (self._view.is_complete or message.shown != placeholder)

    async def _step(self, stream: ReplyStream, is_urgent: bool) -> None:
        """Make the call that is needed at this moment, which the pacer may have delayed."""
        self._read(stream)
        number = self._next()
        if number is not None and self._is_urgent(number):
            await self._call(number)
            if is_urgent:
                return
            self._read(stream)
            number = self._next()  # an urgent call does not use up the turn of an edit
        if number is not None and not is_urgent:
            await self._call(number)

    async def _call(self, number: int) -> None:
        if number == len(self._messages):
            self._parts.append(Part())
            self._messages.append(_Message(self._parts[-1]))
        message = self._messages[number]
        self._calls += 1
        message.last_call = self._calls
        wanted = len(self._view.messages())
        try:
            if message.part.id is None:
                controls = self._view.message(number).controls
                await finish_before_cancel(
                    self._send(message, number, self._view.placeholder(controls, plain=message.is_plain))
                )
            elif not message.part.is_recorded:
                await self._record(message.part, number)
            elif number < wanted:
                await self._edit(message, self._view.message(number, plain=message.is_plain))
            elif self._view.is_complete:
                await self._delete(message)
            else:
                await self._edit(message, self._view.placeholder(plain=message.is_plain))
        except MarkupRefused:
            if message.is_plain or self._view.is_plain:
                raise
            if self._view.fits_plain(number):
                message.is_plain = True
            else:
                self._view.use_plain()

    async def _send(self, message: _Message, number: int, content: MessageView) -> None:
        try:
            with self._metrics.platform_call(self._channel.platform, "send", self._pacer.clock):
                message.part.id = await self._messenger.send(
                    self._channel,
                    content.text,
                    reply_to=self._reply_to if number == 0 else None,
                    controls=content.controls,
                    nonce=nonce(self._exchange.message, number, message.part.replaces),
                )
        except MessageGone:
            if self._reply_to is None:
                raise
            self._reply_to = None
            return
        except RateLimited as limited:
            # Also if this call was cancelled, and the pacer does not see its error.
            self._pacer.pause(self._channel, limited.seconds)
            raise
        message.shown = content
        await self._record(message.part, number)

    async def _record(self, part: Part, number: int) -> None:
        assert part.id is not None, "only a sent message is recorded"
        await self._record_part(number, part.id)
        part.is_recorded = True

    async def _edit(self, message: _Message, content: MessageView) -> None:
        assert message.part.id is not None, "only a sent message is edited"
        try:
            with self._metrics.platform_call(self._channel.platform, "edit", self._pacer.clock):
                await self._messenger.edit(self._channel, message.part.id, content.text, controls=content.controls)
        except (EditRefused, MessageGone):
            message.lose()
        else:
            message.shown = content

    async def _delete(self, message: _Message) -> None:
        assert message.part.id is not None, "only a sent message is deleted"
        try:
            with self._metrics.platform_call(self._channel.platform, "delete", self._pacer.clock):
                await self._messenger.delete(self._channel, message.part.id)
        except (RateLimited, PlatformUnavailable, ChannelGone, LoginRefused):
            raise
        except PlatformError as error:
            # Deleted already, or not deletable: the reply is complete in the messages before it.
            log.info("a surplus message was not deleted", message=message.part.id, error=str(error))
        message.lose()
