"""What was said to the bot while it was away or a session was lost; Discord does not send that again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import discord
import structlog

from bot.adapters.discord.client import BotClient
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import calls, is_spoken, speaks_to, target
from bot.domain import ChannelKey
from bot.errors import ChannelGone, MessageGone, RateLimited
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

_Channel = discord.TextChannel | discord.VoiceChannel | discord.StageChannel | discord.Thread

# Ids are times, but not every machine of Discord's has the same one.
_MARGIN = timedelta(minutes=1)
# Further back nobody waits for an answer, and reading busy channels would take hours.
_FURTHEST = timedelta(days=7)
# Places that are asked about at once, and the seconds each of them takes at least: 40 calls a second
# of the 50 that Discord allows, so that replies go on.
_AT_ONCE = 4
_SECONDS_EACH = 0.1


class Backlog:
    """Reads what was missed; remembers from one session to the next which places are gone."""

    def __init__(self, clock: Clock, call_seconds: float) -> None:
        self._clock = clock
        self._call_seconds = call_seconds
        # Each with its newest known message: where there is a newer one, the place is there again.
        self._gone: set[tuple[ChannelKey, str]] = set()

    async def missed(self, client: BotClient, known: Mapping[ChannelKey, str]) -> list[discord.Message]:
        """Read what may be for the bot since the newest message in `known`, in the order in which it was said.

        All rows are written in that order, over all channels: so whatever is older than the
        newest of them was seen, and channels in which the bot was never spoken to before are
        read from there too.  Some of it may be known already.  (A first direct message that
        came meanwhile cannot be found: Discord lists no direct channels.)
        """
        if not known:
            return []
        newest = _newest(known.values())
        channels = [channel for guild in client.guilds for channel in _channels(guild)]
        # The time of the last message anywhere, by Discord's clock: ours may be wrong.
        last = max([newest, *(channel.last_message_id or 0 for channel in channels)])
        furthest = discord.utils.snowflake_time(last) - _FURTHEST
        since = max(discord.utils.snowflake_time(newest) - _MARGIN, furthest)
        after = _at(since)
        places: list[discord.abc.Messageable] = [
            channel for channel in channels if (channel.last_message_id or 0) > after.id and _is_readable(channel)
        ]
        listed = {channel.id for channel in channels}
        unlisted = {key: mark for key, mark in known.items() if target(key) not in listed}
        places += await self._spoken_in(client, unlisted, after, asleep_before=_at(furthest))
        found: list[discord.Message] = []
        for place in places:
            with suppress(ChannelGone, MessageGone):
                read = await self._told(partial(self._read, client, place, after))
                found += [message for message in read if _may_concern(message, client.me)]
        log.info("caught up with discord", since=since.isoformat(), found=len(found))
        return sorted(found, key=lambda message: message.id)

    async def _spoken_in(
        self,
        client: BotClient,
        unlisted: Mapping[ChannelKey, str],
        after: discord.Object,
        asleep_before: discord.Object,
    ) -> list[discord.abc.Messageable]:
        """Ask about direct channels, threads that were archived, and what is gone.

        A thread in which the bot was not spoken to for long is left out: if it was spoken to
        meanwhile, it is listed, unless it was archived again.  Direct channels are never listed.
        """
        asked = iter(
            (key, mark)
            for key, mark in unlisted.items() - self._gone
            if key.thread is None or int(mark) > asleep_before.id
        )
        found: list[discord.abc.Messageable] = []
        readers = [asyncio.create_task(self._ask(client, asked, after, found)) for _ in range(_AT_ONCE)]
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        return found

    async def _ask(
        self,
        client: BotClient,
        asked: Iterator[tuple[ChannelKey, str]],
        after: discord.Object,
        found: list[discord.abc.Messageable],
    ) -> None:
        for key, mark in asked:
            until = self._clock.now() + _SECONDS_EACH
            try:
                place = await self._place(client, target(key), after)
            except (ChannelGone, MessageGone):
                self._gone.add((key, mark))
            else:
                found += [place] if place is not None else []
            await self._clock.sleep(max(0.0, until - self._clock.now()))

    async def _place(self, client: BotClient, channel_id: int, after: discord.Object) -> discord.abc.Messageable | None:
        """The channel with this id, if anything was said there."""
        if not await self._told(partial(self._read, client, client.get_partial_messageable(channel_id), after, 1)):
            return None
        place = await self._told(partial(self._fetch, client, channel_id))
        return place if isinstance(place, discord.abc.Messageable) else None

    async def _fetch(self, client: BotClient, channel_id: int) -> object:
        async with call_timeout(self._call_seconds, client):
            return await client.fetch_channel(channel_id)

    async def _read(
        self, client: BotClient, place: discord.abc.Messageable, after: discord.Object, limit: int | None = None
    ) -> list[discord.Message]:
        messages, found = aiter(place.history(limit=limit, after=after)), list[discord.Message]()
        while True:
            async with call_timeout(self._call_seconds, client):  # a hundred of them come with a call
                message = await anext(messages, None)
            if message is None:
                return found
            found.append(message)

    async def _told(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What Discord answers, however long it makes us wait."""
        while True:
            try:
                return await ask()
            except RateLimited as limited:
                await self._clock.sleep(limited.seconds)


def _newest(message_ids: Iterable[str]) -> int:
    """The newest of these messages; one of the far future, which no honest event has, shall not hide all others."""
    ids = [int(message_id) for message_id in message_ids]
    tomorrow = _at(datetime.now(UTC) + timedelta(days=1)).id
    return max([id for id in ids if id < tomorrow] or ids)  # where all are, our clock is wrong


def _at(time: datetime) -> discord.Object:
    return discord.Object(discord.utils.time_snowflake(time, high=False))


def _may_concern(message: discord.Message, me: discord.ClientUser) -> bool:
    is_to_bot = calls(message, me) or speaks_to(message, me) or isinstance(message.channel, discord.Thread)
    return is_spoken(message) and is_to_bot


def _channels(guild: discord.Guild) -> list[_Channel]:
    return [*guild.text_channels, *guild.voice_channels, *guild.stage_channels, *guild.threads]


def _is_readable(channel: _Channel) -> bool:
    """Whether the bot may read what was said there; too many vain tries cost the bot its access."""
    place = channel.parent if isinstance(channel, discord.Thread) else channel
    return place is not None and place.permissions_for(channel.guild.me).read_message_history
