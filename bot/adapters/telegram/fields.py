"""JSON objects of the Bot API: an optional part of the wrong type counts as absent."""

from collections.abc import Mapping
from typing import TypeVar

import structlog

from bot.adapters.malformed import bounded

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

# Parts of one update that are logged; a line takes longer than to read the part.
_MOST_LOGGED = 5


class Fields:
    """One object; `path` is its place in the update, for logs.

    >>> message = Fields({"text": "hi", "poll": 5}, "message")
    >>> message.text("text"), message.text("caption"), message.has("poll")
    ('hi', None, True)
    """

    def __init__(self, values: Mapping[str, object], path: str, skipped: "list[str] | None" = None) -> None:
        self._values = values
        self._path = path
        self._skipped = [] if skipped is None else skipped  # parts of the whole update that were logged

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str) -> str | None:
        text = self._optional(name, str)
        return None if text is None else bounded(text)

    def number(self, name: str) -> int | None:
        return self._optional(name, int)

    def decimal(self, name: str) -> float | None:
        value = self._values.get(name)
        return float(value) if isinstance(value, int | float) else None

    def flag(self, name: str) -> bool:
        return self._values.get(name) is True

    def raw(self, name: str) -> object:
        """Return a value of any type, for a reader that expects all of them."""
        return self._values.get(name)

    def part(self, name: str) -> "Fields | None":
        values = self._optional(name, dict)
        return None if values is None else Fields(values, f"{self._path}.{name}", self._skipped)

    def parts(self, name: str) -> "list[Fields]":
        """Return the objects of a list."""
        path = f"{self._path}.{name}"
        values = self._optional(name, list) or []
        wrong = [each for each in values if not isinstance(each, dict)]
        if wrong:
            self._skip(path, wrong[0], count=len(wrong))
        return [Fields(each, path, self._skipped) for each in values if isinstance(each, dict)]

    def id(self, name: str) -> str:
        """Return a number that must be there.

        Raises:
            TypeError: It is missing.
        """
        return str(required(self.number(name)))

    def _optional(self, name: str, kind: type[T]) -> T | None:
        value = self._values.get(name)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        self._skip(f"{self._path}.{name}", value)
        return None

    def _skip(self, path: str, value: object, count: int = 1) -> None:
        if len(self._skipped) < _MOST_LOGGED:
            self._skipped.append(path)
            kind = type(value).__name__
            log.warning("malformed part of an event skipped", platform="telegram", part=path, type=kind, count=count)


def required(value: T | None) -> T:
    """Return the value of a field that must be there.

    Raises:
        TypeError: It is missing.
    """
    if value is None:
        raise TypeError("a required field is missing")
    return value
