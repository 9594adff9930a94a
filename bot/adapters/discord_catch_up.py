"""What was said to the bot while it was away or a session was lost; Discord does not send that again."""

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

import discord
import structlog

from bot.adapters.discord_client import BotClient
from bot.adapters.discord_http import translated
from bot.adapters.discord_messages import calls, is_spoken, speaks_to, target
from bot.clock import Clock
from bot.domain import ChannelKey
from bot.errors import ChannelGone, MessageGone, RateLimited

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Channel = discord.TextChannel | discord.VoiceChannel | discord.StageChannel | discord.Thread

# Ids are times, but not every machine of Discord's has the same one.
_MARGIN = timedelta(minutes=1)
# Further back nobody waits for an answer, and reading busy channels would take hours.
_FURTHEST = timedelta(days=7)


async def missed(client: BotClient, known: Mapping[ChannelKey, str], clock: Clock) -> list[discord.Message]:
    """Read what may be for the bot since the newest message in `known`, in the order in which it was said.

    All rows are written in that order, over all channels: so whatever is older than the
    newest of them was seen, and channels in which the bot was never spoken to before are
    read from there too.  Some of it may be known already.  (A first direct message that
    came meanwhile cannot be found: Discord lists no direct channels.)
    """
    if not known:
        return []
    newest = max(int(message_id) for message_id in known.values())
    # The time of the last message anywhere, by Discord's clock: ours may be wrong.
    last = max([newest, *(channel.last_message_id or 0 for guild in client.guilds for channel in _channels(guild))])
    since = max(discord.utils.snowflake_time(newest) - _MARGIN, discord.utils.snowflake_time(last) - _FURTHEST)
    after = discord.Object(discord.utils.time_snowflake(since, high=False))
    found: list[discord.Message] = []
    async for channel in _spoken_in(client, known, after, clock):
        found += [message for message in await _read(channel, after, clock) if _may_concern(message, client.me)]
    log.info("caught up with discord", since=since.isoformat(), found=len(found))
    return sorted(found, key=lambda message: message.id)


def _may_concern(message: discord.Message, me: discord.ClientUser) -> bool:
    is_to_bot = calls(message, me) or speaks_to(message, me) or isinstance(message.channel, discord.Thread)
    return is_spoken(message) and is_to_bot


async def _spoken_in(
    client: BotClient, known: Mapping[ChannelKey, str], after: discord.Object, clock: Clock
) -> AsyncIterator[discord.abc.Messageable]:
    seen: set[int] = set()
    for guild in client.guilds:
        for channel in _channels(guild):
            seen.add(channel.id)
            if (channel.last_message_id or 0) > after.id and _is_readable(channel):
                yield channel
    # Direct channels, threads that were archived, and what is gone.
    for channel_id in sorted({target(key) for key in known} - seen):
        if await _read(client.get_partial_messageable(channel_id), after, clock, limit=1):
            with translated():
                found = await client.fetch_channel(channel_id)
            if isinstance(found, discord.abc.Messageable):
                yield found


def _channels(guild: discord.Guild) -> list[_Channel]:
    return [*guild.text_channels, *guild.voice_channels, *guild.stage_channels, *guild.threads]


async def _read(
    channel: discord.abc.Messageable, after: discord.Object, clock: Clock, limit: int | None = None
) -> list[discord.Message]:
    while True:
        try:
            with translated():
                return [message async for message in channel.history(limit=limit, after=after)]
        except RateLimited as limited:
            await clock.sleep(limited.seconds)
        except (ChannelGone, MessageGone):
            return []


def _is_readable(channel: _Channel) -> bool:
    """Whether the bot may read what was said there; too many vain tries cost the bot its access."""
    place = channel.parent if isinstance(channel, discord.Thread) else channel
    return place is not None and place.permissions_for(channel.guild.me).read_message_history
