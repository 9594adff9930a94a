"""Telegram replies: send, edit, delete."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from telegram import Bot, InlineKeyboardButton, InlineKeyboardMarkup, LinkPreviewOptions, MessageEntity, ReplyParameters
from telegram.error import BadRequest, ChatMigrated

from bot.adapters.telegram.client import is_unchanged, map_errors
from bot.adapters.telegram.markup import Entity, TelegramFormat
from bot.adapters.telegram.settings import TelegramSection
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls
from bot.errors import MessageGone, PlatformUnavailable
from bot.util.recent import RecentDict

# Symbols, as the reader's language is not known here.
_SYMBOLS = {Action.STOP: "⏹️", Action.RETRY: "🔄"}
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)


class TelegramMessenger:
    """A Messenger; `rename_channel` is called when a group becomes a supergroup with a new id.

    Telegram has no nonces and its history cannot be read: where the response to a send
    is lost, a "…" remains.
    """

    # The "…" is not looked for by its number: in a private chat users' messages are numbered in the same
    # row and a bot can delete them, in groups everybody's; a wrong guess would delete a person's words.

    def __init__(
        self, bot: Bot, settings: TelegramSection, rename_channel: Callable[[ChannelKey, str], Awaitable[None]]
    ) -> None:
        self._bot = bot
        self._settings = settings
        self._rename_channel = rename_channel
        self._supergroups: dict[int, int] = {}
        # Messages in supergroups, by the group's former id: a reply in progress goes on under that one.
        self._moved: RecentDict[tuple[str, str], None] = RecentDict()

    @property
    def format(self) -> TelegramFormat:
        return TelegramFormat()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._settings.edit_interval if is_private(channel) else self._settings.edit_interval_group

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
        async with self._calling(channel) as chat:
            is_moved = self._is_migrated(channel)
            # In a private chat every message is for the same user.
            question = None if reply_to is None or is_private(channel) or is_moved else _number(reply_to)
            reply = None if question is None else ReplyParameters(question, allow_sending_without_reply=True)
            message = await self._bot.send_message(
                chat,
                text.text,
                entities=entities_of(text),
                message_thread_id=thread_id(channel),
                reply_parameters=reply,
                reply_markup=_buttons(controls),
                link_preview_options=_NO_PREVIEW,
            )
        id = str(message.message_id)
        if is_moved:
            self._moved[channel.channel, id] = None
        return id

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        async with self._calling(channel) as chat:
            try:
                await self._bot.edit_message_text(
                    text.text,
                    chat,
                    self._number_of(channel, message_id),
                    entities=entities_of(text),
                    reply_markup=_buttons(controls),
                    link_preview_options=_NO_PREVIEW,
                )
            except BadRequest as error:
                if not is_unchanged(error):
                    raise

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
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
    """Return whether this is a private chat: users have positive ids, groups negative ones."""
    return not channel.channel.startswith("-")


def thread_id(channel: ChannelKey) -> int | None:
    return None if channel.thread is None else int(channel.thread)


def _number(message_id: str) -> int | None:
    """Return the message's number; None for a message from before its group migrated."""
    return int(message_id) if message_id.isdecimal() else None


def entities_of(text: Rendered) -> list[MessageEntity]:
    return [
        MessageEntity(entity.kind, entity.offset, entity.length, url=entity.url, language=entity.language)
        for entity in text.entities
        if isinstance(entity, Entity)
    ]


def _buttons(controls: Controls) -> InlineKeyboardMarkup | None:
    if not controls:
        return None
    row = [InlineKeyboardButton(_SYMBOLS[action], callback_data=action.value) for action in sorted(controls)]
    return InlineKeyboardMarkup([row])
