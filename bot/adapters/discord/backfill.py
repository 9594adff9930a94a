"""Backfill of messages missed while disconnected, and of edits and deletions."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import discord
import structlog

from bot.adapters.discord.ask import opening_message
from bot.adapters.discord.errors import REFUSALS, UnreadableAnswer
from bot.adapters.discord.guests import SHOWN
from bot.adapters.discord.history import Json, find_question, has_messages, newest_id, pages, standing_replies
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import (
    PLATFORM,
    channel_id,
    has_ids,
    is_direct_or_mention,
    is_reply_or_role_mention,
    is_user_message,
    without_unreadable,
)
from bot.adapters.malformed import skip_malformed
from bot.chat.continuation import TOGETHER
from bot.chat.standing import StandingReply
from bot.domain import ChannelKey, Exchange, FurtherKind, IncomingMessage, Kind
from bot.errors import LoginRefused, MessageGone, PlatformError, PlatformUnavailable, RateLimited
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock
from bot.util.retry import Backoff, log_retry, retry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

_GuildChannel = discord.TextChannel | discord.VoiceChannel | discord.StageChannel | discord.Thread

# Ids contain the time, and the clocks of Discord's servers differ.
_CLOCK_SKEW = timedelta(minutes=1)
# Older questions expire anyway, and reading busy channels further back would take hours.
_LONGEST = timedelta(days=7)
# Parallel probes of unlisted channels, and the least seconds of each: 40 calls a second, of the
# 50 that Discord allows, which leaves some for replies.
_PROBES = 4
_PROBE_SECONDS = 0.1
# Seconds before each attempt at the channels that could not be read.
_ATTEMPTS = (0.0, 1.0, 4.0)
# Seconds between retries of a read that the platform has limited: the first delay and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 30.0
# Messages that are parsed in one step of the event loop; one takes a fifth of a millisecond.
_SLICE = 25
# Messages after an owed question among which its reply is looked for.
_REPLY_WITHIN = 1000


@dataclass(frozen=True, slots=True)
class Missed:
    """What was read: candidates for questions, in order; rows and quoted messages that were edited or deleted."""

    messages: list[discord.Message] = field(default_factory=list)
    edited: list[tuple[Exchange, discord.Message]] = field(default_factory=list)
    deleted: list[Exchange] = field(default_factory=list)
    edited_quotes: list[discord.Message] = field(default_factory=list)
    deleted_quotes: list[tuple[ChannelKey, str]] = field(default_factory=list)
    unread: list[discord.abc.Messageable] = field(default_factory=list)  # channels that could not be read


class DiscordBackfill:
    """Reads missed messages; remembers inaccessible channels for later sessions."""

    def __init__(
        self, clock: Clock, call_seconds: float, may_listen: Callable[[discord.abc.Messageable], bool]
    ) -> None:
        """Read messages without a mention too in channels where the bot `may_listen`."""
        self._clock = clock
        self._may_listen = may_listen
        self._call_seconds = call_seconds
        # With the newest known message: a newer one means that the channel is accessible again.
        self._gone: set[tuple[ChannelKey, str]] = set()
        # The replies to the questions that were read last, None for a question without one.
        self._standing: dict[str, StandingReply | None] = {}

    def _last(self, client: discord.Client, known: Mapping[ChannelKey, str]) -> int:
        """Return the newest message that is known to us or listed by Discord."""
        newest = [newest_id(known.values())] if known else []
        listed = [channel.last_message_id or 0 for guild in client.guilds for channel in _channels(guild)]
        return max([*newest, *listed], default=0) or _snowflake(datetime.now(UTC)).id

    def since(self, client: discord.Client, known: Mapping[ChannelKey, str], catch_up: timedelta) -> datetime:
        """Return the time from which channels are read, by Discord's clock, since ours may be wrong.

        Everything older than the newest known message was received, as messages are stored in
        order across all channels.  The last `catch_up` is read again, for edits, deletions,
        channels that could not be read before, and what a restored database does not know.
        """
        last = discord.utils.snowflake_time(self._last(client, known))
        newest = discord.utils.snowflake_time(newest_id(known.values())) if known else last
        return max(min(newest - _CLOCK_SKEW, last - min(catch_up, _LONGEST)), last - _LONGEST)

    async def missed(
        self, client: discord.Client, known: Mapping[ChannelKey, str], rows: Sequence[Exchange], since: datetime
    ) -> Missed:
        """Return what was missed since then; `rows` are the exchanges stored since then.

        Channels without known messages are read too, except for new direct channels, which
        Discord does not list.
        """
        after = _snowflake(since)
        channels = [channel for guild in client.guilds for channel in _channels(guild)]
        compared = {place for row in rows for place in _places(row.message)}
        places: list[discord.abc.Messageable] = [
            channel
            for channel in channels
            if ((channel.last_message_id or 0) > after.id or channel.id in compared) and _is_readable(channel)
        ]
        listed = {channel.id for channel in channels}
        # An active thread is listed.  An archived one without recent messages to the bot is skipped.
        earliest = _snowflake(discord.utils.snowflake_time(self._last(client, known)) - _LONGEST).id
        unlisted = {
            (key, mark)
            for key, mark in known.items()
            if channel_id(key) not in listed and (key.thread is None or int(mark) > earliest)
        }
        places += await self._probe_all(client, unlisted - self._gone, after, compared)
        return await self.read(client, places, rows, since)

    async def read(
        self,
        client: discord.Client,
        places: Sequence[discord.abc.Messageable],
        rows: Sequence[Exchange],
        since: datetime,
    ) -> Missed:
        """Read these channels, and compare them with the rows."""
        self._standing.clear()
        found = Missed()
        for seconds in _ATTEMPTS if places else ():
            await self._clock.sleep(seconds)
            places = [place for place in places if not await self._try_read(client, place, rows, since, found)]
            if not places:
                break
        found.unread.extend(places)
        found.messages.sort(key=lambda message: message.id)
        log.info(
            "discord backfill read",
            since=since.isoformat(),
            found=len(found.messages),
            edited=len(found.edited),
            deleted=len(found.deleted),
            unread=len(found.unread),
        )
        return found

    async def standing(self, client: discord.Client, owed: Sequence[Exchange]) -> dict[int, StandingReply]:
        """Return existing replies in the channels of these exchanges, by exchange id.

        Raises:
            PlatformUnavailable, RateLimited: A channel could not be read.
        """
        unread: dict[int, list[Exchange]] = {}
        for exchange in owed:
            message = exchange.message
            # The channel of a question that opened a thread was read, and not the thread.
            is_read = message.id in self._standing and not _opened_thread(message)
            if not is_read and has_ids(message.channel, message.id):
                unread.setdefault(channel_id(message.channel), []).append(exchange)
        for channel, exchanges in unread.items():
            ids = [exchange.message.id for exchange in exchanges]
            messages = await self._read_after(client, channel, min(map(int, ids)) - 1)
            opening = {opening_message(each.message) or each.message.id: each.message.id for each in exchanges}
            asked = _asked(client, messages, exchanges)
            replies = standing_replies(messages, _id_of(client), opening.get(str(channel), ""), asked)
            for raw in messages:
                question = asked.get(raw["id"], raw["id"])
                # A restored database may be older than the thread.
                if question in ids and question not in replies and _has_thread(raw):
                    in_thread = await self._read_after(client, int(raw["id"]), int(raw["id"]))
                    if reply := standing_replies(in_thread, _id_of(client), question).get(question):
                        reply.thread = raw["id"]
                        replies[question] = reply
            self._standing |= {id: replies.get(id) for id in ids}
        found = {exchange.id: self._standing.pop(exchange.message.id, None) for exchange in owed}
        return {id: reply for id, reply in found.items() if reply is not None}

    async def _read_after(self, client: discord.Client, channel: int, after: int) -> list[Json]:
        """Return the messages among which the reply to an owed question is looked for; none if they cannot be read."""
        messages: list[Json] = []
        try:
            async for page in pages(client, channel, after, self._call_seconds):
                messages += page
                if len(messages) >= _REPLY_WITHIN:
                    break
        except (LoginRefused, PlatformUnavailable, RateLimited):
            raise
        except (PlatformError, discord.DiscordException) as error:
            log.info("replies not looked for", channel=channel, error=str(error))
        return messages

    def reply_to(self, message: discord.Message) -> StandingReply | None:
        """Return the reply to a message that was just read."""
        return self._standing.get(str(message.id))

    async def _try_read(
        self,
        client: discord.Client,
        place: discord.abc.Messageable,
        rows: Sequence[Exchange],
        since: datetime,
        found: Missed,
    ) -> bool:
        """Add what was missed in a channel; return False if it could not be read now, and nothing was added."""
        channel, after = await place._get_channel(), _snowflake(since).id
        try:
            messages = await self._patiently(partial(self._read, client, channel.id, after))
        except LoginRefused:
            raise
        except PlatformUnavailable as error:
            log.warning("channel not read", channel=channel.id, error=str(error))
            return False
        except (PlatformError, discord.DiscordException) as error:
            log.warning("channel skipped", channel=channel.id, error=str(error))
            return True
        stored = {int(row.message.id): row for row in rows if _is_in(row.message, channel)}
        here = [(each, row) for row in stored.values() for each in row.message.further]
        further = {each.id: row for each, row in here if each.kind is not FurtherKind.LINKED}
        quoted = {row.message.quoted_id for row in rows} | further.keys()
        asked_at: dict[int, datetime] = {}  # by the author
        replies = await asyncio.to_thread(standing_replies, messages, _id_of(client))
        for number, raw in enumerate(messages):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            with skip_malformed(PLATFORM, kind="history"):
                # As the library's own `history` does it.
                message = without_unreadable(raw, partial(_create_message, client, channel))
                row, author = stored.get(message.id), message.author.id
                is_asked = row is not None or self._may_address_bot(message, client.user)
                # It may be more of a question, which does not address the bot by itself.
                goes_on = author in asked_at and message.created_at - asked_at[author] <= TOGETHER
                if is_asked or goes_on:
                    asked_at[author] = message.created_at
                is_new = row is None and is_user_message(message) and (is_asked or goes_on)
                if is_new and not (raw["id"] in further and message.edited_at is not None):
                    found.messages.append(message)
                elif row is not None and message.edited_at is not None and is_user_message(message):
                    found.edited.append((row, message))
                else:
                    if row is None and message.edited_at is not None and raw["id"] in quoted:
                        found.edited_quotes.append(message)
                    continue
                if (reply := replies.get(raw["id"])) is not None or not _has_thread(raw):
                    self._standing[raw["id"]] = reply
        ids = {int(raw["id"]) for raw in messages}
        gone = [row for id, row in stored.items() if id > after and id not in ids and _is_message(row)]
        lost = [(row.message.channel, id) for id, row in further.items() if int(id) > after and int(id) not in ids]
        quotations = [
            (row.message.channel, id) for row in rows if (id := _quoted_in(channel.id, row.message)) is not None
        ]
        lost += [(place, str(id)) for place, id in quotations if id > after and id not in ids]
        found.deleted_quotes.extend(lost if messages else [])
        if messages or (gone and await self._is_gone(client, channel.id, int(gone[-1].message.id))):
            found.deleted.extend(gone)
        for raw in messages:
            with skip_malformed(PLATFORM, kind="history"):
                reference = raw.get("message_reference") or {}
                replied = int(reference["message_id"]) if reference.get("channel_id") == str(channel.id) else 0
                if replied > after and replied not in ids and int(raw["id"]) in stored:
                    found.deleted_quotes.append((stored[int(raw["id"])].message.channel, str(replied)))
        return True

    async def _is_gone(self, client: discord.Client, channel: int, message: int) -> bool:
        """Return whether a message does not exist: without the permission to read it, a history is empty too."""

        async def fetch() -> None:
            async with call_timeout(self._call_seconds, client):
                await client.http.get_message(channel, message)

        try:
            await self._patiently(fetch)
        except MessageGone:
            return True
        except LoginRefused:
            raise
        except (PlatformError, discord.DiscordException) as error:
            log.info("message not looked for", channel=channel, error=str(error))
        return False

    async def _probe_all(
        self,
        client: discord.Client,
        unlisted: Iterable[tuple[ChannelKey, str]],
        after: discord.Object,
        compared: set[int],
    ) -> list[discord.abc.Messageable]:
        """Return the unlisted channels to read: direct channels and archived threads with new messages or rows."""
        pending, found = iter(unlisted), list[discord.abc.Messageable]()
        async with BackgroundTasks() as tasks:
            probes = [self._probe(client, pending, after, compared, found) for _ in range(_PROBES)]
            await asyncio.gather(*map(tasks.start, probes))
        return found

    async def _probe(
        self,
        client: discord.Client,
        pending: Iterator[tuple[ChannelKey, str]],
        after: discord.Object,
        compared: set[int],
        found: list[discord.abc.Messageable],
    ) -> None:
        for key, mark in pending:
            until = self._clock.now() + _PROBE_SECONDS
            id = channel_id(key)
            try:
                if id in compared or await self._patiently(partial(self._has_new, client, id, after.id)):
                    channel = await self._patiently(partial(self._fetch, client, id))
                    found += [channel] if isinstance(channel, discord.abc.Messageable) else []
            except REFUSALS:
                self._gone.add((key, mark))
            except UnreadableAnswer as error:
                log.warning("channel skipped", channel=id, error=str(error))
            await self._clock.sleep(max(0.0, until - self._clock.now()))

    async def _fetch(self, client: discord.Client, channel: int) -> object:
        async with call_timeout(self._call_seconds, client):
            return await client.fetch_channel(channel)

    async def _has_new(self, client: discord.Client, channel: int, after: int) -> bool:
        return await has_messages(client, channel, after, self._call_seconds)

    def _may_address_bot(self, message: discord.Message, me: discord.ClientUser | None) -> bool:
        assert me is not None, "known after the login"
        is_to_bot = is_direct_or_mention(message, me) or is_reply_or_role_mention(message, me)
        return is_user_message(message) and (is_to_bot or self._may_listen(message.channel))

    async def _read(self, client: discord.Client, channel: int, after: int) -> list[Json]:
        return [message async for page in pages(client, channel, after, self._call_seconds) for message in page]

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retry a rate-limited call after its wait."""
        report = log_retry("discord backfill rate limited")
        return await retry(
            call, RateLimited, clock=self._clock, backoff=Backoff(_FIRST_RETRY, _LONGEST_RETRY), on_failure=report
        )


