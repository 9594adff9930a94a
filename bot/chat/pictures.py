"""Choose the pictures that a prompt shows: those of the question, then the newest ones before it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from bot.domain import Attachment, Exchange, FileFault, IncomingMessage, Picture
from bot.storage.base import History


def show_pictures(history: History, most: int) -> History:
    """Return the history with at most `most` pictures, each once.

    Pictures of the question that are left out have a fault.
    """
    question = replace(history.now.message, files=tuple(mark_unseen(history.now.message.files, most)))
    shown = list(pictures_of(question))
    newest_first: list[Exchange] = []
    for exchange in reversed(history.exchanges):
        message = replace(exchange.message, files=tuple(_unknown(exchange.message.files, shown, most)))
        shown += pictures_of(message)
        newest_first.append(replace(exchange, message=message))
    return replace(history, exchanges=tuple(reversed(newest_first)), now=replace(history.now, message=question))


def mark_unseen(files: Iterable[Attachment], most: int) -> Iterator[Attachment]:
    """Yield the files of a question, with a fault for each picture beyond `most`."""
    seen = 0
    for file in files:
        fault = None
        if file.is_picture and file.fault is None:
            if most <= 0:
                fault = FileFault.PICTURE
            elif file.picture is None:  # a quoted one was deleted
                fault = None if file.is_quoted else FileFault.MISSING
            elif seen == most:
                fault = FileFault.MANY
            else:
                seen += 1
        yield file if fault is None else replace(file, picture=None, fault=fault)


def pictures_of(message: IncomingMessage) -> tuple[Picture, ...]:
    """Return the pictures of a message that are loaded."""
    return tuple(file.picture for file in message.files if file.picture is not None)


def _unknown(files: Iterable[Attachment], shown: Sequence[Picture], most: int) -> Iterator[Attachment]:
    """Yield the files, without pictures that are shown already and those beyond `most`."""
    left = most - len(shown)
    for file in files:
        is_new = file.picture is not None and file.picture not in shown
        left -= is_new
        yield file if is_new and left >= 0 else replace(file, picture=None)
