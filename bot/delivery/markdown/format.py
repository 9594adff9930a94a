"""What a platform can show in one message: its length, and how Markdown is rendered there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as one platform takes it; `entities` are its own notation for markup."""

    text: str
    entities: tuple[object, ...] = ()


class Format(Protocol):
    """Pure and quick: a message is rendered about a dozen times before it is cut."""

    @property
    def limit(self) -> int:
        """The longest message, in the units of `measure`; at least 28."""
        ...

    def render(self, markdown: str) -> Rendered: ...

    def plain(self, markdown: str) -> Rendered:
        """Render the same words without markup, for a platform that refused the markup."""
        ...

    def measure(self, rendered: Rendered) -> int:
        """Count as the platform counts."""
        ...


def utf16_units(text: str) -> int:
    """Count UTF-16 code units.

    >>> utf16_units("好😀")
    3
    """
    return len(text) + sum(character > "\uffff" for character in text)


@dataclass(frozen=True, slots=True)
class MarkdownFormat:
    """The format of a platform that takes Markdown as it is.

    >>> MarkdownFormat(2000).measure(MarkdownFormat(2000).render("**bold**"))
    8
    """

    limit: int
    count: Callable[[str], int] = len

    def render(self, markdown: str) -> Rendered:
        return Rendered(markdown)

    def plain(self, markdown: str) -> Rendered:
        return Rendered(markdown)

    def measure(self, rendered: Rendered) -> int:
        return self.count(rendered.text)


def fits(text: str, format: Format) -> bool:
    """Whether this Markdown is one message there."""
    return format.measure(format.render(text)) <= format.limit


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """A format without its markup."""

    format: Format

    @property
    def limit(self) -> int:
        return self.format.limit

    def render(self, markdown: str) -> Rendered:
        return self.format.plain(markdown)

    def plain(self, markdown: str) -> Rendered:
        return self.format.plain(markdown)

    def measure(self, rendered: Rendered) -> int:
        return self.format.measure(rendered)


class CachedFormat:
    """A format that renders none of its last few texts again."""

    def __init__(self, format: Format) -> None:
        self.limit = format.limit
        # More than the messages of one reply, less than its weight in memory matters.
        self.render = lru_cache(maxsize=32)(format.render)
        self.plain = lru_cache(maxsize=32)(format.plain)
        self.measure = format.measure
