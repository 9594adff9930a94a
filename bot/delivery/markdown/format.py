"""Message formats of platforms: length limit and rendering of Markdown."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text in a platform's own notation; `entities` are its markup.

    `stable` is how many characters of it will stay while its message grows; None in a text that is
    complete, and where nothing asks for it.
    """

    text: str
    entities: tuple[object, ...] = ()
    stable: int | None = None


class Format(Protocol):
    """Pure and fast: a message is rendered about a dozen times before it is split."""

    @property
    def limit(self) -> int:
        """Maximum length of a message, in the units of `measure`; at least 28."""
        ...

    def render(self, markdown: str) -> Rendered: ...

    def plain(self, markdown: str) -> Rendered:
        """Render without markup, after a platform has refused the markup."""
        ...

    def measure(self, rendered: Rendered) -> int:
        """Return the length in the platform's units."""
        ...


def utf16_units(text: str) -> int:
    """Count UTF-16 code units.

    >>> utf16_units("好😀")
    3
    """
    return len(text) + sum(character > "\uffff" for character in text)


@dataclass(frozen=True, slots=True)
class MarkdownFormat:
    """The format of a platform that accepts Markdown itself.

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
    """Return True if this Markdown fits into one message."""
    return format.measure(format.render(text)) <= format.limit


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """A format that omits the markup."""

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


@dataclass(frozen=True, slots=True)
class EndedFormat:
    r"""A format whose messages end with a sentence.

    >>> EndedFormat(MarkdownFormat(2000), "The end.").render("words").text
    'words\n\nThe end.'
    """

    format: Format
    sentence: str

    @property
    def limit(self) -> int:
        return self.format.limit

    def render(self, markdown: str) -> Rendered:
        return self.format.render(f"{markdown}\n\n{self.sentence}")

    def plain(self, markdown: str) -> Rendered:
        return self.format.plain(f"{markdown}\n\n{self.sentence}")

    def measure(self, rendered: Rendered) -> int:
        return self.format.measure(rendered)


class RicherFormat(Format, Protocol):
    """A format that a platform may refuse where it accepts a `simpler` one with markup."""

    @property
    def simpler(self) -> Format: ...


def simpler_formats(format: Format) -> list[Format]:
    """Return the formats to fall back to, one after the other, where a platform refuses the markup."""
    simpler: Format | None = getattr(format, "simpler", None)
    return [PlainFormat(format)] if simpler is None else [simpler, *simpler_formats(simpler)]


class CachedFormat:
    """A format that caches its last few renderings."""

    def __init__(self, format: Format) -> None:
        self.limit = format.limit
        # More than the messages of one reply, and little memory.
        self.render = lru_cache(maxsize=32)(format.render)
        self.plain = lru_cache(maxsize=32)(format.plain)
        self.measure = format.measure
