"""Replies in the page: messages in memory, until the database has the whole answer."""

from collections.abc import Callable
from dataclasses import dataclass

from bot.delivery.markdown.format import MarkdownFormat, Rendered
from bot.domain import ChannelKey, Controls
from bot.errors import MessageGone
from bot.util.recent import RecentDict

# Characters of one message; a longer answer continues in another one below it.
_FORMAT = MarkdownFormat(20_000)
# Seconds between two edits of a reply, and edits a second of all replies together: each is rendered for each page.
_EDIT_INTERVAL = 0.1
_EDITS_PER_SECOND = 1000
# Messages kept: more than are in progress at once.
_KEPT = 500


@dataclass(slots=True)
class Message:
    """One message of a reply; `question` is None for one that an earlier run has sent."""

    channel: ChannelKey
    text: str
    controls: Controls
    question: str | None = None


class WebMessenger:
    """A Messenger.  A message's id is its nonce: sending it again, also after a restart, is the same message."""

    def __init__(self, changed: Callable[[Message], None], open_pages: Callable[[], int] = lambda: 0) -> None:
        """Call `changed` with the new content of each message that changes; `open_pages` counts its readers."""
        self._changed = changed
        self._open_pages = open_pages
        self.messages: RecentDict[str, Message] = RecentDict(_KEPT)
        self._deleted: RecentDict[str, None] = RecentDict()

    @property
    def format(self) -> MarkdownFormat:
        return _FORMAT

    def edit_interval(self, channel: ChannelKey) -> float:
        return max(_EDIT_INTERVAL, self._open_pages() / _EDITS_PER_SECOND)

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
        if continues is not None and (first := self.messages.get(continues)) is not None:
            reply_to = first.question
        self.messages[nonce] = message = Message(channel, text.text, controls, reply_to)
        self._changed(message)
        return nonce

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        if message_id in self._deleted:
            raise MessageGone(f"message {message_id} was deleted")
        known = self.messages.get(message_id)
        # The message of an earlier run is not in memory, and exists nevertheless.
        message = Message(channel, text.text, controls, None if known is None else known.question)
        self.messages[message_id] = message
        self._changed(message)

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        if message_id in self._deleted:
            raise MessageGone(f"message {message_id} was deleted")
        self._deleted[message_id] = None
        if (message := self.messages.pop(message_id, None)) is not None:
            self._changed(message)

    def reply(self, question: str, recorded: tuple[str, ...]) -> dict[str, Message]:
        """Return the messages of the reply to a question, in order; `recorded` are the ids in its row."""
        sent = (id for id, message in self.messages.items() if message.question == question)
        ids = dict.fromkeys((*recorded, *sent))
        return {id: self.messages[id] for id in ids if id in self.messages}
