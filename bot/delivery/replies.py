"""Show replies on a platform with edits, one task each."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self
from zlib import crc32

import structlog

from bot.chat.intake import Intake
from bot.delivery.messenger import Messenger
from bot.delivery.pacer import Pacer
from bot.delivery.sender import Delivery, Part, parts_of
from bot.domain import ChannelKey, Exchange, Finished, FinishReason, IncomingMessage, Notice, ReplyEvent
from bot.errors import BotError, ChannelGone, LoginRefused, PlatformError, StoreError
from bot.observability.logging import log_context
from bot.util.aio import finish_before_cancel, race
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


# Seconds for replies under way when the program is told to stop: what stops containers
# waits 10 s before it kills.
GRACE = 6.0

# A channel is not told again for so long, in seconds, that its messages wait for the database.
_EXCUSED_SECONDS = 600.0

Events = AsyncGenerator[ReplyEvent, None]
# Shows a reply while it grows, in a way that leaves nothing behind; returns the events, for its delivery.
Preview = Callable[[Exchange, Events, Pacer], Awaitable[Events]]


@dataclass(frozen=True, slots=True)
class _Growing:
    """A reply: the task that shows it, and its messages, which outlive a task that another takes the place of."""

    task: asyncio.Task[None]
    parts: list[Part]


class Replies:
    """The replies that grow on one platform, each in a task, at most one per exchange.

    An async context manager: leaving it takes up nothing new, gives what grows `GRACE`
    seconds to end, and cancels the rest, which is then owed.
    """

    def __init__(self, intake: Intake, messenger: Messenger, clock: Clock, preview: Preview | None = None) -> None:
        self._intake = intake
        self._messenger = messenger
        self._preview = preview
        self._pacer = Pacer(messenger.edit_interval, clock)
        self._clock = clock
        self._growing: dict[int, _Growing] = {}
        self._is_closing = False
        self._refusal: LoginRefused | None = None
        self._is_refused = asyncio.Event()
        self._excused: dict[ChannelKey, float] = {}
        self._excuses: set[asyncio.Task[None]] = set()

    def start(self, exchange: Exchange) -> None:
        """Show the reply to `exchange`: new, edited, retried and owed ones alike."""
        if self._is_closing:
            self._intake.release(exchange)
            return
        earlier = self._growing.get(exchange.id)
        # The row, and so this exchange, may not know yet what the earlier one is just sending.
        parts = parts_of(exchange) if earlier is None else earlier.parts
        before = None if earlier is None else earlier.task
        task = asyncio.create_task(self._reply(exchange, parts, before), name=f"reply {exchange.id}")
        self._growing[exchange.id] = _Growing(task, parts)

    async def accept_and_reply(self, message: IncomingMessage) -> None:
        """Accept a message and show the reply to it.

        Raises:
            StoreError: It could not be kept, so it must not be acknowledged; who asked is told.
        """
        try:
            exchange = await self._intake.accept(message)
        except StoreError:
            self.notify_delayed(message)
            raise
        if exchange is not None:
            self.start(exchange)

    def notify_delayed(self, message: IncomingMessage) -> None:
        """Tell who asked that this has to wait for the database: one sentence, a channel's first."""
        place, now = message.channel, self._clock.now()
        self._excused = {each: until for each, until in self._excused.items() if until > now}
        if self._is_closing or place in self._excused or not self._intake.admits(message):
            return
        self._excused[place] = now + _EXCUSED_SECONDS
        task = asyncio.create_task(self._tell(message), name="excuse")
        self._excuses.add(task)
        task.add_done_callback(self._excuses.discard)

    async def _tell(self, message: IncomingMessage) -> None:
        translate = self._intake.translator_for_author(message)
        words = translate(
            "I cannot write anything down just now. Your message waits, and I answer it as soon as I can."
        )
        send = partial(
            self._messenger.send,
            message.channel,
            self._messenger.format.plain(words),
            reply_to=message.id,
            controls=frozenset(),
            nonce=f"w{crc32(str((message.channel, message.id)).encode())}",
        )
        try:
            await self._pacer.call(message.channel, send, urgent=True)
        except PlatformError as error:
            log.info("nobody was told that a message has to wait", error=str(error))

    async def run_until_unauthorised(self, work: Awaitable[None]) -> None:
        """Listen until a reply is refused because of the login, where who listens is not told of that.

        Raises:
            LoginRefused: That was so, and no other reply can be shown either.
        """
        listening = asyncio.ensure_future(work)
        await race(listening, self._is_refused.wait())
        if self._refusal is not None:
            raise self._refusal
        listening.result()

    async def wait_idle(self) -> None:
        """Wait until no reply grows any more."""
        while self._growing:
            await asyncio.wait([growing.task for growing in self._growing.values()])

    async def _reply(self, exchange: Exchange, parts: list[Part], earlier: asyncio.Task[None] | None) -> None:
        with log_context(exchange=exchange.id):
            try:
                if earlier is not None:
                    # Two deliveries of one exchange would edit the same messages against each other;
                    # so whoever takes our place has to wait for it as well.
                    earlier.cancel()
                    await finish_before_cancel(asyncio.wait([earlier]))
                if all(part.is_noted for part in parts):
                    # An earlier one, which ended before this began, may have noted more since the row was read.
                    row = await self._intake.reload(exchange)
                    parts[:] = parts if row is None else parts_of(row)
                await self._show(exchange, parts)
            except LoginRefused as error:
                log.error("reply broken off; it is owed to a bot that may log in", error=str(error))
                self._refusal = error
                self._is_refused.set()
            finally:
                if self._growing[exchange.id].task is asyncio.current_task():
                    del self._growing[exchange.id]
                    self._intake.release(exchange)

    async def _show(self, exchange: Exchange, parts: list[Part]) -> None:
        try:
            fault = await _fault_of(self._answer(exchange, parts))
            if fault is not None:
                await _fault_of(self._apologise(exchange, parts))
        except ChannelGone as gone:
            fault = str(gone)
        if fault is not None:
            await self._intake.fail(exchange.id, fault)

    async def _answer(self, exchange: Exchange, parts: list[Part]) -> None:
        events = self._intake.handle(exchange)
        if self._preview is not None:
            events = await self._preview(exchange, events, self._pacer)
        await self._deliver(exchange, parts, events)
        await self._intake.complete(exchange.id)

    async def _apologise(self, exchange: Exchange, parts: list[Part]) -> None:
        """Say in the reply's place that there is none; its own text may be what was refused."""
        translate = self._intake.translator_for(exchange)
        await self._deliver(
            exchange, parts, _said(translate("Something went wrong while I was answering. Please try again."))
        )

    async def _deliver(self, exchange: Exchange, parts: list[Part], events: Events) -> None:
        translate = self._intake.translator_for(exchange)
        await Delivery(
            self._messenger, exchange, self._intake.record_part, self._pacer, parts, translate, self._intake.metrics
        ).run(events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        try:
            await race(self.wait_idle(), self._clock.sleep(GRACE))
        finally:
            growing = [*(each.task for each in self._growing.values()), *self._excuses]
            for task in growing:
                task.cancel()
            await asyncio.gather(*growing, return_exceptions=True)


async def _said(words: str) -> Events:
    yield Notice(words)
    yield Finished(FinishReason.ERROR)


async def _fault_of(showing: Awaitable[None]) -> str | None:
    """Why this one reply cannot be shown, now or later; None once it is.

    Raises:
        ChannelGone: Nor can any other there.
        LoginRefused: Nor can any other.
    """
    try:
        await showing
    except (ChannelGone, LoginRefused):
        raise
    except BotError as error:
        log.error("reply refused", error=str(error))
        return str(error)
    except Exception:
        # A fault of ours in this one reply: others go on, and it must not meet us again at each start.
        log.exception("reply failed")
        return "internal error"
    return None
