"""Delete quotations of a deleted text from the messages that quote it."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cache, partial
from typing import NamedTuple, TypeVar

from sqlalchemy import (
    JSON,
    BindParameter,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import ChannelKey
from bot.storage.encryption import DamagedRow, clean
from bot.storage.further import OF_ASKER
from bot.storage.keys import BATCH
from bot.storage.rows import UNQUOTED, quotation_texts
from bot.storage.schema import IS_QUOTING, exchanges, further_messages, parts
from bot.storage.transactions import Transactions
from bot.storage.vault import Vault, WriteTransaction

# UTF-8 bytes from which a text is recognisable: twelve letters, four Chinese characters.
MIN_DISTINCTIVE = 12

_MENTION = re.compile(r"@\S+ | @\S+$")
# Scripts without spaces: Thai to Khmer, Chinese, kana and other wide characters.  Each character ends a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")

Place = tuple[str, str]  # platform and channel
_Words = dict[Place, dict[int, str]]  # quotations by the id of their exchange
_Quotation = tuple[int, str, str]

Value = TypeVar("Value")


class Said(NamedTuple):
    """A text that a deletion removes, and where it was said."""

    place: Place
    text: str


class Quotations:
    """Deletes full and partial quotations of what a deletion removes, from its channels.

    A quotation that names its message is found by that id, any other by its words: if two
    messages have the same words, the quotations of both are deleted.  Words quoted from
    another channel, or never sent to the bot, belong to the author who quoted them.

    To read and to compare thousands takes seconds.  `read` and `prepare` do it before the
    write transaction, in which `read_added` reads those that were added since.
    """

    def __init__(self, transactions: Transactions, vault: Vault) -> None:
        self._transactions = transactions
        self._vault = vault
        self._newest = 0  # exchange when the first of `_words` were read
        self._words: _Words = {}
        self._added: _Words = {}
        # Of the last `prepare`: what was compared with all words, and the quotations of it.
        self._texts: dict[Place, set[str]] = {}
        self._quoting: set[int] = set()

    async def read(self, tx: AsyncConnection, places: AbstractSet[Place]) -> set[Place]:
        """Read the quotations without an id in some channels; return the channels that have any."""
        if not self._words:
            self._newest = (await tx.execute(select(func.max(exchanges.c.id)))).scalar() or 0
        self._words |= await self._read(tx, places - self._words.keys())
        return {place for place in places if self._words[place]}

    async def prepare(self, deleted: Iterable[Said]) -> None:
        """Find quotations by their words; for each batch of a deletion."""
        self._texts = _texts(deleted)
        unknown = self._texts.keys() - self._words.keys()
        if unknown:
            async with self._transactions.reading() as tx:
                await self.read(tx, unknown)
        self._quoting = await _compare(self._words, self._texts)

    async def read_added(self, tx: WriteTransaction, places: AbstractSet[Place]) -> set[Place]:
        """Read what `read` could not yet; return the channels that have quotations without an id."""
        known = self._words.keys()
        self._added = await self._read(tx.connection, places & known, after=self._newest)
        self._added |= await self._read(tx.connection, places - known)
        return {place for place in places if self._words.get(place) or self._added[place]}

    async def redact(
        self, tx: WriteTransaction, ids: Iterable[int], deleted: Iterable[Said], *, of_replies_only: bool = False
    ) -> int:
        """Delete the quotations, once `read_added` was called; return their number.

        Those that name a message, a part of it or a reply of the exchanges `ids`, and those with the words of
        `deleted`.
        """
        texts = _texts(deleted)
        unprepared = {place: each - self._texts.get(place, set()) for place, each in texts.items()}
        by_words = await _compare(self._added, texts) | await _compare(self._words, unprepared)
        found: dict[int, int | None] = {}
        for some in _batches(ids):
            for naming in (_OF_REPLIES,) if of_replies_only else (_OF_REPLIES, _OF_QUESTIONS, _OF_PARTS):
                found |= {row.id: row.quotation_key for row in await tx.execute(naming, {"ids": some})}
        keys = select(exchanges.c.id, exchanges.c.quotation_key)
        for some in _batches(by_words | self._quoting):
            rows = await tx.execute(keys.where(IS_QUOTING, exchanges.c.id.in_(some)))
            found |= {row.id: row.quotation_key for row in rows}
        for some in _batches(found):
            await tx.execute(update(exchanges).where(exchanges.c.id.in_(some)).values(UNQUOTED))
        tx.keys.delete(*found.values())
        return len(found)

    async def _read(self, tx: AsyncConnection, places: Iterable[Place], after: int = 0) -> _Words:
        """Read the quotations without an id in some channels, of exchanges after one."""
        words: _Words = {place: {} for place in places}
        if not words:
            return {}
        unnamed = await tx.execute(_unnamed(tx.dialect.name), {"listed": _as_json(words), "after": after})
        found = {row.id: (row.platform, row.channel) for row in unnamed}
        quotations = select(exchanges.c.id, exchanges.c.quoted, exchanges.c.quotation_key)
        for ids in _batches(found):
            rows = (await tx.execute(quotations.where(exchanges.c.id.in_(ids)))).all()
            for each in await tx.run_sync(partial(self._vault.decrypt, table=exchanges, rows=rows)):
                if not isinstance(each, DamagedRow):
                    words[found[each["id"]]][each["id"]] = _normalise(each["quoted"])
        return words


@cache
def _unnamed(dialect: str) -> Select[_Quotation]:
    """Select the quotations without an id in the channels `listed`, of exchanges after `after`.

    The channels are one parameter, as JSON: SQLite uses no index for a list of rows.
    """
    listed = bindparam("listed", type_=Text)
    each = func.json_each(listed) if dialect == "sqlite" else func.json_array_elements(cast(listed, JSON))
    row = each.table_valued(column("value", JSON), name="listed").c.value
    columns = exchanges.c.platform, exchanges.c.channel
    are_equal = [wanted == row[number].as_string() for number, wanted in enumerate(columns)]
    is_added = exchanges.c.id > bindparam("after")
    return select(exchanges.c.id, *columns).where(IS_QUOTING, *are_equal, exchanges.c.quoted_id.is_(None), is_added)


def _select_naming(quoted_id: ColumnElement[str], *which: ColumnElement[bool]) -> Select[tuple[int, int | None]]:
    """Select the quotations that name a message, in the channel of its exchange."""
    here = [exchanges.c[name] == _quoted.c[name] for name in ("platform", "channel")]
    return select(exchanges.c.id, exchanges.c.quotation_key).where(
        IS_QUOTING, *here, exchanges.c.quoted_id == quoted_id, *which
    )


_quoted = exchanges.alias("quoted")
_ids: BindParameter[int] = bindparam("ids", expanding=True)
_OF_QUESTIONS = _select_naming(_quoted.c.message, _quoted.c.id.in_(_ids))
_OF_REPLIES = _select_naming(parts.c.message, parts.c.exchange == _quoted.c.id, parts.c.exchange.in_(_ids))
_part = further_messages.c
_OF_PARTS = _select_naming(_part.message, _part.exchange == _quoted.c.id, _part.exchange.in_(_ids), OF_ASKER)


def _as_json(rows: Iterable[tuple[str, ...]]) -> str:
    return json.dumps([[clean(each) for each in row] for row in rows])


def _texts(deleted: Iterable[Said]) -> dict[Place, set[str]]:
    texts: dict[Place, set[str]] = {}
    for said in deleted:
        texts.setdefault(said.place, set()).add(_normalise(said.text))
    return texts


async def _compare(words: _Words, texts: Mapping[Place, set[str]]) -> set[int]:
    """Return the quotations of these texts; in a thread."""
    pairs = [(quoted, each - {""}) for place, each in texts.items() if each and (quoted := words.get(place))]
    return set(await asyncio.to_thread(_find_quotes, pairs)) if pairs else set()


def _batches(values: Iterable[Value]) -> Iterator[list[Value]]:
    waiting = list(values)
    for start in range(0, len(waiting), BATCH):
        yield waiting[start : start + BATCH]


async def replace_quotes(tx: WriteTransaction, channel: ChannelKey, message_id: str, text: str) -> int:
    """Let the quotations of an edited message have its new text, without its files; return their number."""
    quotes = select(exchanges.c.id, exchanges.c.quotation_key).where(
        exchanges.c.platform == channel.platform,
        exchanges.c.channel == channel.channel,
        and_(IS_QUOTING, exchanges.c.quoted_id == message_id),
        or_(exchanges.c.quoted.is_not(None), exchanges.c.quoted_pictures.is_not(None)),
    )
    rows = (await tx.execute(quotes)).all()
    for row in rows:
        # Its files may have been removed too.
        values = await tx.encrypt(exchanges, "quotation_key", quotation_texts(text)) if text else UNQUOTED
        await tx.execute(update(exchanges).where(exchanges.c.id == row.id).values(values))
        tx.keys.delete(row.quotation_key)
    return len(rows)


def _find_quotes(pairs: Iterable[tuple[Mapping[int, str], set[str]]]) -> list[int]:
    return [id for quoted, texts in pairs for id, words in quoted.items() if is_quote(words, texts)]


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
