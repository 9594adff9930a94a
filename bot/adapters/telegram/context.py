"""Context messages on Telegram, where a bot knows only the messages that it received while it ran."""

from collections import deque
from dataclasses import replace

from bot.config.places import MOST_CONTEXT
from bot.domain import Author, ChannelKey, FurtherKind, FurtherMessage, IncomingMessage
from bot.util.recent import RecentDict

# Conversations of which messages are kept, in memory only.
_MOST_CONVERSATIONS = 1000


class TelegramContext:
    """Keeps the last messages of each conversation where they may be read."""

    def __init__(self) -> None:
        self._received: RecentDict[ChannelKey, deque[FurtherMessage]] = RecentDict(_MOST_CONVERSATIONS)

    def note(self, message: IncomingMessage, *, is_edit: bool = False) -> None:
        """Keep a message, or the new text of one that is kept."""
        kept = self._received.get(message.channel, deque(maxlen=MOST_CONTEXT))
        place, text = message.channel, message.text or message.quoted or ""
        known = [each.id for each in kept]
        if message.id in known:
            kept[known.index(message.id)] = replace(kept[known.index(message.id)], text=text)
        elif not is_edit:
            said = message.author, text, message.sent_at
            kept.append(FurtherMessage(message.id, place.channel, *said, FurtherKind.BEFORE, thread=place.thread))
        self._received[message.channel] = kept

    async def before(self, question: IncomingMessage, count: int) -> list[FurtherMessage]:
        """Return the messages before the question."""
        kept = self._received.get(_written_in(question), deque()) if question.id.isdecimal() else ()
        return [each for each in kept if int(each.id) < int(question.id)][-count:]

    def drop(self, channel: ChannelKey | None, author: Author | None) -> None:
        """Forget what was received in a channel and its threads, or there of a person, or of a person anywhere."""
        for place, kept in list(self._received.items()):
            is_here = channel in (None, place, replace(place, thread=None))
            if is_here and author is None:
                del self._received[place]
            elif is_here:
                left = [each for each in kept if author is None or each.author.key != author.key]
                self._received[place] = deque(left, maxlen=MOST_CONTEXT)


def _written_in(question: IncomingMessage) -> ChannelKey:
    """Return where a question was written: a topic, which has the id of its first message, may be newer."""
    channel = question.channel
    is_opened_for_answer = channel.thread is not None and int(channel.thread) > int(question.id)
    return replace(channel, thread=None) if is_opened_for_answer else channel
