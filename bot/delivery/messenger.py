"""The seam between delivery and a platform: Messenger."""

from hashlib import sha256
from typing import Protocol

from bot.delivery.markdown.format import Format, Rendered
from bot.domain import ChannelKey, Controls, Exchange, IncomingMessage

# Discord's limit.
_NONCE_LENGTH = 25


def nonce(question: IncomingMessage, part: int, replaces: str | None = None) -> str:
    """Return the nonce of message `part` of the reply to a question; `replaces` is the id of one that is gone.

    Derived from the platform's ids only: another database, whose rows are numbered again, makes
    no nonce of another question, and the same message has the same nonce after a restart.
    """
    key = f"{question.channel} {question.id} {part} {replaces or ''}"
    return sha256(key.encode()).hexdigest()[:_NONCE_LENGTH]


class Messenger(Protocol):
    """The calls that delivery makes to a platform; ids are the platform's own.

    Every verb may raise RateLimited, PlatformUnavailable and ChannelGone.
    """

    @property
    def format(self) -> Format: ...

    def edit_interval(self, channel: ChannelKey) -> float:
        """Return the seconds between two edits in the channel: a group may allow fewer than a DM."""
        ...

    async def send(
        self,
        channel: ChannelKey,
        text: Rendered,
        *,
        reply_to: str | None,
        controls: Controls,
        nonce: str,
        may_exist: bool = False,
        continues: str | None = None,
    ) -> str:
        """Send a message and return its id.

        Each attempt at the same message has the same `nonce` (at most 25 characters), also
        after a restart, so that a platform that knows nonces stores it once.  With `may_exist`
        an earlier run may have sent it: a platform whose messages can be read looks first.
        A further message of a reply `continues` its first one, whose id this is: a platform whose
        messages keep no nonce may note it, to find the reply again without the database.

        Raises:
            MarkupRefused: The text could not be read as markup.
            MessageGone: The message to reply to was deleted.
            ReplyFull: No further message of this reply is taken; never raised for its first one.
        """
        ...

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        """Replace the content of a message; unchanged content is no error.

        Raises:
            MarkupRefused: The text could not be read as markup.
            MessageGone: The message does not exist any more.
        """
        ...

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        """Delete a message of the bot.

        Raises:
            MessageGone: It is deleted already, or may no longer be deleted.
        """
        ...


class Streams(Protocol):
    """Messages that grow by appended text, on a platform whose `Messenger` shows growing replies so.

    Their appends are limited apart from edits: `edit` raises AppendLimited for them.  The texts of growing messages say what is `stable`.
    """

    @property
    def appends_per_minute(self) -> int: ...

    def expect(self, exchange: Exchange) -> None:
        """Note who asked, before the reply is sent."""
        ...

    def is_open(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the next edit of a message may append to it."""
        ...
