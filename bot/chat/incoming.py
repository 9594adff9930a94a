"""Messages as they are stored, without characters that cannot be shown, and as others use what answers them."""

from dataclasses import replace

from bot.chat.files import cleaned
from bot.domain import Author, IncomingMessage
from bot.util.text import clean


def clean_message(message: IncomingMessage) -> IncomingMessage:
    """Clean the texts and names of a message; its author's name is one line."""
    return replace(
        message,
        text=clean(message.text),
        quoted=None if message.quoted is None else clean(message.quoted),
        author=replace(message.author, name=clean(message.author.name).replace("\n", " ")),
        files=cleaned(message.files) if message.files else (),
    )


def used_by(message: IncomingMessage, person: Author, locale: str | None = None) -> IncomingMessage:
    """Return a message as if a person who presses a button below its answer had sent it, with their rights and locale."""
    own = message.locale if person.key == message.author.key else locale or message.locale
    return replace(message, author=person, locale=own)
