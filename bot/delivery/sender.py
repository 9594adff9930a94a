"""A reply that grows on a platform with edits: merged, paced, split, and in the end always whole."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog

from bot.chat.i18n import Translate, ending, waiting
from bot.delivery.markdown.format import CachedFormat, Format, PlainFormat, Rendered, fits
from bot.delivery.markdown.split import Splitter, join, split
from bot.delivery.messenger import Messenger
from bot.delivery.pacer import Pacer
from bot.domain import (
    Action,
    Controls,
    Delta,
    Exchange,
    Finished,
    FinishReason,
    Kind,
    Notice,
    Queued,
    ReplyEvent,
)
from bot.errors import (
    ChannelGone,
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

Placed = Callable[[int, int, str], Awaitable[None]]

PLACEHOLDER = "…"
_NO_CONTROLS: Controls = frozenset()

# Seconds between tries of what failed: the first, and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class _Look:
    """What one message shows."""

    text: Rendered
    controls: Controls


@dataclass(slots=True)
class Part:
    """One message of the reply; `shown` is None while we do not know what it shows."""

    id: str | None = None
    is_noted: bool = False
    shown: _Look | None = None
    touched: int = 0  # the number of our last call for it
    copies: int = 0  # how many messages stood here that are gone
    is_plain: bool = False

    def lose(self) -> None:
        """The message is gone; another one may take its place."""
        self.id = self.shown = None
        self.is_noted = False
        self.copies += 1

    def hand_over(self) -> None:
        """What the next delivery does not know: a call that was cut off may have arrived."""
        self.shown = None
        self.touched = 0
        self.is_plain = False


def parts_of(exchange: Exchange) -> list[Part]:
    """What a former run of the program has placed."""
    return [Part(id, is_noted=True) for id in exchange.parts]


class Delivery:
    """One growing reply.

    Drains the events in a task of its own, so that a platform's "wait" never holds
    back the model or the store.  Each message of the reply is first sent as "…", its
    id is `placed`, and only then it is edited; what stands there already is edited
    and never sent again.  The last text wins, and it always lands.

    `parts` is one list for all the deliveries of an exchange, which follow one another:
    each goes on with the messages that the one before it has sent, noted or not.
    """

    def __init__(
        self,
        messenger: Messenger,
        exchange: Exchange,
        placed: Placed,
        pacer: Pacer,
        parts: list[Part],
        translate: Translate = str,
        metrics: Metrics | None = None,
    ) -> None:
        self._messenger = messenger
        self._metrics = metrics or Metrics()
        self._exchange = exchange
        self._channel = exchange.message.channel
        self._reply_to: str | None = exchange.message.id
        self._placed = placed
        self._pacer = pacer
        self._translate = translate
        self._format: Format = CachedFormat(messenger.format)
        self._splitter = Splitter(self._format)
        self._notices: list[str] = []
        self._queued: Queued | None = None
        self._reason = FinishReason.STOP
        self._has_begun = False
        self._is_complete = False
        self._changed = asyncio.Event()
        self._parts = parts
        for part in parts:
            part.hand_over()
        self._stands_already = any(part.id is not None for part in parts)
        self._calls = 0
        self._texts: list[str] | None = None
        # Replies that fail together shall not come back together.
        self._wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.Random(exchange.id).random)

    async def run(self, events: AsyncGenerator[ReplyEvent, None]) -> None:
        """Show the reply until its last edit has landed; closes the events.

        Raises:
            ChannelGone: Nobody can be reached there any more.
            PlatformError: The platform refuses it, and would again.
        """
        reading = asyncio.create_task(self._read(events))
        reading.add_done_callback(lambda _: self._changed.set())
        try:
            await self._show(reading)
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, events: AsyncGenerator[ReplyEvent, None]) -> None:
        async with aclosing(events):
            async for event in events:
                match event:
                    case Delta(text):
                        self._splitter.append(text)
                    case Notice(text):
                        self._notices.append(text)
                    case Queued():
                        self._queued = event
                    case Finished(reason):
                        self._reason = reason
                    case _:
                        assert_never(event)
                self._has_begun = True
                self._refresh()
        self._is_complete = True
        for part in self._parts:
            part.is_plain = False  # half a text's markup may be refused where the whole one's is not
        self._refresh()

    def _refresh(self) -> None:
        self._texts = None
        self._changed.set()

    async def _show(self, reading: asyncio.Task[None]) -> None:
        while True:
            number = self._due()
            if number is None:
                if reading.done() or self._is_complete:
                    return
                self._changed.clear()
                await self._changed.wait()
                continue
            is_urgent = self._is_urgent(number)
            try:
                await self._pacer.call(self._channel, partial(self._act, is_urgent), urgent=is_urgent)
            except RateLimited:
                continue  # the pacer lets nobody through before its time
            except (PlatformUnavailable, StoreError):
                # Nor is a database given up on: only we know the id that it does not take.
                await self._pacer.clock.sleep(self._wait.after_failure())
            else:
                self._wait.succeeded()

    def _due(self) -> int | None:
        """The part to act on: one to send, or else of those to edit the one left alone longest."""
        if self._stands_already and not self._has_begun:
            return None  # a reply that is shown anew keeps its old text until there is another
        wanted = self._wanted()
        waiting = [number for number, part in enumerate(self._parts) if self._differs(part, number, wanted)]
        unsent = next((number for number in waiting if self._parts[number].id is None), None)
        if unsent is not None:
            return unsent  # messages are sent in their order
        lacks_one = len(self._parts) < len(wanted)
        # The next message is begun while the last one is still edited: else its text would come late.
        if lacks_one and (not waiting or (waiting == [len(self._parts) - 1] and not self._is_complete)):
            return len(self._parts)
        return min(waiting, key=lambda number: self._parts[number].touched, default=None)

    def _is_urgent(self, number: int) -> bool:
        """Whether this is a message that somebody waits for: the first, or the next while text flows."""
        is_new = number == len(self._parts) or self._parts[number].id is None
        return is_new and not (self._is_complete and any(part.id is not None for part in self._parts))

    def _differs(self, part: Part, number: int, wanted: list[_Look]) -> bool:
        if part.id is not None and not part.is_noted:
            return True
        if number >= len(wanted):
            # The old messages of a reply that became shorter: emptied now, taken back at the end.
            return part.id is not None and (self._is_complete or part.shown != self._placeholder(part))
        return part.shown != wanted[number]

    async def _act(self, is_urgent: bool) -> None:
        """Make the call for what is wanted at this moment."""
        number = self._due()
        if number is not None and self._is_urgent(number):
            await self._act_on(number)
            if is_urgent:
                return
            number = self._due()  # what needed no turn of its own leaves this one to an edit
        if number is not None and not is_urgent:
            await self._act_on(number)

    async def _act_on(self, number: int) -> None:
        wanted = self._wanted()
        if number == len(self._parts):
            self._parts.append(Part())
        part = self._parts[number]
        self._calls += 1
        part.touched = self._calls
        try:
            if part.id is None:
                await finish_before_cancel(self._place(part, number, self._placeholder(part, wanted[number].controls)))
            elif not part.is_noted:
                await self._note(part, number)
            elif number < len(wanted):
                await self._edit(part, wanted[number])
            elif self._is_complete:
                await self._take_back(part)
            else:
                await self._edit(part, self._placeholder(part))
        except MarkupRefused:
            if part.is_plain or isinstance(self._format, PlainFormat):
                raise
            self._go_plain(part, number)

    async def _place(self, part: Part, number: int, look: _Look) -> None:
        try:
            with self._counted("send"):
                part.id = await self._messenger.send(
                    self._channel,
                    look.text,
                    reply_to=self._reply_to if number == 0 else None,
                    controls=look.controls,
                    nonce=f"{self._exchange.id}.{number}.{part.copies}",
                )
        except MessageGone:
            if self._reply_to is None:
                raise
            self._reply_to = None
            return
        except RateLimited as limited:
            self._pacer.pause(self._channel, limited.seconds)
            raise
        part.shown = look
        await self._note(part, number)

    async def _note(self, part: Part, number: int) -> None:
        assert part.id is not None, "only what was sent is noted"
        await self._placed(self._exchange.id, number, part.id)
        part.is_noted = True

    async def _edit(self, part: Part, look: _Look) -> None:
        assert part.id is not None, "only what was sent is edited"
        try:
            with self._counted("edit"):
                await self._messenger.edit(self._channel, part.id, look.text, controls=look.controls)
            part.shown = look
        except MessageGone:
            part.lose()

    async def _take_back(self, part: Part) -> None:
        assert part.id is not None, "only what was sent is taken back"
        try:
            with self._counted("delete"):
                await self._messenger.delete(self._channel, part.id)
        except (RateLimited, PlatformUnavailable, ChannelGone, LoginRefused):
            raise
        except PlatformError as error:
            # It is gone, or stays: the reply is whole in the messages before it.
            log.info("a message is not taken back", message=part.id, error=str(error))
        part.lose()

    def _counted(self, verb: str) -> AbstractContextManager[None]:
        return self._metrics.platform_call(self._channel.platform, verb, self._pacer.clock)

    def _go_plain(self, part: Part, number: int) -> None:
        """Say the same words plain: here, or everywhere if they then need more messages."""
        plain = PlainFormat(self._format)
        texts = self._messages()
        if number >= len(texts) or fits(texts[number], plain):
            part.is_plain = True
            return
        text = join(self._splitter.chunks())
        self._format = plain
        self._splitter = Splitter(plain)
        self._splitter.append(text)
        self._refresh()

    def _wanted(self) -> list[_Look]:
        texts = self._messages()
        looks = []
        for number, text in enumerate(texts):
            rendered = self._rendered(self._parts[number] if number < len(self._parts) else None, text)
            looks.append(_Look(rendered, self._controls() if number == len(texts) - 1 else _NO_CONTROLS))
        return looks

    def _controls(self) -> Controls:
        if self._exchange.kind is not Kind.CHAT:
            return _NO_CONTROLS
        return frozenset({Action.RETRY if self._is_complete else Action.STOP})

    def _placeholder(self, part: Part, controls: Controls = _NO_CONTROLS) -> _Look:
        return _Look(self._rendered(part, PLACEHOLDER), controls)

    def _rendered(self, part: Part | None, text: str) -> Rendered:
        return self._format.plain(text) if part is not None and part.is_plain else self._format.render(text)

    def _messages(self) -> list[str]:
        """The whole reply as it is now, a Markdown text for each message."""
        if self._texts is None:
            self._texts = self._composed()
        return self._texts

    def _composed(self) -> list[str]:
        texts = self._shown(chunk.text for chunk in self._splitter.chunks())
        words = list(self._notices)
        if self._is_complete:
            words += self._ending(is_empty=not texts and not words)
        elif not texts and not (words and self._exchange.kind is Kind.COMMAND):
            texts = [PLACEHOLDER if self._queued is None else waiting(self._queued, self._translate)]
        if words:
            below = "\n\n".join(words)
            if texts and fits(f"{texts[-1]}\n\n{below}", self._format):
                texts[-1] += f"\n\n{below}"
            else:
                texts += self._shown(piece.text for piece in split(below, self._format))
        return texts

    def _shown(self, texts: Iterable[str]) -> list[str]:
        """Without those of which nothing would be seen: no platform takes an empty message."""
        return [text for text in texts if self._format.render(text).text.strip()]

    def _ending(self, is_empty: bool) -> list[str]:
        if sentence := ending(self._reason, self._translate):
            return [sentence]
        return [self._translate("I have no answer to that. Please ask in other words.")] if is_empty else []