def worth_reading(known: Mapping[ChannelKey, str]) -> dict[ChannelKey, str]:
    """Return the newest messages without those of threads that no backfill reads: a year may have tens of thousands."""
    ids = {channel: id for channel, id in known.items() if has_ids(channel, id)}
    if not ids:
        return ids
    earliest = _snowflake(discord.utils.snowflake_time(newest_id(ids.values())) - _LONGEST).id
    return {channel: id for channel, id in ids.items() if channel.thread is None or int(id) > earliest}


def _snowflake(time: datetime) -> discord.Object:
    return discord.Object(discord.utils.time_snowflake(time, high=False))


def _create_message(client: discord.Client, channel: Any, data: Any) -> discord.Message:
    return client._connection.create_message(channel=channel, data=data)


def _id_of(client: discord.Client) -> int:
    assert client.user is not None, "known after the login"
    return client.user.id


def _channels(guild: discord.Guild) -> list[_GuildChannel]:
    return [*guild.text_channels, *guild.voice_channels, *guild.stage_channels, *guild.threads]


def _is_readable(channel: _GuildChannel) -> bool:
    # Discord bans clients that make too many forbidden calls.
    place = channel.parent if isinstance(channel, discord.Thread) else channel
    return place is not None and place.permissions_for(channel.guild.me).read_message_history


