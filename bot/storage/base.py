"""The seam between the program and a database: Store."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from types import TracebackType
from typing import Protocol, Self

from bot.domain import (
    KINDS_OF_OTHERS,
    Answer,
    Attachment,
    Author,
    ChannelKey,
    Exchange,
    FurtherKind,
    FurtherMessage,
    IncomingMessage,
    Kind,
    Scope,
    SettingChange,
    UsageSum,
    Vote,
    VoteResult,
)


@dataclass(frozen=True, slots=True)
class History:
    """The answered exchanges before one, oldest first.

    `now` is that exchange as it is stored now: it may have been cleared, or have lost its quotation.
    """

    exchanges: tuple[Exchange, ...]
    now: Exchange
    is_shortening_told: bool = False  # see Store.record_shortening


class Store(Protocol):
    """Each method is one shielded transaction: a crash between two calls is safe.

    An async context manager: entering opens the database and migrates it, leaving closes
    it.  Every method may raise StoreError.  bot/lifecycle.py describes claims.
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

    async def move(self, exchange: Exchange, channel: ChannelKey) -> bool:
        """Move an exchange to a thread of its channel; False if the claim was lost.  The thread has a history then."""
        ...

    async def record_files(
        self, exchange: Exchange, files: Sequence[Attachment], further: Sequence[FurtherMessage] = ()
    ) -> bool:
        """Store what was read of the files of the message, and of its `further` ones; False if the claim was lost.

        The text of a quoted message's files becomes a part of the quotation, unless that was deleted meanwhile; their
        pictures are deleted with it.
        """
        ...

    async def join(self, exchange: Exchange, message: FurtherMessage) -> Exchange | None:
        """Store one more message of a question, open it again as `requeue` does with a text, and claim it.

        If the message is known to be a part of a question, that one is claimed and returned if it is owed.  None
        otherwise, if the message is a question itself or was deleted, and if the question was cleared.
        """
        ...

    async def edit_continuation(
        self, channel: ChannelKey, message_id: str, text: str, files: Sequence[Attachment]
    ) -> Exchange | None:
        """Take the new text of an edited message that is a part of a question; open that again, and claim it.

        None if it is no such part, or the question was cleared.  An edit that is known claims what is owed.
        """
        ...

    async def record_context(
        self, exchange: Exchange, messages: Sequence[FurtherMessage], kinds: Collection[FurtherKind] = KINDS_OF_OTHERS
    ) -> bool:
        """Store what others said before the question, and what it links to; False if the claim was lost.

        They replace those that the question has of these kinds.

        Left out are messages that were deleted, and what was said before if it is a question itself.
        """
        ...

    async def is_context_told(self, channel: ChannelKey) -> bool:
        """Return whether it was said in the channel, threads included, that messages before a question are read."""
        ...

    async def record_context_told(self, channel: ChannelKey) -> None:
        """Note the announcement in the channel that messages before a question are read."""
        ...

    async def asked_between(
        self, channel: ChannelKey, author: Author, since: datetime, until: datetime
    ) -> list[Exchange]:
        """Return a person's questions of these times in a channel and its threads, without cleared ones, oldest first."""
        ...

    async def record_answer(
        self,
        exchange: Exchange,
        answer: Answer,
        day: date | None = None,
        milliseconds: int = 0,
        *,
        is_counted: bool = False,
    ) -> bool:
        """Store the answer, which is now owed to the platform; False if the claim was lost.

        With a `day`, what it has used is counted in the same transaction, once, also if the question was deleted
        or edited meanwhile; `milliseconds` is the time that it took.  With `is_counted` it is no further answer.
        """
        ...

    async def complete(self, exchange: Exchange) -> bool:
        """Mark an answered exchange as delivered and release it; False if the claim was lost."""
        ...

    async def fail(self, exchange: Exchange, reason: str) -> bool:
        """Give the exchange up for good and release it; False if the claim was lost."""
        ...

    async def requeue(
        self,
        exchange: Exchange,
        text: str | None = None,
        files: Sequence[Attachment] | None = None,
        reply_address: str | None = None,
    ) -> Exchange | None:
        """Open it again and claim it, revoking any earlier claim; its parts are kept, its answer is not.

        It gets a new seed.  With `text` (and `files`), for an edited message, it is a question, even if it was a
        command, quotations of it get the new text, and those of the old answer are deleted, as is what it links to.
        A `reply_address` replaces the one that it has.  None if it was cleared.
        """
        ...

    async def history(self, before: Exchange, limit: int, *, is_own: bool = False, pictures: int = 0) -> History:
        """Return the channel's last `limit` questions with an answer of the model, before this exchange.

        The newest `pictures` of them all, this one included, that have any come with their pictures.

        Exchanges whose answer is only a notice, or ended in an error, are left out.  With `is_own`, so are those of
        other people, and those before the channel's last 2,000.
        """
        ...

    async def record_shortening(self, channel: ChannelKey) -> None:
        """Note the announcement in the channel of left-out turns; clearing resets it."""
        ...

    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """Return the exchange of this message; its thread need not be known."""
        ...

    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """Return the exchange whose reply this platform message is a part of."""
        ...

    async def find_continued(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        """Return the question that this message, not its first one, is a part of."""
        ...

    async def has_history(self, channel: ChannelKey) -> bool:
        """Return whether the channel has exchanges, cleared ones included."""
        ...

    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        """Return the channel's newest question (of this author), to retry it; never a cleared one."""
        ...

    async def clear(self, channel: ChannelKey, before: Exchange | None = None, author: Author | None = None) -> int:
        """Delete the channel's exchanges, those of its threads included; return the number of questions.

        With `before`, only those before that exchange; with `author`, only those of that person.  Open commands stay: one of them may be
        the /clear, which is owed its reply.

        Texts and names are blanked, ids stay: a message that comes again is not answered
        again.  Quotations of the deleted messages and answers, in other threads or later, are
        deleted too: by the id of the quoted message where it is known, else by the words.
        When this returns, no row holds the text, and its key is deleted: what is left of it in
        the files of a SQLite database cannot be decrypted.  On a database server, its operator
        is responsible for logs and backups.

        Raises:
            NotErased: The rows are blank, but the texts were not encrypted yet, or the keys
                cannot be overwritten; the store does both by itself.
        """
        ...

    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        """Delete everything the person said, in all channels, and the answers, like `clear`.

        With `before`, open commands are deleted too; that exchange is the /forget, and stays.
        Texts of theirs among the settings are cleared; choices stay, without their name.

        Raises:
            NotErased: As for `clear`.
        """
        ...

    async def erase(self, exchange: Exchange) -> None:
        """Delete one exchange, like `clear`, without raising NotErased; its message still exists."""
        ...

    async def delete_messages(
        self, channel: ChannelKey, message_ids: Collection[str], *, is_expected: bool = False
    ) -> None:
        """Delete the exchanges of messages that were deleted, and quotations of them, like `erase`.

        An unknown message may still come: it is not stored then, nor answered, if it is
        expected or the channel has exchanges.  This is remembered for a day.
        """
        ...

    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        """Let quotations of an edited message, which may have no exchange, have its new text."""
        ...

    async def expire(self, before: datetime) -> int:
        """Delete everything said before this time, like `clear`, without raising NotErased; open ones stay.

        A quotation is as old as the message that contains it.
        """
        ...

    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        """Move the exchanges of a channel, its threads included, to its new id; return their number.

        Its settings and sums of use move too.  Where the platform has no servers but groups, the channel
        is its own server (`IncomingMessage.server`), which moves with it.

        The platform's messages stay behind: their ids get the old channel and a space in front
        (more than once if that id is taken), so that no message of the new channel is mistaken
        for one; quotations name them by these ids.  A second call moves none; after an error it moves the rest.
        """
        ...

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """Return the newest message of each channel, the channel of the newest last: where a backfill begins."""
        ...

    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        """Return the platform's exchanges said at this time or later, without cleared ones, oldest first."""
        ...

    async def said_in(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        """Return the channel's last exchanges without those of its threads and cleared ones, oldest first."""
        ...

    async def openings(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        """Return the first exchanges of the channel's newest threads that are not cleared, the newest thread first.

        A thread is as new as its last exchange.
        """
        ...

    async def settings(self) -> list[SettingChange]:
        """Return what is in force of the settings that were set in the chat, cleared ones included."""
        ...

    async def record_setting(self, change: SettingChange, cause: IncomingMessage | None = None) -> bool:
        """Store a setting that was set in the chat; the earlier value can be restored.

        Return False, and store nothing, if the same `cause` came before: a message or a press that has an id.
        """
        ...

    async def setting_changes(self, place: str | None, limit: int, setting: str | None = None) -> list[SettingChange]:
        """Return the latest changes of settings, or of one, in a place (`Scope.id`), or in all, newest first."""
        ...

    async def usage(self, scope: Scope, since: date) -> dict[date, UsageSum]:
        """Return what was used by day since then, of a person, channel, server or platform.

        It includes every answer whose `record_answer` was called before.
        """
        ...

    async def end_usage(self, running_since: date, before: date | None = None) -> None:
        """Delete what people used before the periods that run, and with `before` also what places used before that day.

        Days of a period that runs stay, however short the retention: quotas are checked with them.
        """
        ...

    async def vote(
        self, exchange: Exchange, voter: Author, vote: Vote, at: datetime, press: str | None = None
    ) -> VoteResult:
        """Store a person's vote on the answer that `exchange` has, in place of an earlier one; the same again takes it back.

        `press` is the platform's id of the press of a button: one that is delivered again, within a day, changes nothing.

        Votes are deleted with the answer, also when it is made again, and with the person's messages by `forget`.
        """
        ...

    async def react(self, exchange: Exchange, voter: Author, vote: Vote, at: datetime, *, is_added: bool) -> VoteResult:
        """Do as `vote` for a reaction with this meaning that was added or removed: the same again changes nothing."""
        ...

    async def own_votes(self, voter: Author, exchanges: Sequence[int]) -> dict[int, Vote]:
        """Return the votes of a person on the answers of these exchanges, by the exchange's id."""
        ...

    async def record_consent(self, person: Author, at: datetime | None) -> None:
        """Store since when a person agrees that answers to them are exported; None takes it back, as does `forget`."""
        ...

    async def has_consented(self, person: Author) -> bool:
        """Return whether a person agrees that answers to them are exported."""
        ...

    async def check(self) -> None:
        """Raise StoreError if a message could not be stored now; change nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
