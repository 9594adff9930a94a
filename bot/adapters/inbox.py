"""Shared intake of all platforms: store events in order, then start their replies."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import TypeVar

import structlog

from bot.adapters.malformed import skip_malformed
from bot.chat.intake import Intake
from bot.chat.settings_form import SettingsForm
from bot.chat.standing import Standing
from bot.delivery.replies import Replies
from bot.domain import Action, Author, ChannelKey, Exchange, IncomingMessage
from bot.errors import BotError, PlatformUnavailable, RateLimited, StoreError
from bot.util.clock import Clock
from bot.util.retry import Backoff, retry

E = TypeVar("E")
T = TypeVar("T")
Parse = Callable[[E], Awaitable[IncomingMessage | None]]
Waiting = Callable[[], Iterable[IncomingMessage]]
FindStanding = Callable[[Sequence[Exchange]], Awaitable[Standing]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_TRANSIENT = (StoreError, PlatformUnavailable, RateLimited)
# Seconds between retries: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
# Seconds for asking what a form shows and who may use it; Discord and Slack wait 3 s for it.
_FORM_SECONDS = 1.5
# Seconds for reading a channel's history before its owed replies go on without it.
_FIND_SECONDS = 60.0


class Inbox:
    """Stores what a platform delivers and starts the replies.

    While `is_backfilling`, messages and edits are only stored, since older ones may
    still be missing; `recover` then starts their replies in order.  `find_standing` looks
    for replies to recovered exchanges that their channels show already.
    """

    def __init__(
        self,
        platform: str,
        intake: Intake,
        replies: Replies,
        clock: Clock,
        find_standing: FindStanding | None = None,
    ) -> None:
        self.is_backfilling = False
        self.connected_at: datetime | None = None  # by the platform's clock
        self._platform = platform
        self._intake = intake
        self._replies = replies
        self._clock = clock
        self._find_standing = find_standing

    async def accept(self, message: IncomingMessage) -> None:
        """Store a message and start its reply.

        Raises:
            StoreError: It is not stored, so it must not be acknowledged.
        """
        if self.is_backfilling:
            await self._intake.store(message)
        elif self.connected_at is not None and message.sent_at < self.connected_at:
            # Delivered again: a database that was restored may not know that it was answered.
            try:
                await self._intake.store(message)
                await self.recover()
            except StoreError:
                self._replies.notify_delayed(message)
                raise
        else:
            await self._replies.accept_and_reply(message)

    async def accept_continuation(self, message: IncomingMessage) -> None:
        """Store a message that is not for the bot by itself if it is more of a question, and start its reply.

        Raises:
            StoreError: It is not stored, so it must not be acknowledged.
        """
        if self.is_backfilling or (self.connected_at is not None and message.sent_at < self.connected_at):
            await self._intake.store_continuation(message)
            if not self.is_backfilling:
                await self.recover()
        else:
            self._start(await self._intake.accept_continuation(message))

    async def edit(self, message: IncomingMessage) -> None:
        """Store the new text of a question and start its new reply."""
        if self.is_backfilling:
            await self._intake.store_edit(message)
        else:
            self._start(await self._intake.edit(message))

    async def press(
        self,
        channel: ChannelKey,
        message_id: str,
        action: Action,
        by: Author,
        press: str | None = None,
        locale: str | None = None,
    ) -> str:
        """Apply a button; return a notice for the person who pressed it, or "" (see `Intake.on_button`)."""
        result = await self._intake.on_button(
            channel, message_id, action, by, press=press, locale=locale, later=self.is_backfilling
        )
        self._start(result.again)
        return result.notice

    async def open_form(self, message: IncomingMessage) -> SettingsForm | None:
        """Return the form that answers the message; None if text does, as while older messages may be missing.

        A platform waits for a form as long as for an acknowledgement, so one that takes longer is none.
        """
        if self.is_backfilling:
            return None
        try:
            async with asyncio.timeout(_FORM_SECONDS):
                return await self._intake.forms.open(message)
        except (StoreError, TimeoutError) as error:
            log.warning("form not opened", platform=self._platform, error=str(error) or "timeout")
            return None

    async def backfill(self, events: Iterable[E], parse: Parse[E], parse_continuation: Parse[E]) -> None:
        """Store missed messages in order, then start everything owed.

        `parse_continuation` is asked about those that are not for the bot by themselves.
        """

        async def store(event: E) -> None:
            message = await parse(event)
            if message is not None:
                await self._intake.store(message)
            elif (part := await parse_continuation(event)) is not None:
                await self._intake.store_continuation(part)

        for event in events:
            await self.process(partial(store, event))
        await self.recover()

    async def recover(self) -> None:
        """Start every owed exchange that is not in flight; backfilling ends.

        Raises:
            StoreError: The database cannot be read.
        """
        owed = await self._intake.recovery.claim(self._platform)
        if self._find_standing is None:
            await self._settle(owed, Standing())
        else:
            # Threads count with their channel, as for notices.
            by_channel = groupby(sorted(owed, key=_channel), key=_channel)
            for exchanges in [list(group) for _, group in by_channel]:
                self._replies.run_beside(self._settle_found(exchanges, self._find_standing))
        self.is_backfilling = False

    async def _settle_found(self, owed: Sequence[Exchange], find: FindStanding) -> None:
        """Start the replies of one channel, without those that it shows already.

        Each conversation is started as soon as it was read: a backlog must not wait for its last one.
        """
        deadline = self._clock.now() + _FIND_SECONDS
        conversations: dict[ChannelKey | None, list[Exchange]] = {}
        for exchange in owed:
            # Late ones stay together, for one notice.
            place = None if self._intake.recovery.is_late(exchange) else exchange.message.channel
            conversations.setdefault(place, []).append(exchange)
        left = list(conversations.values())

        async def look() -> Standing:
            nonlocal deadline
            found = Standing()
            try:
                with skip_malformed(self._platform):
                    found = await find(left[0])
                deadline = self._clock.now() + _FIND_SECONDS
            except _TRANSIENT as error:
                if self._clock.now() < deadline:
                    raise
                log.warning("standing replies not read, going on without", platform=self._platform, error=str(error))
            return found

        def report(error: BotError, seconds: float) -> None:
            log.warning("recovery delayed, retrying", platform=self._platform, seconds=seconds, error=str(error))

        is_stored = True
        try:
            while left and is_stored:
                standing = await self._retry(look, report)
                try:
                    await self._settle(left.pop(0), standing)
                except StoreError as error:
                    log.warning("recovery delayed, retrying", platform=self._platform, error=str(error))
                    is_stored = False
        finally:
            for exchange in (each for conversation in left for each in conversation):
                self._intake.exchanges.release(exchange)
        if not is_stored:
            await self._retry(self.recover, report)

    async def _settle(self, owed: Sequence[Exchange], standing: Standing) -> None:
        for exchange in await self._intake.recovery.settle(owed, standing):
            self._replies.start(exchange)

    async def process(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await `work()`; log and skip an event that is malformed or hits a bug.

        Raises:
            BotError: The event is fine, and may be processed later.
        """
        try:
            with skip_malformed(self._platform):
                await work()
        except BotError:
            raise
        except Exception:
            # One event's bug must not stop the events after it, or come back at each start.
            log.exception("event dropped", platform=self._platform)

    async def retry(self, attempt: Callable[[], Awaitable[T]], waiting: Waiting = tuple) -> T:
        """Await `attempt()`, repeated while the database or the platform is unavailable.

        Authors of `waiting()` are told when the database delays their messages.
        """
        failures = 0

        def report(error: BotError, seconds: float) -> None:
            nonlocal failures
            failures += 1
            log.warning("event delayed, retrying", platform=self._platform, seconds=seconds, error=str(error))
            if isinstance(error, StoreError):
                self.notify_delayed(waiting())

        result = await self._retry(attempt, report)
        if failures and not self.is_backfilling:
            # Replies have failed too; and where only an acknowledgement was lost, the message is
            # stored already, so that its retry started nothing.
            await self._retry(self.recover, report)
        return result

    def notify_delayed(self, messages: Iterable[IncomingMessage]) -> None:
        """Tell the authors that the database delays their messages."""
        for message in messages:
            self._replies.notify_delayed(message)

    async def _retry(self, attempt: Callable[[], Awaitable[T]], report: Callable[[BotError, float], None]) -> T:
        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        return await retry(attempt, *_TRANSIENT, clock=self._clock, backoff=backoff, on_failure=report)

    def _start(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            self._replies.start(exchange)


def _channel(exchange: Exchange) -> str:
    return exchange.message.channel.channel
