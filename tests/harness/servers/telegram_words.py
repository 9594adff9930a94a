"""Texts and entities of the loopback Telegram: validation, Markdown, plain text."""

import re
from functools import lru_cache
from typing import Any

from bot.adapters.telegram.markup import EN_SPACE, Entity
from bot.delivery.markdown.format import utf16_units

_SPECIAL = re.compile(r"(?P<mention>@\w+)|(?:(?<=\s)|^)(?P<bot_command>/\w+(?:@\w+)?)", re.ASCII)


def words(text: str) -> str:
    """Return a rendered text without the additions: bullets, numbers, table lines."""
    *before, last = text.split(EN_SPACE)
    return "".join(head[: -len(re.split(r"\s", head)[-1]) or None] for head in before) + last


def refused(text: str, entities: list[Entity]) -> str | None:
    """Return why Telegram would reject or change these entities, or None."""
    for number, entity in enumerate(entities):
        if not 0 <= entity.offset < entity.offset + entity.length <= utf16_units(text):
            return f"{entity} is out of bounds"
        for other in entities[number + 1 :]:
            overlap = min(entity.offset + entity.length, other.offset + other.length) - max(entity.offset, other.offset)
            if overlap <= 0:
                continue
            if overlap < min(entity.length, other.length):
                return f"{entity} and {other} cross"
            kinds = {entity.kind, other.kind}
            if kinds & {"pre", "code"} and "blockquote" not in kinds:
                return f"{entity} and {other}: code stands alone"
            if len(kinds) == 1:
                return f"{entity} and {other}: twice the same"
    return None


@lru_cache(maxsize=20_000)
def markdown(text: str, entities: tuple[Entity, ...]) -> str:
    """Return the Markdown of a message."""
    marks: list[tuple[int, int, str]] = []
    for entity in entities:
        before, after = _marks(entity, _units(text, entity.offset, entity.offset + entity.length))
        # At the same offset ends precede starts, and inner entities precede outer ones.
        marks.append((entity.offset, entity.length, before))
        marks.append((entity.offset + entity.length, -1_000_000 + entity.length, after))
    written, at = [], 0
    for place, _, mark in sorted(marks, key=lambda mark: (mark[0], mark[1] if mark[1] < 0 else 1_000_000 - mark[1])):
        written += [_units(text, at, place), mark]
        at = place
    return "".join([*written, _units(text, at, utf16_units(text))])


def _marks(entity: Entity, words: str) -> tuple[str, str]:
    match entity.kind:
        case "pre":
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", words)), default=0))
            return f"{fence}{entity.language or ''}\n", f"\n{fence}"
        case "code":
            ticks = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
            return ticks, ticks
        case "text_link":
            return "[", f"]({entity.url})"
        case "blockquote":
            return "> ", ""
        case _:
            mark = {"bold": "**", "italic": "*", "strikethrough": "~~"}[entity.kind]
            return mark, mark


def _units(text: str, begin: int, end: int) -> str:
    return text.encode("utf-16-le", "surrogatepass")[2 * begin : 2 * end].decode("utf-16-le", "surrogatepass")


def fitted(entity: Entity, left: int, length: int) -> Entity | None:
    """Return an entity of the stripped text, or None if nothing is left of it."""
    begin, end = max(0, entity.offset - left), min(length, entity.offset + entity.length - left)
    return Entity(entity.kind, begin, end - begin, entity.url, entity.language) if begin < end else None


def specials(text: str) -> list[dict[str, Any]]:
    """Return the mention and command entities of a typed text."""
    return [
        {
            "type": match.lastgroup,
            "offset": utf16_units(text[: match.start(match.lastgroup)]),
            "length": match.end() - match.start(match.lastgroup),
        }
        for match in _SPECIAL.finditer(text)
        if match.lastgroup
    ]
