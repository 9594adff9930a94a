"""Backfill of messages missed while disconnected, and of edits and deletions; Slack may not deliver them again."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import structlog

from bot.adapters.inbox import Inbox
from bot.adapters.slack.client import SlackWebClient, pages
from bot.adapters.slack.errors import TRANSIENT
from bot.adapters.slack.files import has_lost_file
from bot.adapters.slack.handlers import SlackHandlers
from bot.adapters.slack.parse import PLATFORM, BotIdentity, Event, MessageParser, is_timestamp, is_tombstone, text_of
from bot.adapters.slack.standing import SlackReplies
from bot.chat.intake import Intake
from bot.domain import ChannelKey, Exchange, FurtherKind, IncomingMessage, Kind
from bot.errors import LoginRefused, PlatformError, RateLimited, StoreError
from bot.util.clock import Clock
from bot.util.retry import Backoff, log_retry, retry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds: threads are read whose root or last known message is at most this much older than the
# channel's last known message.
_THREAD_AGE = 24 * 3600.0
# The most threads of a channel that are compared with their rows: each takes a call, and Slack
# allows about one a second.
_COMPARED_THREADS = 50
# The longest time that is compared.
_LONGEST = timedelta(days=7)
# Seconds before each attempt at the channels that could not be read; the last is repeated.
_ATTEMPTS = (0.0, 1.0, 4.0)
_UNREAD_SECONDS = 30.0
# Seconds between retries of a read that the platform has limited: the first delay and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class MissedEvents:
    """What is new in a channel, in order; rows whose message was edited or deleted; messages that rows quote.

    `edited_further` and `lost_further` are messages that belong to rows beside their own.
    """

    messages: list[Event] = field(default_factory=list)
    edited: list[tuple[Exchange, Event]] = field(default_factory=list)
    deleted: list[Exchange] = field(default_factory=list)
    quoted: list[Event] = field(default_factory=list)
    edited_further: list[Event] = field(default_factory=list)
    lost_further: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SlackBackfill:
    """Stores missed messages, one channel after another."""

    _api: SlackWebClient
    _me: BotIdentity
    _parser: MessageParser
    _intake: Intake
    _inbox: Inbox
    _handlers: SlackHandlers
    _replies: SlackReplies
    _clock: Clock
    _retry: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

    async def prepare(self) -> Mapping[ChannelKey, str]:
        """Return the newest stored id per thread, and hold live events there until `run`.

        Called before connecting: a newer message would hide those that were missed.
        """
        known = await self._intake.last_message_ids(PLATFORM)
        self._handlers.hold({key.channel for key in known})
        self._note_time()  # a channel that nobody knows is not held
        return known

    async def run(self, known: Mapping[ChannelKey, str]) -> None:
        """Start all replies owed, then read what is newer than `known`, latest active channel first.

        Slack allows about one such call a second.  A channel that cannot be read delays no
        other one, and after a few attempts not its own live events either; it is read later.
        """
        self._note_time()
        self._replies.begin(self._inbox.connected_at)
        await self._retry(self._inbox.recover)
        channels = await asyncio.to_thread(by_channel, known)
        unread = list(channels)
        delays = [*_ATTEMPTS]
        while unread:
            await self._clock.sleep(delays.pop(0) if delays else _UNREAD_SECONDS)
            for channel in list(unread):
                if await self._try_read(channel, channels[channel]):
                    unread.remove(channel)
                if channel not in unread or not delays:
                    self._handlers.release(channel)

    def _note_time(self) -> None:
        """Let what was sent until now count as delivered again."""
        self._intake.recovery.saw_date(PLATFORM, self._api.date)
        with suppress(TypeError, ValueError):
            # The header counts seconds.
            self._inbox.connected_at = parsedate_to_datetime(self._api.date) + timedelta(seconds=1)

    async def _try_read(self, channel: str, known: Mapping[str | None, str]) -> bool:
        """Store what was missed in a channel; return False if it could not be read now."""
        read, report = partial(self._read, channel, known), log_retry("slack: backfill rate limited")
        try:
            await retry(
                read, RateLimited, clock=self._clock, backoff=Backoff(_FIRST_RETRY, _LONGEST_RETRY), on_failure=report
            )
        except LoginRefused:
            raise
        except (*TRANSIENT, StoreError) as error:
            log.warning("slack: channel not read", channel=channel, error=str(error))
            return False
        except PlatformError as error:
            log.warning("slack: channel not readable, its backfill is skipped", channel=channel, error=str(error))
        return True

    async def _read(self, channel: str, known: Mapping[str | None, str]) -> None:
        async def parse(event: Event) -> IncomingMessage | None:
            return await self._parser.parse({**event, "channel": channel})

        async def parse_continuation(event: Event) -> IncomingMessage | None:
            return await self._parser.parse_continuation({**event, "channel": channel})

        # What the last connection brought may not be stored yet, and its deletion or edit is read below.
        await self._handlers.finish_current(channel)
        catch_up = timedelta(minutes=self._intake.settings.conversation.catch_up_minutes)
        recent = datetime.now(UTC) - min(catch_up, _LONGEST)
        rows = [
            row for row in await self._intake.said_since(PLATFORM, recent) if row.message.channel.channel == channel
        ]
        missed = await self._missed(channel, known, rows, recent.timestamp())
        if lost := [*(row.message.id for row in missed.deleted), *missed.lost_further]:
            await self._intake.delete(ChannelKey(PLATFORM, channel), *lost)
        for event in missed.edited_further:
            await self._inbox.process(partial(self._store_edit_of_continuation, {**event, "channel": channel}))
        for event in missed.quoted:
            quoting = [row for row in rows if row.message.quoted_id == event["ts"]]
            await self._inbox.process(partial(self._compare_quotes, channel, event, quoting))
        for row, event in missed.edited:
            await self._inbox.process(partial(self._store_edit, row, {**event, "channel": channel}))
        await self._inbox.backfill(missed.messages, parse, parse_continuation)

    async def _store_edit(self, row: Exchange, event: Event) -> None:
        edited = await self._parser.parse_edit(event)
        if edited is not None:
            await self._intake.store_change(row, edited, self._replies.reply_to(row.message))

    async def _store_edit_of_continuation(self, event: Event) -> None:
        edited = await self._parser.parse_edit(event)
        if edited is not None:
            await self._intake.store_edit(edited)

    async def _compare_quotes(self, channel: str, message: Event, quoting: Sequence[Exchange]) -> None:
        """Let quotations of a message have its text, or go with it."""
        key = ChannelKey(PLATFORM, channel)
        if is_tombstone(message):
            await self._intake.delete(key, message["ts"])
            return
        text = await self._parser.quotable_text(message)
        if has_lost_file(message) or any(text not in (row.message.quoted or "") for row in quoting):
            await self._intake.replace_quotes(key, message["ts"], text)

    async def _missed(
        self, channel: str, known: Mapping[str | None, str], rows: Sequence[Exchange], recent: float
    ) -> MissedEvents:
        """Read the channel and its threads, and compare them with the rows said since `recent`."""
        times = _timestamps(known)
        newest = max(times.values(), default=datetime.now(UTC).timestamp() - _THREAD_AGE)
        begin = min(newest, recent) - _THREAD_AGE
        stored = {row.message.id: row for row in rows if row.kind is Kind.CHAT and _has_timestamps(row)}
        gone: list[Exchange] = []
        found: dict[str, dict[str, Any]] = {}
        threads = {thread for thread, time in times.items() if thread and float(thread) <= begin < time}
        async for page in pages(self._api, channel, None, oldest=f"{begin:.6f}"):
            for message in page:
                found[message["ts"]] = message
                if _has_newer_replies(message, newest):
                    threads.add(message["ts"])
        self._replies.remember(channel, None, begin, found.values())
        further = {id: row for row in stored.values() for id in _further(row)}
        lost_further: list[str] = []
        if found:  # an empty history proves nothing
            lost_further += [id for id, row in further.items() if _is_root(row) and _is_deleted(found.get(id))]
            gone += [row for ts, row in stored.items() if _is_root(row) and _is_deleted(found.get(ts))]
        replied = {row.message.channel.thread: row for row in stored.values() if not _is_root(row)}
        compared = sorted(filter(None, replied), key=float)[-_COMPARED_THREADS:]
        for thread in sorted({*threads, *compared}):
            replies: dict[str, dict[str, Any]] = {}
            oldest = min(newest, recent) if thread in compared else newest
            try:
                async for page in pages(self._api, channel, thread, oldest=f"{oldest:.6f}"):
                    replies |= {message["ts"]: message for message in page}
            except (*TRANSIENT, LoginRefused):
                raise
            except PlatformError as error:
                log.info("slack: thread skipped", channel=channel, thread=thread, error=str(error))
                continue
            found |= replies
            self._replies.remember(channel, thread, oldest, replies.values())
            if thread in compared:
                here = [row for row in stored.values() if row.message.channel.thread == thread and not _is_root(row)]
                gone += [row for row in here if _is_deleted(replies.get(row.message.id))]
                lost_further += [id for row in here for id in _further(row) if _is_deleted(replies.get(id))]
        in_order = sorted(found.values(), key=lambda message: float(message["ts"]))
        for message in in_order:
            if "edited" in message:
                self._handlers.note_edit(channel, message)
        changed = [each for each in in_order if "edited" in each or has_lost_file(each)]
        edits = [(stored[each["ts"]], each) for each in changed if each["ts"] in stored]
        lost = {row.message.id for row in gone}
        quoted = {row.message.quoted_id for row in rows if not row.message.quotes_bot} - stored.keys()
        return MissedEvents(
            [
                each
                for each in in_order
                if each["ts"] not in stored and self._may_be_missed(channel, each, newest, recent)
            ],
            [(row, each) for row, each in edits if row.message.id not in lost],
            gone,
            [each for each in in_order if each["ts"] in quoted],
            [each for each in changed if each["ts"] in further],
            lost_further,
        )

    def _may_be_missed(self, channel: str, message: Event, newest: float, recent: float) -> bool:
        """Return whether it may be an unknown question; an older one only if it was clearly for the bot."""
        time = float(message["ts"])
        is_for_bot = channel.startswith("D") or f"<@{self._me.user}" in text_of(message, "text")
        return time > newest or (time > recent and is_for_bot)


def _has_newer_replies(message: Event, time: float) -> bool:
    latest = text_of(message, "latest_reply")
    return is_timestamp(latest) and float(latest) > time


def _has_timestamps(row: Exchange) -> bool:
    thread = row.message.channel.thread
    return is_timestamp(row.message.id) and (thread is None or is_timestamp(thread))


def _is_root(row: Exchange) -> bool:
    return row.message.channel.thread in (None, row.message.id)


def _further(row: Exchange) -> list[str]:
    """Return the messages of the conversation that belong to a row beside its own."""
    return [each.id for each in row.message.further if each.kind is not FurtherKind.LINKED]


def _is_deleted(message: Event | None) -> bool:
    return message is None or is_tombstone(message)


def _timestamps(known: Mapping[str | None, str]) -> dict[str | None, float]:
    """Leave out slash commands, which have no timestamp, and damaged rows."""
    return {
        thread: float(id)
        for thread, id in known.items()
        if is_timestamp(id) and (thread is None or is_timestamp(thread))
    }


def by_channel(known: Mapping[ChannelKey, str]) -> dict[str, dict[str | None, str]]:
    """Return the newest messages of each channel, the latest active one first.

    Without those of threads that no backfill reads: a year may have tens of thousands.
    """
    channels: dict[str, dict[str | None, str]] = {}
    for key, newest in known.items():
        channels.setdefault(key.channel, {})[key.thread] = newest
    now, latest = datetime.now(UTC).timestamp(), dict[str, float]()
    for channel, threads in channels.items():
        times = _timestamps(threads)
        latest[channel] = max(times.values(), default=0.0)
        earliest = min(latest[channel], now) - _LONGEST.total_seconds() - _THREAD_AGE  # as in `_missed`, or before
        channels[channel] = {thread: threads[thread] for thread, time in times.items() if time > earliest}
    return {channel: channels[channel] for channel in sorted(channels, key=lambda each: latest[each], reverse=True)}
