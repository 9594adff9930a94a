"""What a message points at, on every platform."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bot.domain import Attachment


@dataclass(frozen=True, slots=True)
class Quotation:
    """Its text, its id if it is a message of the same channel, whether the bot wrote it, and its files."""

    text: str = ""
    id: str | None = None
    is_bots: bool = False
    files: tuple[Attachment, ...] = ()


NO_QUOTATION = Quotation()


def quotation(text: str, id: str | None, files: Iterable[Attachment], *, is_bots: bool = False) -> Quotation:
    """Return a quotation; files of a message without an id, which nobody can delete here, are the author's own."""
    return Quotation(text, id, is_bots, tuple(replace(file, is_quoted=id is not None) for file in files))
