"""Telegram updates as messages, button presses and chat migrations."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import TypeVar

from telegram import CallbackQuery, Chat, Message, MessageEntity, Update, User

from bot.chat.commands import COMMANDS
from bot.domain import Action, Author, ChannelKey, IncomingMessage

T = TypeVar("T")

PLATFORM = "telegram"

_COMMAND = re.compile(r"/([A-Za-z0-9_]+)(?:@([A-Za-z0-9_]+))?(?=\s|$)")
# Telegram sends it when a chat with the bot is opened; it is answered like /help.
_START = "start"
_SPACE = " ".encode("utf-16-le")


class Addressee(Enum):
    """The addressee of a message."""

    BOT = auto()
    NOBODY = auto()
    ANOTHER_BOT = auto()


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """A user's message without the mention; pictures sent together share `album`."""

    message: IncomingMessage
    to: Addressee
    is_edit: bool = False
    album: str | None = None


@dataclass(frozen=True, slots=True)
class ButtonEvent:
    """A press of a button under one of the bot's messages; `query` is the id of the press."""

    query: str
    channel: ChannelKey
    message_id: str
    action: Action
    by: Author


@dataclass(frozen=True, slots=True)
class ChannelMigrated:
    """A group became a supergroup with a new id; both chats send this."""

    channel: ChannelKey
    to: str


def parse(update: Update, me: User) -> MessageEvent | ButtonEvent | ChannelMigrated | None:
    """Parse an update; None for a bot's message or a service message.

    The library does not validate types, so this may raise any of `PARSE_ERRORS`.
    """
    if update.callback_query is not None:
        return _button(update.callback_query)
    message = update.message or update.edited_message
    if message is None:
        return None
    if message.migrate_to_chat_id or message.migrate_from_chat_id:
        here = message.chat.id
        old, new = message.migrate_from_chat_id or here, message.migrate_to_chat_id or here
        return ChannelMigrated(ChannelKey(PLATFORM, _id(old)), _id(new))
    return _message(message, me, is_edit=update.message is None)


def _message(message: Message, me: User, *, is_edit: bool) -> MessageEvent | None:
    author = _author(message)
    if author.is_bot or not (message.text or message.caption or message.effective_attachment):
        return None
    is_direct = message.chat.type == Chat.PRIVATE
    text, is_mentioned = _without_mentions(message, me)
    text, to = _addressed(text, me, is_named=is_direct or is_mentioned)
    if to is Addressee.NOBODY and _is_from_bot(_replied_to(message), me):
        to = Addressee.BOT
    return MessageEvent(
        IncomingMessage(
            id=_id(message.message_id),
            channel=_channel(message),
            author=author,
            text=text,
            sent_at=_checked(message.date, datetime),
            server=None if is_direct else str(message.chat.id),
            is_direct=is_direct,
            locale=_text(message.from_user.language_code) if message.from_user else None,
            quoted=_text(_quoted(message, me)),
        ),
        to,
        is_edit,
        message.media_group_id,
    )


def _button(query: CallbackQuery) -> ButtonEvent | None:
    where = query.message
    if where is None or query.data not in list(Action):
        return None
    # An old message comes without its topic; the store finds it by its id.
    channel = _channel(where) if isinstance(where, Message) else ChannelKey(PLATFORM, _id(where.chat.id))
    return ButtonEvent(str(query.id), channel, str(where.message_id), Action(query.data), _user(query.from_user))


def _channel(message: Message) -> ChannelKey:
    topic = _id(message.message_thread_id) if message.is_topic_message else None
    return ChannelKey(PLATFORM, _id(message.chat.id), topic)


def _user(user: User) -> Author:
    return Author(PLATFORM, str(user.id), _text(user.full_name) or "", is_bot=bool(user.is_bot))


def _checked(value: object, kind: type[T]) -> T:
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


def _id(value: object) -> str:
    return str(_checked(value, int))


def _text(value: object) -> str | None:
    return None if value is None else _checked(value, str)


def _author(message: Message) -> Author:
    if (chat := message.sender_chat) is not None:
        # An anonymous admin, or a user writing as a channel; `from_user` is a placeholder then.
        return Author(PLATFORM, str(chat.id), _text(chat.title) or "", is_bot=bool(message.is_automatic_forward))
    if message.from_user is None or message.via_bot is not None:
        return Author(PLATFORM, "", "", is_bot=True)
    return _user(message.from_user)


def _without_mentions(message: Message, me: User) -> tuple[str, bool]:
    """Return the text without mentions of the bot, and whether there were any."""
    # Entities count UTF-16 code units.
    units = (message.text or message.caption or "").encode("utf-16-le", "surrogatepass")
    kept, at, is_mentioned = [], 0, False
    for entity in sorted(message.entities or message.caption_entities, key=lambda entity: entity.offset):
        begin, end = 2 * entity.offset, 2 * (entity.offset + entity.length)
        words = units[begin:end].decode("utf-16-le", "replace")
        if begin >= at and _names(entity, words, me):
            kept.append(units[at:begin])
            at = end + 2 if units[end : end + 2] == _SPACE else end
            is_mentioned = True
    kept.append(units[at:])
    return b"".join(kept).decode("utf-16-le", "surrogatepass").strip(), is_mentioned


def _names(entity: MessageEntity, words: str, me: User) -> bool:
    if entity.type == MessageEntity.TEXT_MENTION:
        return entity.user is not None and entity.user.id == me.id
    return entity.type == MessageEntity.MENTION and words.lower() == f"@{me.username}".lower()


def _addressed(text: str, me: User, *, is_named: bool) -> tuple[str, Addressee]:
    """Return the text without the bot's name in a command, and whom it addresses."""
    command = _COMMAND.match(text)
    if command is None:
        return text, Addressee.BOT if is_named else Addressee.NOBODY
    name, bot = command.group(1).lower(), command.group(2)
    rest = text[command.end() :]
    if bot is not None and bot.lower() != (me.username or "").lower():
        return text, Addressee.ANOTHER_BOT
    if bot is None and not is_named and name not in COMMANDS and name != _START:
        return text, Addressee.ANOTHER_BOT  # a group may have several bots
    return ("/help" if name == _START else f"/{name}{rest}"), Addressee.BOT


def _replied_to(message: Message) -> Message | None:
    replied = message.reply_to_message
    # In a topic every message replies to the one that opened it.
    return None if replied is None or replied.forum_topic_created is not None else replied


def _is_from_bot(message: Message | None, me: User) -> bool:
    return message is not None and message.from_user is not None and message.from_user.id == me.id


def _quoted(message: Message, me: User) -> str | None:
    """Return the part of another message that the author selected, or all of it.

    A whole message of the bot is left out: the model has it in its history.
    """
    if message.quote is not None:
        return message.quote.text
    replied = _replied_to(message)
    return None if replied is None or _is_from_bot(replied, me) else replied.text or replied.caption or None
