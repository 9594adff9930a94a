"""Show the replies of one platform with edits, one task each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import structlog

from bot.chat.intake import Intake
from bot.chat.stream import ReplyStream
from bot.chat.worker import Worker
from bot.delivery.messenger import Messenger, Streams, nonce
from bot.delivery.pacer import Pacer, by_channel
from bot.delivery.sender import Sender
from bot.delivery.threads import OpenThread, Threads
from bot.delivery.view import ReplyView
from bot.domain import ChannelKey, Exchange, IncomingMessage, Notice
from bot.errors import (
    AccessDenied,
    BotError,
    ChannelGone,
    ClaimLost,
    LoginRefused,
    PlatformError,
    RateLimited,
    StoreError,
)
from bot.util.aio import BackgroundTasks, race
from bot.util.clock import Clock
from bot.util.recent import RecentDict
from bot.util.retry import retry_after

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for replies in progress at shutdown: containers are killed 10 s after SIGTERM.
GRACE = 6.0

# Number of that notice among the messages of a reply: it is none of them.
_DELAY_NOTICE = -1

# Seconds between two notices to a channel that its messages wait for the database.
_DELAY_NOTICE_INTERVAL = 600.0

# Shows for a few seconds that the bot writes in a channel.
ShowTyping = Callable[[ChannelKey], Awaitable[None]]
# Seconds after which it is shown where there is no message yet, and between two calls: Telegram shows it for 5.
_TYPING_AFTER = 1.0
_TYPING_INTERVAL = 4.5

# Shows a reply while it grows in a way that leaves nothing behind; returns its events for the delivery.
Preview = Callable[[Exchange, ReplyStream, Pacer], Awaitable[ReplyStream]]


class Replies:
    """The replies in progress on one platform.

    An async context manager: leaving it starts no new ones, gives those in progress `GRACE`
    seconds to end, and cancels the rest, which is then owed.

    `edits_per_minute` is the platform's limit for all channels together, `calls_per_minute` that of
    messages and edits in a channel, where it has one, `lane` what a channel shares its pace with.
    `may_notify` tells whether a channel takes a message beside the reply; `sends_whole`
    whether an answer to a message that is complete at once may be sent in one call (see Sender).
    With `looks_first` the message that an earlier run may have sent in a channel is looked for by the
    send; other platforms find it by reading their channels before.  `open_thread` opens a thread for an answer,
    `show_typing` gives a sign of life while the first message has to wait.  `streams` are those of the messenger.
    """

    def __init__(
        self,
        intake: Intake,
        messenger: Messenger,
        clock: Clock,
        preview: Preview | None = None,
        *,
        edits_per_minute: int | None = None,
        calls_per_minute: Callable[[ChannelKey], int | None] = lambda channel: None,
        lane: Callable[[ChannelKey], Hashable] = by_channel,
        may_notify: Callable[[ChannelKey], bool] = lambda channel: True,
        sends_whole: Callable[[IncomingMessage], bool] = lambda message: False,
        looks_first: bool = False,
        streams: Streams | None = None,
        open_thread: OpenThread | None = None,
        show_typing: ShowTyping | None = None,
    ) -> None:
        self._show_typing = show_typing
        self._typing_at: RecentDict[ChannelKey, float] = RecentDict()  # when it may be shown again
        self._intake = intake
        self._exchanges = intake.exchanges
        self._messenger = messenger
        self._preview = preview
        self._sends_whole = sends_whole
        self._may_notify = may_notify
        self._looks_first = looks_first
        self._streams = streams
        self._pacer = Pacer(
            messenger.edit_interval,
            clock,
            lane,
            edits_per_minute=edits_per_minute,
            appends_per_minute=None if streams is None else streams.appends_per_minute,
            calls_per_minute=calls_per_minute,
        )
        self._threads = Threads(intake, self._pacer, open_thread)
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._background = BackgroundTasks()
        self._notified: dict[ChannelKey, float] = {}
        self._is_closing = False
        self._refusal: LoginRefused | None = None
        self._is_refused = asyncio.Event()

    def start(self, exchange: Exchange) -> None:
        """Show the reply to a claimed exchange: new, edited, retried and owed ones alike."""
        if self._is_closing:
            self._exchanges.release(exchange)
        elif (task := self._exchanges.start(exchange, self._show)) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def accept_and_reply(self, message: IncomingMessage) -> None:
        """Accept a message and show the reply to it.

        Raises:
            StoreError: It was not stored, so it must not be acknowledged; its author is notified.
        """
        try:
            exchange = await self._intake.accept(message)
        except StoreError:
            self.notify_delayed(message)
            raise
        if exchange is not None:
            self.start(exchange)

    def notify_delayed(self, message: IncomingMessage) -> None:
        """Tell the author that the message waits for the database; once per channel and interval."""
        channel, now = message.channel, self._clock.now()
        self._notified = {each: until for each, until in self._notified.items() if until > now}
        if self._is_closing or channel in self._notified or not self._may_notify(channel):
            return
        if not self._intake.access.admits(message):
            return
        self._notified[channel] = now + _DELAY_NOTICE_INTERVAL
        self._background.start(self._notify(message))

    async def _notify(self, message: IncomingMessage) -> None:
        translate = self._intake.settings.translator_for(message)
        sentence = translate("I can't save messages right now. Yours is queued and will be answered.")
        send = partial(
            self._messenger.send,
            message.channel,
            self._messenger.format.plain(sentence),
            reply_to=message.id,
            controls=frozenset(),
            nonce=nonce(message, _DELAY_NOTICE),
        )
        try:
            with self._intake.metrics.platform_call(message.channel.platform, "send", self._clock):
                await self._pacer.call(message.channel, send, urgent=True)
        except PlatformError as error:
            log.info("an author was not notified of a delay", error=str(error))

    def run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that starts replies; it is cancelled when they are closed."""
        self._background.start(work)

    async def run_until_unauthorised(self, work: Awaitable[None]) -> None:
        """Run `work` until it ends, or a reply shows that the login is refused.

        Raises:
            LoginRefused: No other reply can be shown either.
        """
        listening = asyncio.ensure_future(work)
        await race(listening, self._is_refused.wait())
        if self._refusal is not None:
            raise self._refusal
        listening.result()

    async def wait_idle(self) -> None:
        """Wait until no reply is in progress."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _show(self, worker: Worker) -> None:
        try:
            await self._intake.continuations.wait(worker)
            self._exchanges.worker(worker.exchange)  # else another worker answers, with what has come meanwhile
            sentence = await self._threads.place(worker)
            exchange = worker.exchange
            sender = self._sender(worker, sentence)
            fault = await self._fault_of(self._deliver(worker, sender))
            if fault is None:
                await self._exchanges.complete(exchange)
                return
            # The text itself may be what was refused: what stands stays, with a sentence below.
            translate = self._intake.settings.translator_for(exchange.message)
            sentence = translate("Something went wrong while I was answering. Please try again.")
            await self._fault_of(sender.explain(sentence))
        except (AccessDenied, ChannelGone) as lost:
            log.warning("reply given up", error=str(lost))
            fault = str(lost)
        except LoginRefused as error:
            log.error("reply interrupted; it is owed until the bot can log in", error=str(error))
            self._refusal = error
            self._is_refused.set()
            return
        await self._exchanges.fail(worker.exchange, fault)

    def _sender(self, worker: Worker, sentence: str) -> Sender:
        """Return the sender of a reply; the sentence is shown below its text."""
        exchange = worker.exchange
        settings = self._intake.settings
        translate = settings.translator_for(exchange.message)
        if self._streams is not None:
            self._streams.expect(exchange)
        view = ReplyView(
            exchange,
            self._messenger.format,
            translate,
            asks_for_votes=settings.feedback.enabled,
            marks_stable=self._streams is not None,
        )
        if sentence:
            view.apply(Notice(sentence))
        return Sender(
            self._messenger,
            exchange,
            view,
            self._pacer,
            worker.parts,
            partial(self._exchanges.record_part, worker),
            self._intake.metrics,
            # An earlier run may have sent a placeholder with the same nonce.
            sends_whole=self._sends_whole(exchange.message) and not worker.is_backlog,
            looks_first=self._may_be_sent(worker),
            streams=self._streams,
            compute=asyncio.to_thread,
        )

    def _may_be_sent(self, worker: Worker) -> bool:
        """Return whether the send has to look for a message that an earlier run has sent and not recorded."""
        exchange = worker.exchange
        # A stream that continues a reply has no nonce by which reading the channel would find it.
        looks = self._streams is not None if exchange.parts else self._looks_first
        return looks and worker.is_backlog and exchange.fence > 1

    async def _deliver(self, worker: Worker, sender: Sender) -> None:
        exchange = worker.exchange
        async with self._intake.answers.stream(exchange) as stream, self._shows_typing(worker):
            shown = stream if self._preview is None else await self._preview(exchange, stream, self._pacer)
            await sender.run(shown)

    @asynccontextmanager
    async def _shows_typing(self, worker: Worker) -> AsyncIterator[None]:
        """Give a sign of life while the first message waits for its turn in the channel."""
        if self._show_typing is None:
            yield
            return
        typing = asyncio.create_task(self._type_until_sent(worker, self._show_typing))
        try:
            yield
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)

    async def _type_until_sent(self, worker: Worker, show: ShowTyping) -> None:
        seconds = _TYPING_AFTER
        while True:
            await self._clock.sleep(seconds)
            channel, now = worker.exchange.message.channel, self._clock.now()
            if worker.parts and worker.parts[0].id is not None:
                return
            seconds = max(self._typing_at.get(channel, now), self._pacer.paused_until(channel)) - now
            if seconds > 0:
                continue  # another reply there shows it, or the platform has asked to wait
            self._typing_at[channel], seconds = now + _TYPING_INTERVAL, _TYPING_INTERVAL
            try:
                await show(channel)
            except RateLimited as limited:
                seconds = max(retry_after(limited.seconds, 0.0), _TYPING_INTERVAL)
                self._typing_at[channel] = self._clock.now() + seconds
            except PlatformError as error:
                log.info("typing not shown", error=str(error))
                return

    async def _fault_of(self, showing: Awaitable[None]) -> str | None:
        """Return why this one reply cannot be shown, now or later; None once it was.

        Raises:
            AccessDenied, ChannelGone: No other reply in the channel can be shown either.
            LoginRefused: No other reply can be shown either.
            ClaimLost: Another worker goes on with the exchange.
        """
        try:
            await showing
        except (AccessDenied, ChannelGone, ClaimLost, LoginRefused):
            raise
        except BotError as error:
            log.error("reply refused", error=str(error))
            return str(error)
        except Exception:
            # A bug in one reply must not end the others, nor be met again at each start.
            log.exception("reply failed")
            return "internal error"
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        async with self._background:
            try:
                await race(self.wait_idle(), self._clock.sleep(GRACE))
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
