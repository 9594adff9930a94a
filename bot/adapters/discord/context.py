"""Context messages on Discord: those before a question, and those that it links to."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import discord
import structlog

from bot.adapters.discord.errors import UnreadableAnswer
from bot.adapters.discord.guests import is_guest
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import channel_id, channel_key, parse_user, readable_text, without_unreadable
from bot.adapters.discord.quotes import fetch_message
from bot.adapters.discord.text import whole_text
from bot.adapters.malformed import skip_malformed
from bot.domain import ChannelKey, FurtherKind, FurtherMessage, IncomingMessage
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LINK = re.compile(r"https://(?:\w+\.)?discord(?:app)?\.com/channels/(\d{1,20})/(\d{1,20})/(\d{1,20})(?!\d)")
# Linked messages that are read.
_MOST_LINKS = 3


class DiscordContext:
    """Reads messages with the client of the current session."""

    def __init__(self, client: Callable[[], discord.Client], call_seconds: float) -> None:
        self._client = client
        self._seconds = call_seconds

    async def before(self, question: IncomingMessage, count: int) -> list[FurtherMessage]:
        """Return the messages of others before the question.

        Raises:
            PlatformError: They cannot be read.
        """
        if is_guest(question.channel):
            return []
        client, written_in = self._client(), _written_in(question)
        place = channel_id(written_in)
        if isinstance(client.get_channel(place), discord.ForumChannel):
            return []  # the question begins a post
        async with call_timeout(self._seconds, client):
            page: Any = await client.http.logs_from(place, count, before=int(question.id))
        channel = client.get_channel(place) or client.get_partial_messageable(place)
        found = []
        for raw in page if isinstance(page, list) else []:
            with skip_malformed("discord", kind="history"):
                message = without_unreadable(raw, partial(_create, client, channel))
                found.append(self._further(message, written_in, FurtherKind.BEFORE))
        return [each for each in found if each is not None]

    async def linked(self, question: IncomingMessage) -> list[FurtherMessage]:
        """Return the messages of the question's server that it links to, if its author may read them."""
        links = [
            (int(channel), int(message))
            for server, channel, message in dict.fromkeys(_LINK.findall(question.text))
            if server == question.server
        ]
        found = [await self._linked(question, *link) for link in links[:_MOST_LINKS]]
        return [each for each in found if each is not None]

    async def _linked(self, question: IncomingMessage, place: int, message_id: int) -> FurtherMessage | None:
        client = self._client()
        server = client.get_guild(int(question.server or 0))
        channel = None if server is None else server.get_channel_or_thread(place)
        if server is None or channel is None:
            return None
        try:
            async with call_timeout(self._seconds, client):
                member = await server.fetch_member(int(question.author.id))
            if not _may_read(channel, member):
                return None
            message = await fetch_message(client, server.id, place, message_id, self._seconds)
        except (PlatformError, UnreadableAnswer) as error:
            log.info("a linked message was not read", error=str(error))
            return None
        return self._further(message, channel_key(channel, place), FurtherKind.LINKED)

    def _further(self, message: discord.Message, channel: ChannelKey, kind: FurtherKind) -> FurtherMessage | None:
        me = self._client().user
        if me is None or message.author.id == me.id:
            return None
        text = readable_text(whole_text(message), message, me)
        return FurtherMessage(
            str(message.id),
            channel.channel,
            parse_user(message.author),
            text,
            message.created_at,
            kind,
            thread=channel.thread,
        )


def _written_in(question: IncomingMessage) -> ChannelKey:
    """Return where a question was written: a thread that is not older was opened for its answer, or is its post."""
    channel = question.channel
    if channel.thread is not None and int(channel.thread) >= int(question.id):
        return replace(channel, thread=None)
    return channel


def _may_read(channel: Any, member: discord.Member) -> bool:
    if isinstance(channel, discord.Thread) and channel.is_private():
        return False  # who is in it is not known
    rights = channel.permissions_for(member)
    return bool(rights.read_messages and rights.read_message_history)


def _create(client: discord.Client, channel: Any, data: Any) -> discord.Message:
    return client._connection.create_message(channel=channel, data=data)
