"""Backfill of messages missed while disconnected."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import discord
import structlog

from bot.adapters.discord.errors import REFUSALS
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import channel_id, is_direct_or_mention, is_reply_or_role_mention, is_user_message
from bot.domain import ChannelKey
from bot.errors import RateLimited
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


class DiscordBackfill:
    """Reads missed messages; remembers inaccessible channels for later sessions."""

    def __init__(self, clock: Clock, call_seconds: float) -> None:
        self._clock = clock
        self._call_seconds = call_seconds
        # With the newest known message: a newer one means that the channel is accessible again.
        self._gone: set[tuple[ChannelKey, str]] = set()

    async def missed(self, client: discord.Client, known: Mapping[ChannelKey, str]) -> list[discord.Message]:
        """Return candidates since the newest message in `known`, in order; some may be known.

        Messages are stored in order across all channels, so everything older than the newest
        was received.  Channels without known messages are read too, except for new direct
        channels, which Discord does not list.
        """
        if not known:
            return []
        newest = _newest(known.values())
        channels = [channel for guild in client.guilds for channel in _channels(guild)]
        # The time of the last message by Discord's clock, since ours may be wrong.
        last = max([newest, *(channel.last_message_id or 0 for channel in channels)])
        earliest = discord.utils.snowflake_time(last) - _LONGEST
        since = max(discord.utils.snowflake_time(newest) - _CLOCK_SKEW, earliest)
        after = _snowflake(since)
        places: list[discord.abc.Messageable] = [
            channel for channel in channels if (channel.last_message_id or 0) > after.id and _is_readable(channel)
        ]
        listed = {channel.id for channel in channels}
        # An active thread is listed.  An archived one without recent messages to the bot is skipped.
        unlisted = {
            (key, mark)
            for key, mark in known.items()
            if channel_id(key) not in listed and (key.thread is None or int(mark) > _snowflake(earliest).id)
        }
        places += await self._probe_all(client, unlisted - self._gone, after)
        found: list[discord.Message] = []
        for place in places:
            with suppress(*REFUSALS):
                messages = await self._patiently(partial(self._read, client, place, after))
                found += [message for message in messages if _may_address_bot(message, client.user)]
        log.info("discord backfill read", since=since.isoformat(), found=len(found))
        return sorted(found, key=lambda message: message.id)

    async def _probe_all(
        self, client: discord.Client, unlisted: Iterable[tuple[ChannelKey, str]], after: discord.Object
    ) -> list[discord.abc.Messageable]:
        """Return the unlisted channels with new messages: direct channels and archived threads."""
        pending, found = iter(unlisted), list[discord.abc.Messageable]()
        async with BackgroundTasks() as tasks:
            await asyncio.gather(*(tasks.start(self._probe(client, pending, after, found)) for _ in range(_PROBES)))
        return found

    async def _probe(
        self,
        client: discord.Client,
        pending: Iterator[tuple[ChannelKey, str]],
        after: discord.Object,
        found: list[discord.abc.Messageable],
    ) -> None:
        for key, mark in pending:
            until = self._clock.now() + _PROBE_SECONDS
            place = client.get_partial_messageable(channel_id(key))
            try:
                if await self._patiently(partial(self._read, client, place, after, limit=1)):
                    channel = await self._patiently(partial(self._fetch, client, channel_id(key)))
                    found += [channel] if isinstance(channel, discord.abc.Messageable) else []
            except REFUSALS:
                self._gone.add((key, mark))
            await self._clock.sleep(max(0.0, until - self._clock.now()))

    async def _fetch(self, client: discord.Client, channel: int) -> object:
        async with call_timeout(self._call_seconds, client):
            return await client.fetch_channel(channel)

    async def _read(
        self, client: discord.Client, place: discord.abc.Messageable, after: discord.Object, limit: int | None = None
    ) -> list[discord.Message]:
        messages, found = aiter(place.history(limit=limit, after=after)), list[discord.Message]()
        while True:
            async with call_timeout(self._call_seconds, client):  # one call returns a hundred messages
                message = await anext(messages, None)
            if message is None:
                return found
            found.append(message)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retry a rate-limited call after its wait."""
        report = log_retry("discord backfill rate limited")
        return await retry(call, RateLimited, clock=self._clock, backoff=Backoff(1.0, 1.0), on_failure=report)


def _newest(message_ids: Iterable[str]) -> int:
    """Return the newest id; a forged one from the future would hide all missed messages."""
    ids = [int(message_id) for message_id in message_ids]
    tomorrow = _snowflake(datetime.now(UTC) + timedelta(days=1)).id
    return max([id for id in ids if id < tomorrow] or ids)  # if none is left, our clock is wrong


def _snowflake(time: datetime) -> discord.Object:
    return discord.Object(discord.utils.time_snowflake(time, high=False))


def _may_address_bot(message: discord.Message, me: discord.ClientUser | None) -> bool:
    assert me is not None, "known after the login"
    is_to_bot = is_direct_or_mention(message, me) or is_reply_or_role_mention(message, me)
    return is_user_message(message) and (is_to_bot or isinstance(message.channel, discord.Thread))


def _channels(guild: discord.Guild) -> list[_GuildChannel]:
    return [*guild.text_channels, *guild.voice_channels, *guild.stage_channels, *guild.threads]


def _is_readable(channel: _GuildChannel) -> bool:
    # Discord bans clients that make too many forbidden calls.
    place = channel.parent if isinstance(channel, discord.Thread) else channel
    return place is not None and place.permissions_for(channel.guild.me).read_message_history
