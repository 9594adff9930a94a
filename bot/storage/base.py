"""What the program asks of a database: the Store."""

from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from bot.domain import Answer, Author, ChannelKey, Exchange, IncomingMessage, Kind


@dataclass(frozen=True, slots=True)
class History:
    """A channel's answered exchanges, oldest first, and how many older ones there are.

    `now` is the exchange before which it stands, as it is kept by now: it may be cleared,
    or have lost what it quoted.
    """

    exchanges: tuple[Exchange, ...]
    older: int
    now: Exchange


class Store(Protocol):
    """Each method is one shielded transaction: a crash between two calls is safe.

    An async context manager: entering opens the database and brings it up to date,
    leaving closes it.  Every method may raise StoreError.
    """

    async def enqueue(self, message: IncomingMessage, kind: Kind, *, claim: bool = True) -> Exchange | None:
        """Store a message as an open exchange, and claim it.

        A known message changes nothing, but is claimed and returned if it is owed.  Return
        None for any other known message, and without `claim`.
        """
        ...

    async def claim_owed(self, platform: str) -> list[Exchange]:
        """Claim all exchanges of the platform that are owed, and return them, oldest first."""
        ...

    async def claim(self, exchange: Exchange) -> Exchange | None:
        """Claim one exchange if it is owed."""
        ...

    def release(self, exchange: Exchange) -> None:
        """Give a claim up; it is void for the next call of a claiming method."""
        ...

    async def record_part(self, exchange: Exchange, part: int, message_id: str) -> bool:
        """Store the platform message that carries this part (0, 1, …) of the reply; False if the claim was lost."""
        ...

    async def record_answer(self, exchange: Exchange, answer: Answer) -> bool:
        """Store the answer, which is now owed to the platform; False if the claim was lost."""
        ...

    async def complete(self, exchange: Exchange) -> bool:
        """Mark an answered exchange as delivered and release it; False if the claim was lost."""
        ...

    async def fail(self, exchange: Exchange, reason: str) -> bool:
        """Give the exchange up for good and release it; False if the claim was lost."""
        ...

    async def requeue(self, exchange: Exchange, text: str | None = None) -> Exchange | None:
        """Open it again and claim it, revoking any earlier claim; its parts are kept, its answer is not.

        It gets a new seed.  With `text`, for an edited message, quotations of the old text
        are deleted too.  None if it was cleared.
        """
        ...

    async def history(self, before: Exchange, limit: int) -> History:
        """The channel's last `limit` chats with an answer of the model, before this one, which must exist.

        Exchanges whose answer is only a notice, or ended in an error, do not count.
        """
        ...

    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """The exchange that this message began."""
        ...

    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """The exchange whose reply this platform message carries a part of."""
        ...

    async def has_history(self, channel: ChannelKey) -> bool:
        """Whether anybody ever spoke to the bot here, cleared or not."""
        ...

    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        """The channel's newest chat (of this author), to retry it; never a cleared one."""
        ...

    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        """Delete what was said here, in a channel without thread in its threads too.

        With `before`, only what came before that exchange: who writes on while `/clear`
        is carried out is not cleared with the rest.

        Texts and names are blanked, keys stay: a message that comes again is not
        answered again.  When this returns, no row holds the text, and no byte of it is left in
        a SQLite database's files; of a large file the unused parts may hold some until it is
        rewritten, which it is by itself.  What else a server keeps is its operator's.

        Another program that reads the file, or a full disk, keeps the bytes there longer.
        Nobody waits for that for more than a moment, nothing fails, and it is tried again:
        whoever clears or forgets is told by NotScrubbed, with the same count.

        Whoever quoted it, in another thread or since, keeps their own words and loses the
        quotation.  Return how many chats had text; commands are not counted.

        A command that is still open stays: it may be the very one that clears, and is
        owed its reply.

        Raises:
            NotScrubbed: All that is done, but for the bytes in the file.
        """
        ...

    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        """The same for all that one person said, everywhere, and the answers to it.

        With `before`, their open commands go too: it names the one that forgets, which stays.

        Raises:
            NotScrubbed: All that is done, but for the bytes in the file.
        """
        ...

    async def erase(self, exchange: Exchange) -> None:
        """The same for one exchange: its message was deleted.  It does not raise NotScrubbed."""
        ...

    async def expire(self, before: datetime) -> int:
        """The same for all that was said before this moment; what is still open is spared.

        A quotation is as old as the message that it stands in.  It does not raise NotScrubbed.
        """
        ...

    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        """Take the exchanges of a channel, its threads included, along to its new id.

        The messages themselves stay behind: their ids, and those of the replies, get the
        old channel and a space in front (more than once if that id is taken), so that none
        is taken for a message of the new one.  Return how many exchanges moved; once they
        have, there are none to move again.
        """
        ...

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """The newest message known per channel: where catching up begins."""
        ...

    async def check(self) -> None:
        """Find out whether a message could be kept now, and change nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
