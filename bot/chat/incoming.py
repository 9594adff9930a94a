"""A message as it is stored: without characters that cannot be shown."""

from dataclasses import replace

from bot.chat.files import cleaned
from bot.domain import IncomingMessage
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