def _is_message(row: Exchange) -> bool:
    """Return whether a row is of a message, which its channel shows, and not of a command."""
    return row.kind is Kind.CHAT and row.message.reply_address is None


def _asked(client: discord.Client, messages: Sequence[Json], owed: Sequence[Exchange]) -> dict[str, str]:
    """Return the ids of questions that were asked by a command, by the messages that show them."""
    by_command = [each.message for each in owed if each.message.reply_address == SHOWN]
    shown = {find_question(messages, _id_of(client), each): each.id for each in by_command}
    return {message: question for message, question in shown.items() if message is not None}


def _quoted_in(channel: int, message: IncomingMessage) -> int | None:
    """Return the message of a channel that a question quotes, where no reference to it shows that.

    It is what a command's question is about, or the message that the question's thread was made from.
    """
    key, quoted = message.channel, message.quoted_id
    made_thread = quoted is not None and key.thread == quoted
    if quoted is None or not (made_thread or message.reply_address == SHOWN) or not has_ids(key, quoted):
        return None
    is_above = made_thread or opening_message(message) is not None
    place = key.channel if is_above or key.thread is None else key.thread
    return int(quoted) if place == str(channel) else None


def _opened_thread(message: IncomingMessage) -> bool:
    """Return whether a thread was made from the message, or it is the first one of a post in a forum."""
    return message.channel.thread == message.id


def _places(message: IncomingMessage) -> set[int]:
    """Return the channels in which a message may be: one that opened a thread is in the channel, or in a forum's post."""
    return {channel_id(message.channel), *([int(message.channel.channel)] if _opened_thread(message) else [])}


def _is_in(message: IncomingMessage, channel: Any) -> bool:
    """Return whether a message was said in a channel or thread, to which its conversation need not belong."""
    key = message.channel
    if isinstance(channel, discord.Thread):
        is_in_post = isinstance(channel.parent, discord.ForumChannel)
        return key.thread == str(channel.id) and (is_in_post or not _opened_thread(message))
    return key.channel == str(channel.id) and (key.thread is None or _opened_thread(message))


def _has_thread(raw: Json) -> bool:
    """Return whether a thread was made from a message."""
    flags = raw.get("flags")
    return isinstance(flags, int) and discord.MessageFlags._from_value(flags).has_thread
