"""The verbs that a growing reply needs, on Telegram."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from telegram import (
    Bot,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    MessageEntity,
    ReplyParameters,
)
from telegram.error import BadRequest, ChatMigrated

from bot.adapters.telegram.client import is_unchanged, map_errors
from bot.adapters.telegram.markup import Entity, TelegramFormat
from bot.adapters.telegram.settings import TelegramSection
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls
from bot.errors import MessageGone, PlatformUnavailable

# Told the channel and its new id.
Moved = Callable[[ChannelKey, str], Awaitable[None]]

# Signs and no words: the reader's language is not known where a button is made.
_FACES = {Action.STOP: "⏹️", Action.RETRY: "🔄"}
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)


class TelegramMessenger:
    """A Messenger; `moved` is told when a group becomes a supergroup, which has another id.

    Telegram knows no nonces: where the answer to a send is lost, a "…" stays behind.
    """

    def __init__(self, bot: Bot, settings: TelegramSection, moved: Moved) -> None:
        self._bot = bot
        self._settings = settings
        self._moved = moved
        self._supergroups: dict[int, int] = {}

    @property
    def format(self) -> TelegramFormat:
        return TelegramFormat()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._settings.edit_interval if is_private(channel) else self._settings.edit_interval_group

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        # Between two people everything is an answer; in a group it must be seen to what.
        question = _number(reply_to) if reply_to is not None and not is_private(channel) else None
        async with self._calling(channel) as chat:
            message = await self._bot.send_message(
                chat,
                text.text,
                entities=entities_of(text),
                message_thread_id=thread_id(channel),
                reply_parameters=None
                if question is None
                else ReplyParameters(question, allow_sending_without_reply=True),
                reply_markup=_buttons(controls),
                link_preview_options=_NO_PREVIEW,
            )
        return str(message.message_id)

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        async with self._calling(channel) as chat:
            try:
                await self._bot.edit_message_text(
                    text.text,
                    chat,
                    _known(message_id),
                    entities=entities_of(text),
                    reply_markup=_buttons(controls),
                    link_preview_options=_NO_PREVIEW,
                )
            except BadRequest as error:
                if not is_unchanged(error):
                    raise

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        async with self._calling(channel) as chat:
            await self._bot.delete_message(chat, _known(message_id))

    @asynccontextmanager
    async def _calling(self, channel: ChannelKey) -> AsyncIterator[int]:
        """Yield the chat's id of today."""
        chat = int(channel.channel)
        with map_errors():
            try:
                yield self._supergroups.get(chat, chat)
            except ChatMigrated as error:
                await self._moved(channel, str(error.new_chat_id))
                self._supergroups[chat] = error.new_chat_id
                raise PlatformUnavailable("the group has become a supergroup; it is called there next") from error


def is_private(channel: ChannelKey) -> bool:
    """Whether one person talks to the bot there: people have positive ids, groups negative ones."""
    return not channel.channel.startswith("-")


def thread_id(channel: ChannelKey) -> int | None:
    return None if channel.thread is None else int(channel.thread)


def _number(message_id: str) -> int | None:
    """The number of a message; None for one that stayed behind when its group got another id."""
    return int(message_id) if message_id.isdecimal() else None


def _known(message_id: str) -> int:
    number = _number(message_id)
    if number is None:
        raise MessageGone(f"message {message_id} stayed behind in the former group")
    return number


def entities_of(text: Rendered) -> list[MessageEntity]:
    return [
        MessageEntity(entity.kind, entity.offset, entity.length, url=entity.url, language=entity.language)
        for entity in text.entities
        if isinstance(entity, Entity)
    ]


def _buttons(controls: Controls) -> InlineKeyboardMarkup | None:
    if not controls:
        return None
    return InlineKeyboardMarkup(
        [[InlineKeyboardButton(_FACES[action], callback_data=action.value) for action in sorted(controls)]]
    )
