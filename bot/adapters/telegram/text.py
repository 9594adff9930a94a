"""The text of a Telegram message, with the addresses behind its words."""

from collections.abc import Iterable, Iterator

from telegram import MessageEntity

from bot.adapters.links import shows_address
from bot.adapters.telegram.fields import Fields

_UTF_16 = "utf-16-le"  # entities count its code units
_SPACE = " ".encode(_UTF_16)


def written_text(message: Fields, name: str = "text", entities: str = "entities") -> str:
    """Return a text with the address of each link behind its words, where the words are not the address.

    >>> link = {"type": "text_link", "offset": 4, "length": 4, "url": "https://a.b"}
    >>> written_text(Fields({"text": "see here", "entities": [link]}, "message"))
    'see here (https://a.b)'
    """
    units = utf_16(message.text(name) or "")
    return rewritten(units, [], _links(units, message.parts(entities)))


def text_or_caption(message: Fields) -> str:
    """Return the text of a message, or the caption of its picture or file."""
    return written_text(message) or written_text(message, "caption", "caption_entities")


def utf_16(text: str) -> bytes:
    return text.encode(_UTF_16, "surrogatepass")


def words_at(units: bytes, begin: int, end: int) -> str:
    return units[begin:end].decode(_UTF_16, "replace")


def rewritten(units: bytes, removed: Iterable[tuple[int, int]], inserted: Iterable[tuple[int, bytes]]) -> str:
    """Return a text without the spans `removed`, each with a space after it, and with what is `inserted`."""
    changes = [*((begin, end, b"") for begin, end in removed), *((at, at, added) for at, added in inserted)]
    kept, at = [], 0
    for begin, end, added in sorted(changes):
        if begin >= at:
            is_spaced = end > begin and units[end : end + len(_SPACE)] == _SPACE
            kept += [units[at:begin], added]
            at = end + len(_SPACE) if is_spaced else end
    kept.append(units[at:])
    return b"".join(kept).decode(_UTF_16, "surrogatepass").strip()


def links_of(message: Fields, units: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield where the address of each link in a text or caption belongs, in bytes of UTF-16, and the address."""
    return _links(units, message.parts("entities") or message.parts("caption_entities"))


def _links(units: bytes, entities: Iterable[Fields]) -> Iterator[tuple[int, bytes]]:
    for entity in entities:
        url, offset, length = entity.text("url"), entity.number("offset"), entity.number("length")
        if entity.text("type") == MessageEntity.TEXT_LINK and url and offset is not None and length and offset >= 0:
            end = min(2 * (offset + length), len(units))
            if not shows_address(words_at(units, 2 * offset, end), url):
                yield end, utf_16(f" ({url})")
