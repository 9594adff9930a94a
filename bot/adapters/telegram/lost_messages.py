"""Find a message of the bot on Telegram whose id it never learned."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from typing import Protocol

from telegram import Message

from bot.delivery.view import PLACEHOLDER
from bot.domain import Action, ChannelKey, Controls
from bot.errors import EditRefused, MessageGone
from bot.util.recent import RecentDict

# Messages unknown to the database that are tried in each of the three places.
_MOST_PROBES = 8
# Numbers in a row without a message that end the search in a group, whose messages are numbered without gaps.
_MOST_GAPS = 3


class KnownMessages(Protocol):
    """What the database knows of a platform's messages; `bot.chat.intake.Intake` implements it."""

    async def is_known(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the message has an exchange."""
        ...

    async def is_reply(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether the message is known to carry a reply."""
        ...

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        """Return the newest message known per channel."""
        ...


class SetButtons(Protocol):
    async def __call__(self, channel: ChannelKey, number: int, controls: Controls) -> Message | None:
        """Change the buttons of a message and return it; None for one that had these before.

        Raises:
            MessageGone: No message has this number.
            EditRefused: It is not the bot's.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Own:
    """A message of the bot that the database does not know; its buttons are gone."""

    text: str
    replies_to: int | None
    had_buttons: bool

    def carries(self, text: str, question: int | None) -> bool:
        """Return whether a send of this text in reply to this question has left it.

        It has the same words or still "…"; one with buttons is also known by the question that it replies to.
        """
        if question is not None and self.replies_to != question:
            return False
        # Telegram may change the white space of a text.
        is_same = "".join(self.text.split()) in ("".join(text.split()), PLACEHOLDER)
        return is_same or (self.had_buttons and question is not None)


class _Nothing(Enum):
    GAP = auto()  # no message has this number
    OTHERS = auto()  # it is not the bot's


class LostMessages:
    """Finds messages whose sends left no id: the response was lost, or the bot was killed.

    Telegram has no nonces and its history cannot be read, but a bot may change the buttons of its
    own messages and gets the message back.  So numbers that the database does not know are tried:
    after the question, and after and before the newest known message, where a run after a restart
    has sent it.  Messages of people are not changed by that.

    A chat has one call at a time, so an earlier run has left at most one message there: one search
    is enough for all replies of that chat, and what it finds may be another question's.
    """

    def __init__(self, known: KnownMessages, set_buttons: SetButtons) -> None:
        self._known = known
        self._set_buttons = set_buttons
        self._sent: RecentDict[tuple[str, str], None] = RecentDict()
        self._searched: RecentDict[ChannelKey, None] = RecentDict()
        # By chat: own messages that replied to none of the questions they were looked for.
        self._unclaimed: RecentDict[str, dict[int, _Own]] = RecentDict()
        # By nonce: a search goes on where a failed call has ended it.
        self._probed: RecentDict[str, dict[int, _Own | _Nothing]] = RecentDict()

    def record(self, channel: ChannelKey, message_id: str) -> None:
        """Remember a message that this run has sent: it is not lost."""
        self._sent[channel.channel, message_id] = None

    async def find(
        self, channel: ChannelKey, nonce: str, text: str, *, question: int | None, after: int, is_new: bool
    ) -> int | None:
        """Return the number of the lost message; its buttons are gone then.

        It stands behind message `after`, shows `text` or still "…", and replies to `question`, by which
        it is also known; None in private chats.  `nonce` identifies the send: a search that raised goes
        on with the next call.  With `is_new` this run has lost it, after earlier searches.

        Raises:
            PlatformError: A call failed.
            StoreError: The known messages cannot be read.
        """
        unclaimed = self._unclaimed.setdefault(channel.channel, {})
        for number, own in unclaimed.items():
            if own.carries(text, question):
                del unclaimed[number]
                return number
        if channel in self._searched and not is_new:
            return None
        probed = self._probed.setdefault(nonce, {})
        newest = max(after, await self._newest(channel))
        for numbers in (count(after + 1), count(newest + 1), range(newest - 1, after, -1)):
            async with aclosing(self._own_messages(channel, numbers, probed)) as own_messages:
                async for number, own in own_messages:
                    if own.carries(text, question):
                        self._probed.pop(nonce, None)
                        return number
                    if number not in unclaimed and not own.had_buttons:
                        await self._set_buttons(channel, number, frozenset())
                    unclaimed[number] = own
        self._searched[channel] = None
        self._probed.pop(nonce, None)
        return None

    async def _newest(self, channel: ChannelKey) -> int:
        known = await self._known.last_message_ids(channel.platform)
        return max(
            (int(id) for key, id in known.items() if key.channel == channel.channel and id.isdecimal()), default=0
        )

    async def _own_messages(
        self, channel: ChannelKey, numbers: Iterable[int], probed: dict[int, _Own | _Nothing]
    ) -> AsyncGenerator[tuple[int, _Own], None]:
        """Yield the bot's own among the unknown messages, until enough were tried."""
        probes = gaps = 0
        for number in numbers:
            if await self._has(channel, str(number)):
                gaps = 0
                continue
            if number not in probed:
                probed[number] = await self._probe(channel, number)
            found = probed[number]
            if isinstance(found, _Own):
                yield number, found
            probes += 1
            gaps = gaps + 1 if found is _Nothing.GAP else 0
            is_group = channel.channel.startswith("-")
            if probes == _MOST_PROBES or (gaps == _MOST_GAPS and is_group):
                break

    async def _has(self, channel: ChannelKey, id: str) -> bool:
        return (
            (channel.channel, id) in self._sent
            or await self._known.is_known(channel, id)
            or await self._known.is_reply(channel, id)
        )

    async def _probe(self, channel: ChannelKey, number: int) -> _Own | _Nothing:
        """Take a message's buttons away, which shows it; one without gets a button for that."""
        try:
            message = await self._set_buttons(channel, number, frozenset())
            had_buttons = message is not None
            if message is None:
                message = await self._set_buttons(channel, number, frozenset({Action.STOP}))
        except MessageGone:
            return _Nothing.GAP
        except EditRefused:
            return _Nothing.OTHERS
        if message is None:
            return _Nothing.OTHERS
        replied = message.reply_to_message
        return _Own(message.text or "", None if replied is None else replied.message_id, had_buttons)
