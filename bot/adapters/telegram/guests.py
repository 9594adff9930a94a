"""Guest mode: messages in chats where the bot is no member (Bot API 10.0).

A mention there is answered with one message, by the id of its query.  The message has an id of its own
kind, by which it is edited; it takes no buttons, as a press would not say in which chat it was.
"""

from telegram import Bot, InlineQueryResultArticle, InputTextMessageContent, LinkPreviewOptions
from telegram.error import BadRequest

from bot.adapters.telegram.client import is_unchanged, map_errors
from bot.adapters.telegram.markup import entities_of
from bot.adapters.telegram.rich import rich_message_of
from bot.delivery.markdown.format import Rendered
from bot.domain import ChannelKey
from bot.errors import ChannelGone, MarkupRefused, MessageGone
from bot.util.recent import RecentDict

# Before the ids of chats, questions and messages.  The chat has another key than the one that a member has: the id
# of a private chat between two people is that of one of them.
_CHAT, _QUERY, _MESSAGE = "guest:", "query:", "inline:"
# Messages of guests whose last text is remembered; a text can be long.
_REMEMBERED = 256
NO_PREVIEW = LinkPreviewOptions(is_disabled=True)


def guest_chat(chat: str) -> str:
    return f"{_CHAT}{chat}"


def guest_question(query: str) -> str:
    return f"{_QUERY}{query}"


def is_guest(channel: ChannelKey) -> bool:
    return channel.channel.startswith(_CHAT)


class GuestMessages:
    """Sends and edits the messages of a guest."""

    def __init__(self, bot: Bot) -> None:
        self._bot = bot
        # What differs in the buttons only is the same here.
        self._shown: RecentDict[str, Rendered] = RecentDict(_REMEMBERED)

    async def send(self, text: Rendered, question: str | None) -> str:
        """Answer the query of a question.

        Raises:
            ChannelGone: It is answered already, or too old; or this would be a second message.
            MarkupRefused: The first version of a message is a text.
        """
        if question is None or not question.startswith(_QUERY):
            raise ChannelGone("a guest may send one message per question")
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
                    await self._bot.edit_message_text(
                        None,  # type: ignore[arg-type]  # the library does not know blocks yet
                        inline_message_id=id,
                        api_kwargs={"rich_message": rich.facts},
                    )
            except BadRequest as error:
                if not is_unchanged(error):
                    raise
        self._shown[message_id] = text
