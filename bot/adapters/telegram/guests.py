"""Guest mode: messages in chats where the bot is no member (Bot API 10.0).

A mention there is answered with one message, by the id of its query.  The message has an id of its own
kind, by which it is edited; it takes no buttons, as a press would not say in which chat it was.
"""

from collections.abc import Hashable

from telegram import Bot, InlineQueryResultArticle, InputTextMessageContent, LinkPreviewOptions
from telegram.error import BadRequest

from bot.adapters.telegram.client import is_unchanged, map_errors
from bot.adapters.telegram.markup import entities_of
from bot.adapters.telegram.rich import rich_message_of
from bot.adapters.telegram.rich_support import RichSupport
from bot.delivery.markdown.format import Rendered
from bot.domain import ChannelKey
from bot.errors import ChannelGone, MarkupRefused, MessageGone, ReplyFull
from bot.util.recent import RecentDict

# The thread of all conversations of guests; other threads have numbers.
_GUEST = "guest"
# Before the ids of private chats, questions and messages.
_PRIVATE, _QUERY, _MESSAGE = "private:", "query:", "inline:"
# Messages of guests whose last text is remembered; a text can be long.
_REMEMBERED = 256
NO_PREVIEW = LinkPreviewOptions(is_disabled=True)


def guest_key(channel: ChannelKey, query: str, *, is_private: bool) -> ChannelKey:
    """Return the key of the conversation that a question of a guest belongs to.

    A private chat between two people has the id of one of them, which other chats have too: each question there is a
    conversation by itself.

    >>> str(guest_key(ChannelKey("telegram", "-100", "7"), "9", is_private=False))
    'telegram:-100:guest'
    >>> str(guest_key(ChannelKey("telegram", "7000"), "9", is_private=True))
    'telegram:private:9:guest'
    """
    return ChannelKey(channel.platform, f"{_PRIVATE}{query}" if is_private else channel.channel, _GUEST)


def guest_question(query: str) -> str:
    return f"{_QUERY}{query}"


def is_guest(channel: ChannelKey) -> bool:
    return channel.thread == _GUEST


def lane(channel: ChannelKey) -> Hashable:
    """Return what a channel shares its pace with: the topics of a group are one, what a guest sends there is apart."""
    return channel.channel, is_guest(channel)


class GuestMessages:
    """Sends and edits the messages of a guest."""

    def __init__(self, bot: Bot, rich: RichSupport) -> None:
        self._bot = bot
        self._rich = rich
        # What differs in the buttons only is the same here.
        self._shown: RecentDict[str, Rendered] = RecentDict(_REMEMBERED)

    async def send(self, text: Rendered, question: str | None) -> str:
        """Answer the query of a question.

        Raises:
            ChannelGone: It is answered already, or too old.
            MarkupRefused: The first version of a message is a text.
            ReplyFull: This would be a second message.
        """
        if question is None:
            raise ReplyFull("a guest may send one message per question")
        if not question.startswith(_QUERY):
            raise ChannelGone(f"question {question} is none of a guest")
        if rich_message_of(text) is not None:
            raise MarkupRefused("an answer of a guest begins as a text")
        content = InputTextMessageContent(text.text, entities=entities_of(text), link_preview_options=NO_PREVIEW)
        with map_errors():
            sent = await self._bot.answer_guest_query(
                question.removeprefix(_QUERY), InlineQueryResultArticle("answer", "…", content)
            )
        return f"{_MESSAGE}{sent.inline_message_id}"

    async def edit(self, message_id: str, text: Rendered) -> None:
        if not message_id.startswith(_MESSAGE):
            raise MessageGone(f"message {message_id} is none of a guest")
        if self._shown.pop(message_id, None) == text:
            self._shown[message_id] = text
            return
        id, rich = message_id.removeprefix(_MESSAGE), rich_message_of(text)
        with map_errors():
            try:
                if rich is None:
                    await self._bot.edit_message_text(
                        text.text,
                        inline_message_id=id,
                        entities=entities_of(text),
                        link_preview_options=NO_PREVIEW,
                    )
                else:
                    with self._rich.calling():
                        await self._bot.edit_message_text(
                            None,  # type: ignore[arg-type]  # the library does not know blocks yet
                            inline_message_id=id,
                            api_kwargs={"rich_message": rich.facts},
                        )
            except BadRequest as error:
                if not is_unchanged(error):
                    raise
        self._shown[message_id] = text
