"""Delete quotations of a deleted text from the messages that quote it."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import and_, select, update

from bot.domain import ChannelKey
from bot.storage.encryption import DamagedRow
from bot.storage.rows import UNQUOTED
from bot.storage.schema import IS_QUOTING, exchanges
from bot.storage.vault import WriteTransaction

# UTF-8 bytes from which a text is recognisable: twelve letters, four Chinese characters.
MIN_DISTINCTIVE = 12

# Rows per statement: SQLite limits the number of values.
_BATCH = 1000

_MENTION = re.compile(r"@\S+ | @\S+$")
# Scripts without spaces: Thai to Khmer, Chinese, kana and other wide characters.  Each character ends a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")


class Said(NamedTuple):
    """What a deletion removes: a message, its text, and the messages of the reply to it."""

    platform: str
    channel: str
    message: str
    parts: list[str]
    text: str


async def redact_quotes(tx: WriteTransaction, deleted: Iterable[Said]) -> int:
    """Delete full and partial quotations of this from its channels; return their number.

    A quotation that names its message is found by that id, any other by its words: if two
    messages have the same words, the quotations of both are deleted.  Words quoted from
    another channel, or never sent to the bot, belong to the author who quoted them.
    """
    ids: dict[tuple[str, str], set[str]] = {}
    texts: dict[tuple[str, str], set[str]] = {}
    for said in deleted:
        place = (said.platform, said.channel)
        ids.setdefault(place, set()).update((said.message, *said.parts))
        texts.setdefault(place, set()).add(_normalise(said.text))
    count = 0
    for (platform, channel), in_channel in texts.items():
        here = and_(exchanges.c.platform == platform, exchanges.c.channel == channel, IS_QUOTING)
        columns = exchanges.c.id, exchanges.c.quoted, exchanges.c.quotation_key
        found: list[tuple[int, int | None]] = []
        known = sorted(ids[platform, channel])
        for start in range(0, len(known), _BATCH):
            quoting = exchanges.c.quoted_id.in_(known[start : start + _BATCH])
            found += [(row.id, row.quotation_key) for row in await tx.execute(select(*columns).where(here, quoting))]
        rows = (await tx.execute(select(*columns).where(here, exchanges.c.quoted_id.is_(None)))).all()
        quotations = {
            row.id: each["quoted"]
            for row, each in zip(rows, await tx.decrypt(exchanges, rows), strict=True)
            if not isinstance(each, DamagedRow)
        }
        # Thousands of texts and quotations take seconds, too long for the event loop.
        by_words = set(await asyncio.to_thread(_find_quotes, quotations, in_channel - {""}))
        found += [(row.id, row.quotation_key) for row in rows if row.id in by_words]
        for start in range(0, len(found), _BATCH):
            some = [id for id, _ in found[start : start + _BATCH]]
            await tx.execute(update(exchanges).where(exchanges.c.id.in_(some)).values(UNQUOTED))
        tx.keys.delete(*(key for _, key in found))
        count += len(found)
    return count


async def replace_quotes(tx: WriteTransaction, channel: ChannelKey, message_id: str, text: str) -> int:
    """Let the quotations of an edited message have its new text; return their number."""
    quotes = select(exchanges.c.id, exchanges.c.quotation_key).where(
        exchanges.c.platform == channel.platform,
        exchanges.c.channel == channel.channel,
        and_(IS_QUOTING, exchanges.c.quoted_id == message_id, exchanges.c.quoted.is_not(None)),
    )
    rows = (await tx.execute(quotes)).all()
    for row in rows:
        values = await tx.encrypt(exchanges, "quotation_key", {"quoted": text}) if text else UNQUOTED
        await tx.execute(update(exchanges).where(exchanges.c.id == row.id).values(values))
        tx.keys.delete(row.quotation_key)
    return len(rows)


def _find_quotes(quotations: Mapping[int, str], texts: set[str]) -> list[int]:
    return [id for id, quotation in quotations.items() if is_quote(_normalise(quotation), texts)]


def is_quote(quotation: str, texts: set[str]) -> bool:
    """Return True if the quotation has all of one of these texts, or a part of it.

    >>> is_quote("@bot no", {"no"}), is_quote("I know nothing", {"no"}), is_quote("1234", {"my PIN is 1234"})
    (True, False, True)
    """
    if quotation in texts or _MENTION.sub("", quotation) in texts:
        return True
    if not quotation:
        return False
    is_distinctive = _is_distinctive(quotation)
    for text in texts:
        # A user may have selected half a word; a distinctive part counts all the same.
        if quotation in text and (is_distinctive or _has_words(text, quotation)):
            return True
        if text in quotation and _is_distinctive(text) and _has_words(quotation, text):
            return True
    return False


def _is_distinctive(text: str) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) >= MIN_DISTINCTIVE


def _has_words(text: str, part: str) -> bool:
    """Return True if the part occurs in the text with word boundaries at both ends."""
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        if _is_boundary(text[at - 1 : at], part[0]) and _is_boundary(part[-1], text[end : end + 1]):
            return True
        at = text.find(part, at + 1)
    return False


def _is_boundary(before: str, after: str) -> bool:
    sides = before + after
    return len(sides) < 2 or not sides.isalnum() or _UNSPACED.search(sides) is not None


def _normalise(text: str) -> str:
    return " ".join(text.split())  # a platform may quote with other spaces
