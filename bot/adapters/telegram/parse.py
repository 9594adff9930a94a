"""Telegram updates as messages, button presses and chat migrations."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto

from telegram import Chat, MessageEntity, User

from bot.adapters.malformed import PARSE_ERRORS
from bot.adapters.quotation import Quotation
from bot.adapters.telegram.fields import Fields, required
from bot.adapters.telegram.files import files_of
from bot.adapters.telegram.forms import FormEvent, read_data
from bot.adapters.telegram.guests import guest_key, guest_question
from bot.adapters.telegram.quotations import described, is_forwarded_from, is_reply, is_reply_to_bot, quoted
from bot.adapters.telegram.text import links_of, rewritten, utf_16, words_at
from bot.chat.commands import COMMANDS
from bot.chat.feedback import vote_of
from bot.delivery.markdown.format import utf16_units
from bot.domain import Action, Author, ChannelKey, IncomingMessage, Vote

PLATFORM = "telegram"
# Characters of a message that people send; their apps cut a longer text into several messages.
LONGEST_TEXT = 4096

_COMMAND = re.compile(r"/([A-Za-z0-9_]+)(?:@([A-Za-z0-9_]+))?(?=\s|$)")
# Telegram sends it when a chat with the bot is opened; it is answered like /help.
_START = "start"
# Contents of a message that is no service message, beside text and caption.
_ATTACHMENTS = (
    *("animation", "audio", "checklist", "contact", "dice", "document", "game", "invoice", "live_photo", "location"),
    *(
        "paid_media",
        "passport_data",
        "photo",
        "poll",
        "rich_message",
        "sticker",
        "story",
        "successful_payment",
        "venue",
        "video",
    ),
    *("video_note", "voice"),
)


class Addressee(Enum):
    """The addressee of a message."""

    BOT = auto()
    NOBODY = auto()
    NOBODY_WITHOUT_WORDS = auto()
    ANOTHER_PERSON = auto()
    ANOTHER_BOT = auto()


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """A user's message without the mention."""

    message: IncomingMessage
    to: Addressee
    is_edit: bool = False


@dataclass(frozen=True, slots=True)
class ButtonEvent:
    """A press of a button under one of the bot's messages; `query` is the id of the press."""

    query: str
    channel: ChannelKey
    message_id: str
    action: Action
    by: Author
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelMigrated:
    """A group became a supergroup with a new id; both chats send this."""

    channel: ChannelKey
    to: str


@dataclass(frozen=True, slots=True)
class DraftStopped:
    """A press of the button below a draft; only the person of a private chat has it."""

    channel: ChannelKey
    draft: int
    by: Author


@dataclass(frozen=True, slots=True)
class InlineQuery:
    """Words behind the bot's name in the field of any chat; sent while they are written.

    They come as a message in the private chat, where the bot would answer them.
    """

    id: str
    message: IncomingMessage


@dataclass(frozen=True, slots=True)
class ReactionEvent:
    """A person's new reactions to a message; `votes` are those taken away (False), then those added (True)."""

    channel: ChannelKey
    message_id: str
    by: Author
    votes: tuple[tuple[Vote, bool], ...]


UserEvent = MessageEvent | ButtonEvent | FormEvent | ChannelMigrated | DraftStopped | InlineQuery | ReactionEvent


def parse(update: Mapping[str, object], me: User, now: datetime) -> UserEvent | None:
    """Parse an update as the Bot API sends it; None for a bot's message or a service message.

    Raises:
        TypeError: A part that is needed is missing or has the wrong type.
    """
    whole = Fields(update, "update")
    query = whole.part("callback_query")
    if query is not None:
        return _button(query) or _form(query, now)
    if (stopped := whole.part("stopped_message_generation")) is not None:
        return _draft_stopped(stopped)
    if (inline := whole.part("inline_query")) is not None:
        return _inline_query(inline, now)
    if (guest := whole.part("guest_message")) is not None:
        return _guest(guest, me, now)
    if (reaction := whole.part("message_reaction")) is not None:
        return _reaction(reaction)
    message = whole.part("message")
    edited = whole.part("edited_message") if message is None else None
    message = message or edited
    if message is None:
        return None
    new, old = message.number("migrate_to_chat_id"), message.number("migrate_from_chat_id")
    if new or old:
        here = required(message.part("chat")).id("id")
        return ChannelMigrated(ChannelKey(PLATFORM, str(old or here)), str(new or here))
    return _message(message, me, now, is_edit=edited is not None)


