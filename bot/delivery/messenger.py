"""What the delivery of a reply asks of a platform."""

from typing import Protocol

from bot.delivery.markdown.format import Format, Rendered
from bot.domain import ChannelKey, Controls


class Messenger(Protocol):
    """The verbs delivery needs of a platform; ids are the platform's own.

    Every verb may raise RateLimited, PlatformUnavailable and ChannelGone.
    """

    @property
    def format(self) -> Format: ...

    def edit_interval(self, channel: ChannelKey) -> float:
        """Seconds between two edits there: a group may bear fewer than a DM."""
        ...

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        """Send a message and return its id.

        Each try at the same message has the same `nonce` (at most 25 characters), also
        after a restart: a platform that knows nonces then has it once.

        Raises:
            MarkupRefused: The text could not be read as markup.
            MessageGone: The message to reply to was deleted.
        """
        ...

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        """Show this instead; that nothing changed is no error.

        Raises:
            MarkupRefused: The text could not be read as markup.
            MessageGone: There is no such message to edit.
        """
        ...

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        """Take a message of the bot's own back.

        Raises:
            MessageGone: It is gone already, or may no longer be deleted.
        """
        ...
