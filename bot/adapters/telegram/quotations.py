"""The message that a Telegram message replies to, quotes or forwards, in words."""

from telegram import User

from bot.adapters.malformed import bounded
from bot.adapters.quotation import Quotation, quotation
from bot.adapters.telegram.fields import Fields
from bot.adapters.telegram.files import files_of
from bot.adapters.telegram.rich import plain_text
from bot.adapters.telegram.text import text_or_caption, written_text


def quoted(message: Fields, me: User) -> Quotation | None:
    """Return the part of another message that the author selected, or all of it."""
    selected = message.part("quote")
    text = written_text(selected) if selected is not None else ""
    replied = _replied_to(message)
    if replied is not None:
        id = replied.number("message_id")
        text = text or text_or_caption(replied) or described(replied)
        return quotation(text, None if id is None else str(id), files_of(replied), is_bots=_is_from(replied, me))
    elsewhere = message.part("external_reply")
    if elsewhere is None:
        return Quotation(text) if text else None
    return quotation(text or described(elsewhere), None, files_of(elsewhere))


def described(message: Fields) -> str:
    r"""Return what a message without a text says in words: a rich message, a poll, a checklist, a contact, a place …; "" if nothing.

    >>> described(Fields({"poll": {"question": "Tea?", "options": [{"text": "yes"}, {"text": "no"}]}}, "message"))
    'Tea?\n- yes\n- no'
    """
    if (rich := message.part("rich_message")) is not None:
        return bounded(plain_text(rich.raw("blocks")))
    if (poll := message.part("poll")) is not None:
        options = [f"- {text}" for option in poll.parts("options") if (text := option.text("text"))]
        return "\n".join(filter(None, [poll.text("question"), *options]))
    if (checklist := message.part("checklist")) is not None:
        tasks = [
            f"- {text}" for task in checklist.parts("tasks") if (text := written_text(task, entities="text_entities"))
        ]
        return "\n".join(filter(None, [written_text(checklist, "title", "title_entities"), *tasks]))
    for kind in ("game", "invoice"):
        if (offer := message.part(kind)) is not None:
            return _joined(offer, "title", "description")
    if (audio := message.part("audio")) is not None:
        return _joined(audio, "title", "performer")
    if (contact := message.part("contact")) is not None:
        return _joined(contact, "first_name", "last_name", "phone_number")
    if (venue := message.part("venue")) is not None:
        return _joined(venue, "title", "address")
    if (location := message.part("location")) is not None:
        degrees = location.decimal("latitude"), location.decimal("longitude")
        return "" if None in degrees else f"{degrees[0]}, {degrees[1]}"
    return ""


def is_reply(message: Fields) -> bool:
    return _replied_to(message) is not None


def is_reply_to_bot(message: Fields, me: User) -> bool:
    replied = _replied_to(message)
    return replied is not None and _is_from(replied, me)


def is_forwarded_from(message: Fields, me: User) -> bool:
    """Return whether the message forwards one of the bot's own."""
    origin = message.part("forward_origin")
    sender = origin.part("sender_user") if origin is not None else None
    return sender is not None and sender.number("id") == me.id


def _replied_to(message: Fields) -> Fields | None:
    replied = message.part("reply_to_message")
    # In a topic every message replies to the one that opened it.
    if replied is None or replied.has("forum_topic_created"):
        return None
    is_opener = message.flag("is_topic_message") and replied.number("message_id") == message.number("message_thread_id")
    return None if is_opener else replied


def _is_from(message: Fields, me: User) -> bool:
    author = message.part("from")
    return author is not None and author.number("id") == me.id


def _joined(fields: Fields, *names: str) -> str:
    return ", ".join(filter(None, map(fields.text, names)))