def _guest(guest: Fields, me: User, now: datetime) -> MessageEvent | None:
    """Parse a mention in a chat where the bot is no member."""
    event = _message(guest, me, now, is_edit=False)
    if event is None:
        return None
    message, query = event.message, required(guest.text("guest_query_id"))
    here = guest_key(message.channel, query, is_private=message.is_direct)
    return MessageEvent(
        replace(message, id=guest_question(query), channel=here, is_direct=False),
        Addressee.BOT,
    )


def _inline_query(inline: Fields, now: datetime) -> InlineQuery:
    id, person = required(inline.text("id")), required(inline.part("from"))
    author = _user(person)
    message = IncomingMessage(
        id=id,
        channel=ChannelKey(PLATFORM, author.id),
        author=author,
        text=inline.text("query") or "",
        sent_at=now,
        is_direct=True,
        locale=person.text("language_code"),
    )
    return InlineQuery(id, message)


def _draft_stopped(stopped: Fields) -> DraftStopped | None:
    chat, topic = required(stopped.part("chat")), stopped.number("message_thread_id")
    if chat.text("type") != Chat.PRIVATE:
        return None
    channel = ChannelKey(PLATFORM, chat.id("id"), None if topic is None else str(topic))
    person = Author(PLATFORM, channel.channel, chat.text("first_name") or "")
    return DraftStopped(channel, required(stopped.number("draft_id")), person)


def _message(message: Fields, me: User, now: datetime, *, is_edit: bool) -> MessageEvent | None:
    author = _author(message)
    has_content = message.text("text") or message.text("caption") or any(map(message.has, _ATTACHMENTS))
    if author is None or author.is_bot or not has_content:
        return None
    chat, channel = required(message.part("chat")), _channel(message)
    is_direct = chat.text("type") == Chat.PRIVATE
    text, is_mentioned = _without_mentions(message, me)
    if message.part("forward_origin") is not None:
        # Another person's words: no command, and no question of this author's.
        quotation = Quotation(text or described(message), is_bots=is_forwarded_from(message, me))
        text, to = "", Addressee.BOT if is_direct or is_mentioned else Addressee.NOBODY
    else:
        text, to = _addressed(text, me, is_named=is_direct or is_mentioned)
        quotation = quoted(message, me) or Quotation(described(message))
    if to is Addressee.NOBODY and is_reply_to_bot(message, me):
        to = Addressee.BOT
    if to is Addressee.NOBODY and (is_reply(message) or _mentions_anybody(message)):
        to = Addressee.ANOTHER_PERSON
    if to is Addressee.NOBODY and not (text or quotation.text):
        to = Addressee.NOBODY_WITHOUT_WORDS
    person = message.part("from")
    return MessageEvent(
        IncomingMessage(
            id=message.id("message_id"),
            channel=channel,
            author=author,
            text=text,
            sent_at=_date(message, now),
            server=None if is_direct else channel.channel,
            is_direct=is_direct,
            locale=None if person is None else person.text("language_code"),
            quoted=quotation.text or None,
            quoted_id=quotation.id,
            quotes_bot=quotation.is_bots,
            files=(*files_of(message), *quotation.files),
            album=message.text("media_group_id"),
            is_forward=message.part("forward_origin") is not None,
            is_addressed=to is Addressee.BOT,
        ),
        to,
        is_edit,
    )


def _button(query: Fields) -> ButtonEvent | None:
    where, data = query.part("message"), query.text("data")
    if where is None or data not in list(Action):
        return None
    person = required(query.part("from"))
    return ButtonEvent(
        required(query.text("id")),
        # An old message comes without its topic; the store finds it by its id.
        _channel(where),
        where.id("message_id"),
        Action(data),
        _user(person),
        person.text("language_code"),
    )


