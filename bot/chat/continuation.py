"""Messages that were sent as one: a long paste in pieces, an album, a comment with a file or a forward."""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bot.chat.commands import called_by
from bot.chat.worker import Worker
from bot.domain import ChannelKey, Exchange, FurtherKind, FurtherMessage, IncomingMessage, Kind
from bot.storage.base import Store
from bot.util.aio import race
from bot.util.clock import Clock
from bot.util.recent import RecentDict

# Between two messages that were sent as one, by the platform's clock; some count seconds, and may be off by one.
TOGETHER = timedelta(seconds=3)
_CLOCK_SKEW = timedelta(seconds=1)
# In a question together.
_LONGEST = timedelta(minutes=1)
_MOST_PARTS = 30
# Seconds that an unfinished question waits for its next part.
_WAIT = 1.0
# Seconds for which questions are remembered: of one that was sent together, also an event that was held up arrives by then.
_REMEMBERED = 60.0
# Share of the longest message from which a text may have been cut: clients cut at the end of a word or a line.
_FULL = 0.85
_COLONS = (":", "：")
_EMOJI = re.compile(r":[a-zA-Z_+-][\w+-]*:$")  # the notation of Slack and Discord, which is no colon

Place = tuple[str, str, str]
Conversation = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True)
class _Recent:
    """A question that this process has stored, and the newest message of it."""

    question: Exchange
    newest: IncomingMessage
    conversation: Conversation  # where it was written: its answer may be in a thread
    noted_at: float  # by the clock

    @property
    def has_words(self) -> bool:
        return bool(self.question.message.whole.text.strip())


