"""What others quoted of a text that is deleted goes with it."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.storage.schema import exchanges

# Bytes in UTF-8 from which on words say enough to be known again: twelve letters, four Chinese characters.
MIN_DISTINCTIVE = 12

_MENTION = re.compile(r"@\S+ | @\S+$")
# Scripts without spaces: Thai to Khmer, Chinese, kana, and what is as wide.  Each character ends a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")


def select_text(*which: ColumnElement[bool]) -> Select[tuple[str, str, str]]:
    """The texts of these exchanges, to be read before they are blanked."""
    return select(exchanges.c.platform, exchanges.c.channel, exchanges.c.text).where(*which)


async def redact_quotes(tx: AsyncConnection, said: Iterable[Row[Any]]) -> None:
    """Delete what was quoted of these texts in their channels, whole or a part.

    A platform tells the words that were quoted, not of which message they are: where two
    said the same, both quotations go.  What was quoted from elsewhere, or never said to
    the bot, is known as the words of who quoted it alone.
    """
    texts: dict[tuple[str, str], set[str]] = {}
    for row in said:
        if text := _folded(row.text):
            texts.setdefault((row.platform, row.channel), set()).add(text)
    for (platform, channel), gone in texts.items():
        quoting = select(exchanges.c.id, exchanges.c.quoted).where(
            exchanges.c.platform == platform, exchanges.c.channel == channel, exchanges.c.quoted.is_not(None)
        )
        quotations = {row.id: row.quoted for row in await tx.execute(quoting)}
        # Thousands of texts and as many quotations take seconds, in which others must be heard.
        found = await asyncio.to_thread(_quoting, quotations, gone)
        if found:
            await tx.execute(update(exchanges).where(exchanges.c.id.in_(found)).values(quoted=None))


def _quoting(quotations: Mapping[int, str], texts: set[str]) -> list[int]:
    return [id for id, quotation in quotations.items() if is_quote(_folded(quotation), texts)]


def is_quote(quotation: str, texts: set[str]) -> bool:
    """Whether the quotation is of one of these texts: the whole, a part, or more than it.

    >>> is_quote("@bot no", {"no"}), is_quote("I know nothing", {"no"}), is_quote("1234", {"my PIN is 1234"})
    (True, False, True)
    """
    if quotation in texts or _MENTION.sub("", quotation) in texts:
        return True
    if not quotation:
        return False
    is_telling = _is_telling(quotation)
    for text in texts:
        # Somebody may have marked half a word, if it is long enough to be known again.
        if quotation in text and (is_telling or _holds_words(text, quotation)):
            return True
        if text in quotation and _is_telling(text) and _holds_words(quotation, text):
            return True
    return False


def _is_telling(text: str) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) >= MIN_DISTINCTIVE


def _holds_words(text: str, part: str) -> bool:
    """Whether the part stands in the text and neither begins nor ends in the middle of a word."""
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        if _is_border(text[at - 1 : at], part[0]) and _is_border(part[-1], text[end : end + 1]):
            return True
        at = text.find(part, at + 1)
    return False


def _is_border(before: str, after: str) -> bool:
    sides = before + after
    return len(sides) < 2 or not sides.isalnum() or _UNSPACED.search(sides) is not None


def _folded(text: str) -> str:
    """The text as it is compared: a platform may quote it with other spaces."""
    return " ".join(text.split())
