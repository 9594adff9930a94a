"""What Telegram tells of a message, in our words, and whether it was said to the bot."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from telegram import Chat, Message, MessageEntity, User

from bot.commands import COMMANDS
from bot.domain import Author, ChannelKey, IncomingMessage

PLATFORM = "telegram"

_COMMAND = re.compile(r"/([A-Za-z0-9_]+)(?:@([A-Za-z0-9_]+))?(?=\s|$)")
# Every chat with a bot begins with it; it greets, as /help does.
_START = "start"


class Addressee(Enum):
    """Whom a message is said to."""

    US = auto()
    NOBODY = auto()
    ANOTHER_BOT = auto()


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of a person, without the bot's name in it."""

    message: IncomingMessage
    to: Addressee


def heard(message: Message, me: User) -> Heard | None:
    """Read a message; None for what no person said: a pin, a new member, a bot's words."""
    author = _author(message)
    if author.is_bot or not _has_content(message):
        return None
    text, is_mentioned = _without_mentions(message, me)
    text, to = _addressed(text, me, is_direct=message.chat.type == Chat.PRIVATE)
    if to is Addressee.NOBODY and (is_mentioned or _answers_us(message, me)):
        to = Addressee.US
    return Heard(
        IncomingMessage(
            id=str(message.message_id),
            channel=channel_of(message),
            author=author,
            text=text,
            sent_at=message.date,
            server=None if message.chat.type == Chat.PRIVATE else str(message.chat.id),
            is_direct=message.chat.type == Chat.PRIVATE,
            locale=message.from_user.language_code if message.from_user else None,
            quoted=_quoted(message, me),
        ),
        to,
    )


def channel_of(message: Message) -> ChannelKey:
    """Where it was said; a topic is a thread."""
    topic = str(message.message_thread_id) if message.is_topic_message else None
    return ChannelKey(PLATFORM, str(message.chat.id), topic)


def author_from(user: User) -> Author:
    return Author(PLATFORM, str(user.id), user.full_name, is_bot=user.is_bot)


def _author(message: Message) -> Author:
    if message.sender_chat is not None:
        # An admin who speaks as the group, or somebody as their channel: the user is then a stand-in.
        is_forwarded = bool(message.is_automatic_forward)
        return Author(PLATFORM, str(message.sender_chat.id), message.sender_chat.title or "", is_bot=is_forwarded)
    if message.from_user is None or message.via_bot is not None:
        return Author(PLATFORM, "", "", is_bot=True)
    return author_from(message.from_user)


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
            at = end + len(" ".encode("utf-16-le")) * (units[end : end + 2] == " ".encode("utf-16-le"))
            is_mentioned = True
    kept.append(units[at:])
    return b"".join(kept).decode("utf-16-le", "surrogatepass").strip(), is_mentioned


def _names(entity: MessageEntity, words: str, me: User) -> bool:
    if entity.type == MessageEntity.TEXT_MENTION:
        return entity.user is not None and entity.user.id == me.id
    return entity.type == MessageEntity.MENTION and words.lower() == f"@{me.username}".lower()


def _addressed(text: str, me: User, *, is_direct: bool) -> tuple[str, Addressee]:
    """Take the bot's name out of a command, and tell whom the message is said to."""
    command = _COMMAND.match(text)
    if command is None:
        return text, Addressee.US if is_direct else Addressee.NOBODY
    name, bot = command.group(1).lower(), command.group(2)
    rest = text[command.end() :]
    if bot is not None and bot.lower() != (me.username or "").lower():
        return text, Addressee.ANOTHER_BOT
    if bot is None and not is_direct and name not in COMMANDS and name != _START:
        return text, Addressee.ANOTHER_BOT  # several bots may sit in a group, and it is none of our commands
    return ("/help" if name == _START else f"/{name}{rest}"), Addressee.US


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
