"""Telegram replies: send, edit, delete."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import structlog
from telegram import (
    Bot,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    Message,
    ReplyParameters,
)
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated

from bot.adapters.send_once import SendOnce
from bot.adapters.telegram.client import is_unchanged, map_errors
from bot.adapters.telegram.guests import NO_PREVIEW, GuestMessages, is_guest
from bot.adapters.telegram.lost_messages import KnownMessages, LostMessages
from bot.adapters.telegram.markup import TelegramFormat, entities_of
from bot.adapters.telegram.rich import RichFormat, RichMessage, rich_message_of
from bot.adapters.telegram.rich_support import RichSupport
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.i18n import gettext_noop
from bot.delivery.markdown.format import Rendered
from bot.delivery.threads import title
from bot.domain import Action, ChannelKey, Controls, IncomingMessage
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    MarkupRefused,
    MessageGone,
    PlatformUnavailable,
    ThreadRefused,
)
from bot.util.clock import MonotonicClock
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Symbols, as the reader's language is not known here.
_SYMBOLS = {Action.STOP: "⏹️", Action.RETRY: "🔄", Action.UP: "👍", Action.DOWN: "👎"}
_MINUTE = 60.0
NO_RIGHT = gettext_noop("I cannot open topics here: make me an administrator of the group who may manage topics.")


class TelegramMessenger:
    """A Messenger; `rename_channel` is called when a group becomes a supergroup with a new id."""

    def __init__(
        self,
        bot: Bot,
        settings: TelegramSection,
        rename_channel: Callable[[ChannelKey, str], Awaitable[None]],
        known: KnownMessages,
        *,
        rich: RichSupport | None = None,
    ) -> None:
        self._bot = bot
        self._rich = rich or RichSupport(MonotonicClock(), is_known=False)
        self._guests = GuestMessages(bot, self._rich)
        self._settings = settings
        self._rename_channel = rename_channel
        self._once = SendOnce()
        self._lost = LostMessages(known, self._with_buttons)
        self._supergroups: dict[int, int] = {}
        # Messages in supergroups, by the group's former id: a reply in progress goes on under that one.
        self._moved: RecentDict[tuple[str, str], None] = RecentDict()

    @property
    def format(self) -> TelegramFormat | RichFormat:
        return RichFormat() if self._rich.is_on else TelegramFormat()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._settings.edit_interval if is_private(channel) else self._settings.edit_interval_group

    def calls_per_minute(self, channel: ChannelKey) -> int | None:
        """Return how many messages and edits a group allows its members in a minute; None elsewhere."""
        if is_private(channel) or is_guest(channel):
            return None  # the query of a guest is too old after a while: its answer must not wait for a budget
        return max(2, round(_MINUTE / self.edit_interval(channel)))

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
        if is_guest(channel):
            return await self._guests.send(text, reply_to)
        is_new = self._once.is_in_doubt(nonce)

        async def find() -> str | None:
            after = reply_to or continues or ""
            return await self._find(channel, text, controls, reply_to, nonce, after, is_new=is_new)

        if may_exist:
            self._once.maybe_sent(nonce)
        id = await self._once.send(nonce, lambda: self._post(channel, text, reply_to, _buttons(controls)), find)
        self._lost.record(channel, id)
        if self._is_migrated(channel):
            self._moved[channel.channel, id] = None
        return id

    async def show_form(
        self,
        channel: ChannelKey,
        text: Rendered,
        keyboard: InlineKeyboardMarkup,
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> None:
        """Show a form in the message that has one, or in a new one."""
        if message_id is None:
            # A search for lost messages takes the buttons of unknown ones away.
            self._lost.record(channel, await self._post(channel, text, reply_to, keyboard))
        else:
            await self._edit(channel, message_id, text, keyboard)

    async def open_thread(self, question: IncomingMessage) -> ChannelKey:
        """Open a topic for the answer to a question outside topics.

        If the response is lost, the next call opens another one: Telegram does not tell which there are.

        Raises:
            ThreadRefused: The group has no topics, or the bot may not open one.
            PlatformUnavailable, RateLimited: The call may be repeated.
        """
        try:
            async with self._calling(question.channel) as chat:
                topic = await self._bot.create_forum_topic(chat, title(question))
        except AccessDenied as denied:
            raise ThreadRefused(str(denied), NO_RIGHT) from denied
        except (ChannelGone, ContentRefused, EditRefused, MarkupRefused, MessageGone) as refused:
            raise ThreadRefused(str(refused)) from refused  # the group has no topics
        return replace(question.channel, thread=str(topic.message_thread_id))

    async def show_typing(self, channel: ChannelKey) -> None:
        """Show for five seconds that the bot writes; in a private chat with drafts they say so already."""
        if is_guest(channel) or (self._settings.drafts and is_private(channel)):
            return
        async with self._calling(channel) as chat:
            await self._bot.send_chat_action(chat, ChatAction.TYPING, message_thread_id=thread_id(channel))

    async def send_direct(self, message: IncomingMessage, text: str) -> None:
        """Send a text to the author of a message in their private chat.

        Raises:
            AccessDenied: The author is a group, that is an administrator who writes anonymously.
        """
        if message.author.is_group:
            raise AccessDenied("an anonymous administrator has no private chat")
        await self._post(ChannelKey(message.channel.platform, message.author.id), Rendered(text), None, None)

    async def _post(
        self, channel: ChannelKey, text: Rendered, reply_to: str | None, keyboard: InlineKeyboardMarkup | None
    ) -> str:
        async with self._calling(channel) as chat:
            question = self._referred(channel, reply_to)
            reply = None if question is None else ReplyParameters(question, allow_sending_without_reply=True)
            if (rich := rich_message_of(text)) is not None:
                with self._rich.calling():
                    return await self._send_rich(chat, rich, thread_id(channel), reply, keyboard)
            message = await self._bot.send_message(
                chat,
                text.text,
                entities=entities_of(text),
                message_thread_id=thread_id(channel),
                reply_parameters=reply,
                reply_markup=keyboard,
                link_preview_options=NO_PREVIEW,
            )
        return str(message.message_id)

    async def _send_rich(
        self,
        chat: int,
        rich: RichMessage,
        topic: int | None,
        reply: ReplyParameters | None,
        keyboard: InlineKeyboardMarkup | None,
    ) -> str:
        arguments = {
            "chat_id": chat,
            "rich_message": rich.facts,
            "message_thread_id": topic,
            "reply_parameters": reply,
            "reply_markup": keyboard,
        }
        given = {name: value for name, value in arguments.items() if value is not None}
        sent: dict[str, Any] = await self._bot.do_api_request("sendRichMessage", given)
        return str(sent["message_id"])

    def _referred(self, channel: ChannelKey, reply_to: str | None) -> int | None:
        """Return the number of the message that is replied to; in a private chat every message is for the same user."""
        if reply_to is None or is_private(channel) or self._is_migrated(channel):
            return None
        return _number(reply_to)

    async def _find(
        self,
        channel: ChannelKey,
        text: Rendered,
        controls: Controls,
        reply_to: str | None,
        nonce: str,
        after: str,
        *,
        is_new: bool,
    ) -> str | None:
        """Return the id of the message that an earlier send has left after message `after`; it shows this text then."""
        number = _number(after)
        if number is None or self._is_migrated(channel):
            return None
        question = self._referred(channel, reply_to)
        found = await self._lost.find(channel, nonce, text.text, question=question, after=number, is_new=is_new)
        if found is None:
            return None
        try:
            await self.edit(channel, str(found), text, controls=controls)
        except (EditRefused, MessageGone):
            return None
        log.info("a message that was sent before is continued", channel=str(channel), message=str(found))
        return str(found)

    async def _with_buttons(self, channel: ChannelKey, number: int, controls: Controls) -> Message | None:
        """Change the buttons of a message and return it; None for one that had these before."""
        try:
            async with self._calling(channel) as chat:
                message = await self._bot.edit_message_reply_markup(chat, number, reply_markup=_buttons(controls))
        except MarkupRefused:  # what an unknown refusal becomes, and "message is not modified"
            return None
        assert isinstance(message, Message), "an edit of a message in a chat returns it"
        return message

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        if is_guest(channel):
            await self._guests.edit(message_id, text)
            return
        await self._edit(channel, message_id, text, _buttons(controls))

    async def _edit(
        self, channel: ChannelKey, message_id: str, text: Rendered, keyboard: InlineKeyboardMarkup | None
    ) -> None:
        rich = rich_message_of(text)
        async with self._calling(channel) as chat:
            number = self._number_of(channel, message_id)
            try:
                if rich is not None:
                    with self._rich.calling():
                        await self._bot.edit_message_text(
                            None,  # type: ignore[arg-type]  # the library does not know blocks yet
                            chat,
                            number,
                            reply_markup=keyboard,
                            api_kwargs={"rich_message": rich.facts},
                        )
                    return
                await self._bot.edit_message_text(
                    text.text,
                    chat,
                    number,
                    entities=entities_of(text),
                    reply_markup=keyboard,
                    link_preview_options=NO_PREVIEW,
                )
            except BadRequest as error:
                if not is_unchanged(error):
                    raise

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        if is_guest(channel):
            raise MessageGone("a guest cannot delete its messages")
        async with self._calling(channel) as chat:
            await self._bot.delete_message(chat, self._number_of(channel, message_id))

    def _is_migrated(self, channel: ChannelKey) -> bool:
        """Return whether this is the id that a group had before it became a supergroup."""
        return int(channel.channel) in self._supergroups

    def _number_of(self, channel: ChannelKey, message_id: str) -> int:
        """Return the message's number in the current chat.

        Raises:
            MessageGone: It is in the former chat; in the supergroup another message has its number.
        """
        number = _number(message_id)
        if number is None or (self._is_migrated(channel) and (channel.channel, message_id) not in self._moved):
            raise MessageGone(f"message {message_id} is in the group's former chat")
        return number

    @asynccontextmanager
    async def _calling(self, channel: ChannelKey) -> AsyncIterator[int]:
        """Yield the chat's current id."""
        chat = int(channel.channel)
        with map_errors():
            try:
                yield self._supergroups.get(chat, chat)
            except ChatMigrated as error:
                await self._rename_channel(channel, str(error.new_chat_id))
                self._supergroups[chat] = error.new_chat_id
                raise PlatformUnavailable("the group became a supergroup; the next call uses its new id") from error


def is_private(channel: ChannelKey) -> bool:
    """Return whether this is a private chat with the bot: users have positive ids, groups negative ones."""
    return not (channel.channel.startswith("-") or is_guest(channel))


def thread_id(channel: ChannelKey) -> int | None:
    return None if channel.thread is None else int(channel.thread)


def _number(message_id: str) -> int | None:
    """Return the message's number; None for a message from before its group migrated."""
    return int(message_id) if message_id.isdecimal() else None


def _buttons(controls: Controls) -> InlineKeyboardMarkup | None:
    if not controls:
        return None
    row = [
        InlineKeyboardButton(_SYMBOLS[action], callback_data=action.value) for action in Action if action in controls
    ]
    return InlineKeyboardMarkup([row])
