"""What a message points at, on every platform."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quotation:
    """Its text, its id if it is a message of the same channel, and whether the bot wrote it."""

    text: str = ""
    id: str | None = None
    is_bots: bool = False


NO_QUOTATION = Quotation()
