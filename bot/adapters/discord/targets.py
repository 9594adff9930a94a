"""Messages that modals are about: what "Ask about this" was used on, until its question comes."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import discord
import structlog

from bot.adapters.discord.guests import is_guest
from bot.adapters.discord.parse import Use, channel_id
from bot.adapters.discord.quotes import fetch_message, quotation_of
from bot.adapters.quotation import Quotation
from bot.domain import ChannelKey
from bot.errors import PlatformError
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for reading a message that is not known any more: its modal waits 3 s for a response.
_FETCH_SECONDS = 1.5


class Targets:
    """Keeps the messages that open modals are about; reads one again where it can."""

    def __init__(self, client: Callable[[], discord.Client], call_seconds: float) -> None:
        self._client = client
        self._seconds = min(_FETCH_SECONDS, call_seconds)
        # By the user and the message's id.
        self._known: RecentDict[tuple[int, str], tuple[ChannelKey | None, Quotation]] = RecentDict(1000)

    def keep(self, use: Use, target: str, quoted: Quotation) -> None:
        self._known[use.interaction.user.id, target] = use.channel, quoted

    async def find(self, use: Use, channel: ChannelKey, target: str) -> Quotation | None:
        """Return the message of a modal; None if it is neither known nor to be read."""
        if (known := self._known.get((use.interaction.user.id, target))) is not None:
            return known[1]
        client, server = self._client(), use.interaction.guild_id
        # The id came from the user's client: it may be of any message in the channel.
        may_read = server is None or use.interaction.permissions.read_message_history
        if is_guest(channel) or client.user is None or not may_read:
            return None
        try:
            message = await fetch_message(client, server, channel_id(channel), int(target), self._seconds)
        except PlatformError as error:
            log.info("the message of a question was not read", error=str(error))
            return None
        return quotation_of(message, client.user)

    def forget(self, messages: Iterable[str]) -> None:
        """Forget messages that were deleted or edited."""
        changed = set(messages)
        for key in [key for key in self._known if key[1] in changed]:
            del self._known[key]

    def forget_in(self, channel: ChannelKey | None) -> None:
        """Forget the messages of a channel, or of all: texts there were deleted, whose authors are not known here."""
        for key, (place, _) in list(self._known.items()):
            is_thread = channel is not None and place is not None and replace(place, thread=None) == channel
            if channel is None or place is None or place == channel or is_thread:
                del self._known[key]
