"""What an update of Telegram tells, in our words: who said what to whom, or pressed what."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from telegram import CallbackQuery, Chat, Message, MessageEntity, Update, User

from bot.chat.commands import COMMANDS
from bot.domain import Action, Author, ChannelKey, IncomingMessage

PLATFORM = "telegram"

_COMMAND = re.compile(r"/([A-Za-z0-9_]+)(?:@([A-Za-z0-9_]+))?(?=\s|$)")
# Every chat with a bot begins with it; it greets, as /help does.
_START = "start"
_SPACE = " ".encode("utf-16-le")


class Addressee(Enum):
    """Whom a message is said to."""

    BOT = auto()
    NOBODY = auto()
    ANOTHER_BOT = auto()


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """A message of a person, without the bot's name in it; `album` is what pictures sent together have in common."""

    message: IncomingMessage
    to: Addressee
    is_edit: bool = False
    album: str | None = None


@dataclass(frozen=True, slots=True)
class ButtonEvent:
    """A button under one of the bot's messages; the press itself has the id `query`."""

    query: str
    channel: ChannelKey
    message_id: str
    action: Action
    by: Author


@dataclass(frozen=True, slots=True)
class ChannelMigrated:
    """A group became a supergroup, which has another id; both of them tell."""

    channel: ChannelKey
    to: str


def read(update: Update, me: User) -> MessageEvent | ButtonEvent | ChannelMigrated | None:
    """Read an update; None for what no person did: a pin, a new member, a bot's words.

    The library checks no types, so this may raise whatever wrong ones lead to
    (`UNREADABLE`); what it returns is sound.
    """
    if update.callback_query is not None:
        return _pressed(update.callback_query)
    message = update.message or update.edited_message
    if message is None:
        return None
    if message.migrate_to_chat_id or message.migrate_from_chat_id:
        here = message.chat.id
        old, new = message.migrate_from_chat_id or here, message.migrate_to_chat_id or here
        return ChannelMigrated(ChannelKey(PLATFORM, str(_whole(old))), str(_whole(new)))
    return _said(message, me, is_edit=update.message is None)


def _said(message: Message, me: User, *, is_edit: bool) -> MessageEvent | None:
    author = _author(message)
    if author.is_bot or not _has_content(message):
        return None
    is_direct = message.chat.type == Chat.PRIVATE
    text, is_mentioned = _without_mentions(message, me)
    text, to = _addressed(text, me, is_named=is_direct or is_mentioned)
    if to is Addressee.NOBODY and _answers_us(message, me):
        to = Addressee.BOT
    return MessageEvent(
        IncomingMessage(
            id=str(_whole(message.message_id)),
            channel=_channel(message),
            author=author,
            text=text,
            sent_at=_moment(message.date),
            server=None if is_direct else str(message.chat.id),
            is_direct=is_direct,
            locale=_text(message.from_user.language_code) if message.from_user else None,
            quoted=_text(_quoted(message, me)),
        ),
        to,
        is_edit,
        message.media_group_id,
    )


def _pressed(query: CallbackQuery) -> ButtonEvent | None:
    where = query.message
    if where is None or query.data not in list(Action):
        return None
    # Of an old message Telegram tells only where it is, and not in which topic; the store finds it by its id.
    channel = _channel(where) if isinstance(where, Message) else ChannelKey(PLATFORM, str(_whole(where.chat.id)))
    return ButtonEvent(str(query.id), channel, str(where.message_id), Action(query.data), _person(query.from_user))


def _channel(message: Message) -> ChannelKey:
    """Where it was said; a topic is a thread."""
    topic = str(_whole(message.message_thread_id)) if message.is_topic_message else None
    return ChannelKey(PLATFORM, str(_whole(message.chat.id)), topic)


def _person(user: User) -> Author:
    return Author(PLATFORM, str(user.id), _text(user.full_name) or "", is_bot=bool(user.is_bot))


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("a text is none")


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError("a number is none")


def _moment(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    raise TypeError("a moment is none")


def _author(message: Message) -> Author:
    if message.sender_chat is not None:
        # An admin who speaks as the group, or somebody as their channel: the user is then a stand-in.
        is_forwarded = bool(message.is_automatic_forward)
        return Author(
            PLATFORM, str(message.sender_chat.id), _text(message.sender_chat.title) or "", is_bot=is_forwarded
        )
    if message.from_user is None or message.via_bot is not None:
        return Author(PLATFORM, "", "", is_bot=True)
    return _person(message.from_user)


def _has_content(message: Message) -> bool:
    return bool(message.text or message.caption or message.effective_attachment)


def _without_mentions(message: Message, me: User) -> tuple[str, bool]:
    """The text without the bot's name, and whether it was there.

    Places are told in UTF-16 code units.
    """
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
    """Take the bot's name out of a command, and tell whom the message is said to."""
    command = _COMMAND.match(text)
    if command is None:
        return text, Addressee.BOT if is_named else Addressee.NOBODY
    name, bot = command.group(1).lower(), command.group(2)
    rest = text[command.end() :]
    if bot is not None and bot.lower() != (me.username or "").lower():
        return text, Addressee.ANOTHER_BOT
    if bot is None and not is_named and name not in COMMANDS and name != _START:
        return text, Addressee.ANOTHER_BOT  # several bots may sit in a group, and it is none of our commands
    return ("/help" if name == _START else f"/{name}{rest}"), Addressee.BOT


def _answers_us(message: Message, me: User) -> bool:
    replied = message.reply_to_message
    # In a topic everything replies to the message that opened it.
    return (
        replied is not None
        and replied.forum_topic_created is None
        and replied.from_user is not None
        and replied.from_user.id == me.id
    )


def _quoted(message: Message, me: User) -> str | None:
    """What the author marked of another message, or all of it; of ours, the model knows the rest."""
    if message.quote is not None:
        return message.quote.text
    replied = message.reply_to_message
    if replied is None or replied.forum_topic_created is not None or _answers_us(message, me):
        return None
    return replied.text or replied.caption or None
