"""JSON objects of the Bot API: an optional part of the wrong type counts as absent."""

from collections.abc import Mapping
from typing import TypeVar

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")


class Fields:
    """One object; `path` is its place in the update, for logs.

    >>> message = Fields({"text": "hi", "poll": 5}, "message")
    >>> message.text("text"), message.text("caption"), message.has("poll")
    ('hi', None, True)
    """

    def __init__(self, values: Mapping[str, object], path: str) -> None:
        self._values = values
        self._path = path

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str) -> str | None:
        return self._optional(name, str)

    def number(self, name: str) -> int | None:
        return self._optional(name, int)

    def decimal(self, name: str) -> float | None:
        value = self._values.get(name)
        return float(value) if isinstance(value, int | float) else None

    def flag(self, name: str) -> bool:
        return self._values.get(name) is True

    def part(self, name: str) -> "Fields | None":
        values = self._optional(name, dict)
        return None if values is None else Fields(values, f"{self._path}.{name}")

    def parts(self, name: str) -> "list[Fields]":
        """Return the objects of a list."""
        path = f"{self._path}.{name}"
        values = self._optional(name, list) or []
        for each in values:
            if not isinstance(each, dict):
                _skipped(path, each)
        return [Fields(each, path) for each in values if isinstance(each, dict)]

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
        _skipped(f"{self._path}.{name}", value)
        return None


def required(value: T | None) -> T:
    """Return the value of a field that must be there.

    Raises:
        TypeError: It is missing.
    """
    if value is None:
        raise TypeError("a required field is missing")
    return value


def _skipped(path: str, value: object) -> None:
    log.warning("malformed part of an event skipped", platform="telegram", part=path, type=type(value).__name__)