class Continuations:
    """Finds the question that a message goes on with: one of its author, in its channel, of a moment ago.

    `longest` has the characters of the longest message that people can send, by platform; elsewhere each message is a question.
    """

    def __init__(self, store: Store, clock: Clock, began_at: datetime) -> None:
        self.longest: dict[str, int] = {}
        self._store = store
        self._clock = clock
        self._noted_since = began_at  # messages of before may have questions that are not in `_recent`
        self._recent: RecentDict[Place, _Recent] = RecentDict(1000)  # in the order in which they were noted

    def begin(self, at: datetime) -> None:
        """Look for the questions of messages from before this time in the store: another bot may have stored them."""
        self._noted_since = max(self._noted_since, at)

    def may_continue(self, message: IncomingMessage) -> bool:
        """Return whether a message that is not for the bot by itself may be more of a question."""
        return self.may_go_on(message.channel, message.author.id, message.sent_at)

    def may_go_on(self, channel: ChannelKey, author: str, sent_at: datetime) -> bool:
        """Return whether a message of this author may be more of a question, before it is parsed."""
        if channel.platform not in self.longest:
            return False
        recent = self._recent.get((channel.platform, channel.channel, author))
        is_recent = recent is not None and sent_at - recent.newest.sent_at <= TOGETHER
        return is_recent or self._may_be_unnoted(sent_at)

    def note(self, question: Exchange, newest: IncomingMessage) -> None:
        """Remember a question that was stored, or a part of it that was."""
        now = self._clock.now()
        while self._recent and next(iter(self._recent.values())).noted_at < now - _REMEMBERED:
            self._recent.popitem(last=False)
        if question.kind is not Kind.CHAT or self._is_whole(newest):
            self._recent.pop(_place(newest), None)
        else:
            self._recent[_place(newest)] = _Recent(question, newest, _conversation(newest), now)

    def forget(self, edited: IncomingMessage) -> None:
        """Let a question that was edited be whole: what follows goes on with its first text no more."""
        self._recent.pop(_place(edited), None)

    def pass_over(self, missed: IncomingMessage) -> None:
        """Look for the question of what follows a missed message in the store, which may have it."""
        self._recent.pop(_place(missed), None)
        self.begin(missed.sent_at)

    async def find(self, message: IncomingMessage, *, is_missed: bool = False) -> Exchange | None:
        """Return the question that the message is more of, if there is one; `is_missed` is one of the backlog.

        Raises:
            StoreError: The database cannot be read.
        """
        if self._is_whole(message) or called_by(message) is not None:
            return None
        recent = self._recent.get(_place(message))
        if recent is not None and not is_missed:
            return recent.question if self._goes_on(recent, message) else None
        if not (is_missed or self._may_be_unnoted(message.sent_at)):
            return None
        since = message.sent_at - _LONGEST
        for question in reversed(
            await self._store.asked_between(message.channel, message.author, since, message.sent_at + _CLOCK_SKEW)
        ):
            asked = question.message
            if message.id == asked.id or any(each.id == message.id for each in asked.continuations):
                return None
            if self._goes_on(self._stored(question), message):
                return question
        return None

    async def wait(self, worker: Worker) -> None:
        """Wait for a moment if more of a question seems to be on its way; with it another worker begins."""
        question = worker.exchange
        if self._is_whole(question.message):
            return
        recent = self._recent.get(_place(question.message))
        if recent is None and question.message.sent_at > self._noted_since - TOGETHER:
            recent = self._stored(question)
        if recent is None or recent.question.id != question.id or not self._awaits_more(recent, is_album=True):
            return
        seconds = recent.noted_at + _WAIT - self._clock.now()
        if seconds > 0:
            await race(self._clock.sleep(seconds), worker.wait_stopped())

    def _is_whole(self, message: IncomingMessage) -> bool:
        """Return whether a message is a question by itself: on some platforms each is, and one from a form is."""
        return message.channel.platform not in self.longest or message.reply_address is not None

    def _stored(self, question: Exchange) -> _Recent:
        """Return a question with its last part as the newest message."""
        asked = newest = question.message
        if asked.continuations:
            last = asked.continuations[-1]
            newest = replace(asked, id=last.id, text=last.text, sent_at=last.sent_at)
        return _Recent(question, newest, _conversation(asked), self._clock.now())

    def _goes_on(self, recent: _Recent, message: IncomingMessage) -> bool:
        asked, newest = recent.question.message, recent.newest
        if message.id == asked.id or message.id == newest.id or recent.conversation != _conversation(message):
            return False
        if (
            not (-_CLOCK_SKEW <= message.sent_at - newest.sent_at <= TOGETHER)
            or len(asked.continuations) >= _MOST_PARTS
        ):
            return False
        if message.album is not None and message.album == newest.album:
            return True
        if message.text.strip():
            return message.quoted is None and self._awaits_more(recent, is_album=False)
        is_reply = not message.is_forward and not (message.quoted is None and message.quoted_id is None)
        return message.is_forward or (bool(message.files) and not is_reply)

    def _awaits_more(self, recent: _Recent, *, is_album: bool) -> bool:
        newest, text = recent.newest, recent.newest.text.rstrip()
        longest = self.longest.get(newest.channel.platform, 0)
        if (is_album and newest.album is not None) or (text.endswith(_COLONS) and not _EMOJI.search(text)):
            return True
        if longest and len(newest.text) >= _FULL * longest:
            return True
        return not recent.has_words and (newest.quoted is None or newest.is_forward)

    def _may_be_unnoted(self, sent_at: datetime) -> bool:
        """Return whether what the message is more of may have been stored without a note."""
        return sent_at <= self._noted_since + TOGETHER


def to_continuation(message: IncomingMessage) -> FurtherMessage:
    """Return a message as a part of a question: what it forwards becomes the part's own.

    What the messages of an album reply to is quoted by the first of them.
    """
    is_forward = message.is_forward and not message.text.strip() and bool(message.quoted)
    kind = FurtherKind.FORWARD if is_forward else FurtherKind.CONTINUATION
    text = (message.quoted or "") if is_forward else message.text
    channel = message.channel.channel
    files = tuple(replace(file, is_quoted=False) for file in message.files if message.is_forward or not file.is_quoted)
    return FurtherMessage(message.id, channel, message.author, text, message.sent_at, kind, files)


def _place(message: IncomingMessage) -> Place:
    return message.channel.platform, message.channel.channel, message.author.id


def _conversation(message: IncomingMessage) -> Conversation:
    """Return where a message was written: one that opens a thread was written outside of it."""
    channel = message.channel
    return channel.platform, channel.channel, None if channel.thread == message.id else channel.thread