def _reaction(reaction: Fields) -> ReactionEvent | None:
    person = reaction.part("user")
    if person is None:
        return None  # an anonymous administrator's
    old, new = _votes(reaction.parts("old_reaction")), _votes(reaction.parts("new_reaction"))
    votes = *((vote, False) for vote in sorted(old - new)), *((vote, True) for vote in sorted(new - old))
    # The update does not tell the topic; the store finds the message by its id.
    return ReactionEvent(_channel(reaction), reaction.id("message_id"), _user(person), votes) if votes else None


def _votes(reactions: list[Fields]) -> set[Vote]:
    found = (vote_of(each.text("emoji") or "") for each in reactions)
    return {vote for vote in found if vote is not None}


def _form(query: Fields, now: datetime) -> FormEvent | None:
    where, asked = query.part("message"), read_data(query.text("data") or "")
    if where is None or asked is None:
        return None
    channel, person = _channel(where), required(query.part("from"))
    is_direct = required(where.part("chat")).text("type") == Chat.PRIVATE
    press = required(query.text("id"))
    message = IncomingMessage(
        id=press,
        channel=channel,
        author=_user(person),
        text="",
        sent_at=now,
        server=None if is_direct else channel.channel,
        is_direct=is_direct,
        locale=person.text("language_code"),
    )
    # An old message comes without its topic, and with the date 0.
    return FormEvent(press, where.id("message_id"), not where.number("date"), message, *asked)


def _channel(message: Fields) -> ChannelKey:
    topic = message.number("message_thread_id") if message.flag("is_topic_message") else None
    return ChannelKey(PLATFORM, required(message.part("chat")).id("id"), None if topic is None else str(topic))


def _date(message: Fields, now: datetime) -> datetime:
    """Return when the message was sent; `now` if that cannot be read."""
    with suppress(*PARSE_ERRORS):
        return datetime.fromtimestamp(required(message.number("date")), UTC)
    return now


def _user(user: Fields) -> Author:
    names = (user.text("first_name"), user.text("last_name"))
    return Author(PLATFORM, user.id("id"), " ".join(filter(None, names)), is_bot=user.flag("is_bot"))


def _author(message: Fields) -> Author | None:
    if (chat := message.part("sender_chat")) is not None:
        # An anonymous admin, or a user writing as a channel; `from` is a placeholder then.
        is_bot = message.flag("is_automatic_forward")
        return Author(PLATFORM, chat.id("id"), chat.text("title") or "", is_bot=is_bot)
    person = message.part("from")
    return None if person is None else _user(person)


def _without_mentions(message: Fields, me: User) -> tuple[str, bool]:
    """Return the text without mentions of the bot, and whether there were any."""
    units = utf_16(message.text("text") or message.text("caption") or "")
    mentions = sorted(_mentions(message, units, me))
    return rewritten(units, mentions, links_of(message, units)), bool(mentions)


def _mentions(message: Fields, units: bytes, me: User) -> Iterator[tuple[int, int]]:
    """Yield the spans of the mentions of the bot, in bytes of UTF-16."""
    is_readable = True
    for entity in message.parts("entities") or message.parts("caption_entities"):
        kind, offset, length = entity.text("type"), entity.number("offset"), entity.number("length")
        if kind is None or offset is None or length is None or offset < 0:
            is_readable = False
            continue
        span = 2 * offset, 2 * (offset + length)
        if _names(entity, kind, words_at(units, *span), me):
            yield span
    if not is_readable or any(
        message.has(name) and not message.parts(name) for name in ("entities", "caption_entities")
    ):
        text = units.decode("utf-16-le", "surrogatepass")
        for match in re.finditer(rf"(?<![\w@])@{re.escape(me.username or '')}(?!\w)", text, re.IGNORECASE):
            begin = 2 * utf16_units(text[: match.start()])
            yield begin, begin + 2 * len(match.group())


def _mentions_anybody(message: Fields) -> bool:
    entities = message.parts("entities") or message.parts("caption_entities")
    return any(entity.text("type") in (MessageEntity.MENTION, MessageEntity.TEXT_MENTION) for entity in entities)


def _names(entity: Fields, kind: str, words: str, me: User) -> bool:
    if kind == MessageEntity.TEXT_MENTION:
        user = entity.part("user")
        return user is not None and user.number("id") == me.id
    return kind == MessageEntity.MENTION and words.lower() == f"@{me.username}".lower()


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
