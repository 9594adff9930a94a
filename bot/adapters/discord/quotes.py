"""What a Discord message points at: a reply's message, forwards, polls, the message that a thread was made from."""

from collections.abc import Awaitable, Callable
from typing import Any

import discord
import structlog

from bot.adapters.discord.files import files_of
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import readable_text, replied_to, server_id, without_unreadable
from bot.adapters.discord.text import poll_text, whole_text
from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.quotation import NO_QUOTATION, Quotation, quotation
from bot.domain import ChannelKey
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds to fetch a quoted message: the question, and those after it, wait that long.
_FETCH_SECONDS = 2.0


class Quotes:
    """Reads quotations, fetching what an event does not contain."""

    def __init__(self, call_seconds: float, quotes_root: Callable[[ChannelKey], Awaitable[bool]]) -> None:
        self._seconds = min(call_seconds, _FETCH_SECONDS)
        self._quotes_root = quotes_root

    async def find(self, message: discord.Message, client: discord.Client, channel: ChannelKey) -> Quotation:
        """Return what the message points at; what cannot be fetched or read is left out."""
        try:
            return await self._find(message, client, channel)
        except PARSE_ERRORS as error:
            log.warning("a quoted message was not read", **describe_error(error))
            return NO_QUOTATION

    async def _find(self, message: discord.Message, client: discord.Client, channel: ChannelKey) -> Quotation:
        assert client.user is not None, "messages come after the login"
        if message.message_snapshots:
            texts = [readable_text(whole_text(each), message, client.user) for each in message.message_snapshots]
            reference = message.reference.message_id if message.reference else None
            files = [file for each in message.message_snapshots for file in files_of(each)]
            return quotation("\n\n".join(filter(None, texts)), str(reference) if reference else None, files)
        if message.reference is not None:
            quoted = replied_to(message)
            if quoted is None and message.reference.resolved is None and message.reference.message_id is not None:
                quoted = await self._fetch(message, client, message.reference.channel_id, message.reference.message_id)
            return quotation_of(quoted, client.user)
        if poll := poll_text(message):
            return Quotation(readable_text(poll, message, client.user))
        if channel.thread is None or int(channel.thread) == message.id:
            return NO_QUOTATION
        if not await self._quotes_root(channel):
            return NO_QUOTATION
        # A thread made from a message has that message's id; a post in a forum holds it itself.
        thread = message.channel
        is_post = isinstance(thread, discord.Thread) and isinstance(thread.parent, discord.ForumChannel)
        home = channel.thread if is_post else channel.channel
        return quotation_of(await self._fetch(message, client, int(home), int(channel.thread)), client.user)

    async def _fetch(
        self, message: discord.Message, client: discord.Client, channel_id: int, message_id: int
    ) -> discord.Message | None:
        try:
            return await fetch_message(client, server_id(message), channel_id, message_id, self._seconds)
        except PlatformError as error:
            log.info("a quoted message was not read", error=str(error))
            return None


async def fetch_message(
    client: discord.Client, server: int | None, channel_id: int, message_id: int, seconds: float
) -> discord.Message:
    """Fetch a message, as far as the library can read it.

    Raises:
        PlatformError: As `call_timeout` raises it.
    """
    async with call_timeout(seconds, client):
        data: Any = await client.http.get_message(channel_id, message_id)
        place: Any = client.get_channel(channel_id) or client.get_partial_messageable(channel_id, guild_id=server)
        return without_unreadable(
            data, lambda data: discord.Message(state=client._connection, channel=place, data=data)
        )


def quotation_of(quoted: discord.Message | None, me: discord.ClientUser) -> Quotation:
    """Return a message as what another one points at."""
    if quoted is None:
        return NO_QUOTATION
    text = readable_text(whole_text(quoted), quoted, me)
    if quoted.message_snapshots:
        text = "\n\n".join([text, *(readable_text(whole_text(each), quoted, me) for each in quoted.message_snapshots)])
    files = [*files_of(quoted), *(file for each in quoted.message_snapshots for file in files_of(each))]
    return quotation(text.strip(), str(quoted.id), files, is_bots=quoted.author.id == me.id)
