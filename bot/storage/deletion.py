"""Deletions: the row is blanked, then its keys are deleted."""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache, partial
from typing import Any

from sqlalchemy import ColumnElement, Delete, Update, and_, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from bot import lifecycle
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage, Kind, Scope, Status
from bot.errors import NotErased
from bot.lifecycle import Transition
from bot.storage.conditions import (
    DELETED,
    NOT_OPEN_COMMAND,
    TOMBSTONES_KEPT,
    allowed,
    change,
    earlier,
    exactly,
    has_channel,
    here,
    with_threads,
    within,
)
from bot.storage.encryption import DamagedRow, key_columns
from bot.storage.feedback import delete_votes, forget_voter
from bot.storage.further import (
    by,
    cleared,
    cleared_thread,
    delete_copies,
    delete_further,
    delete_of_exchanges,
    delete_some,
    first_with_at_most,
    forget_places,
    has_any,
    member_place,
    of_exchanges,
    older,
    own_texts,
    read_in,
    replace_texts,
    said_in,
    set_readable_since,
)
from bot.storage.opened import OpenStore, shielded
from bot.storage.quoted_text import Place, Quotations, Said, replace_quotes
from bot.storage.rows import BLANK, UNANSWERED, message_values
from bot.storage.schema import IS_KEPT, IS_TOMBSTONE, channels, exchanges, readable_since
from bot.storage.settings import expire_changes, forget_author
from bot.storage.usage import stored_place
from bot.storage.vault import AnyRow, WriteTransaction

# Rows of one transaction of a deletion, at least and at most; and the seconds that it and its checkpoint should take.
# With fewer, a batch hardly takes less: its dozen statements cost most.
_LEAST_BATCH, _BATCH = 50, 500
# Their further messages, of which a question may have fifty.
_MOST_FURTHER = 1_000
_MOST_SECONDS = 0.03

# What is read of rows that are blanked, and of those whose quotations are deleted.
_ERASED = [exchanges.c.id, exchanges.c.kind, *(exchanges.c[name] for name in key_columns(exchanges))]
_PLACE = [exchanges.c.platform, exchanges.c.channel]
_VERSION = [exchanges.c.id, exchanges.c.question_key]

# An exchange's id and the number of its question's key: the same, the same text.
_Version = tuple[int, int | None]

# The key of a message.
KEY = ["platform", "channel", "message"]


class Deletion(OpenStore):
    """The methods that delete texts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The dialects' own inserts, alike but for their module.
        self._insert = sqlite.insert if self._location.path is not None else postgresql.insert

    @shielded
    async def clear(self, channel: ChannelKey, before: Exchange | None = None, author: Author | None = None) -> int:
        place = exactly(channel) if channel.thread is not None else within(channel)
        if author is not None:
            place = and_(place, self._by(author))
        places = here(channel) if channel.thread is not None else with_threads(channel)
        is_further_erased = await self._clear_further(channel, before, author)
        begin_anew = update(channels).where(places).values(is_shortening_told=False)
        which = place, NOT_OPEN_COMMAND, *earlier(before)
        count, is_erased = await self._blank(lifecycle.CLEAR, *which, beside=begin_anew)
        return _checked(count, is_further_erased and is_erased)

    async def _clear_further(self, channel: ChannelKey, before: Exchange | None, author: Author | None) -> bool:
        """Delete what others said in a channel, or what one person did; let nothing of before be read again.

        Return whether no file holds it.
        """
        level, place, number = "channel", str(channel), None if before is None else before.id
        of_others = cleared(channel, number)
        if author is not None:
            level, place = "member", member_place(author, channel, self._vault)
            of_others += by(author.platform, self._vault.pseudonyms(author.platform, author.id))
            of_others += [] if channel.thread is None else [read_in(channel)]
        elif channel.thread is not None:
            level, of_others = "thread", cleared_thread(channel, number)
        since = self._calendar.today() if before is None else before.message.sent_at
        async with self._writing() as tx:
            await set_readable_since(tx, self._insert(readable_since), level, place, since)
        return await self._delete_further(*of_others)

    async def _delete_further(self, *which: ColumnElement[bool]) -> bool:
        """Delete further messages in batches; return whether no file holds them."""
        is_erased, number = True, _BATCH
        while number == _BATCH:
            async with self._writing() as tx:
                number = await delete_some(tx, _BATCH, *which)
            is_erased = is_erased and tx.is_erased
            if number:
                await self._transactions.checkpoint()
        return is_erased

    @shielded
    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        theirs = self._by(author), *(earlier(before) or [NOT_OPEN_COMMAND])
        async with self._writing() as tx:
            names = self._vault.pseudonyms(author.platform, author.id)
            await forget_author(tx, author, names)
            since = self._calendar.today() if before is None else before.message.sent_at
            place = stored_place(Scope("user", author.key), self._vault)
            await set_readable_since(tx, self._insert(readable_since), "user", place, since)
            await forget_places(tx, place)
            await forget_voter(tx, place)
        is_further_erased = await self._delete_further(*by(author.platform, names))
        count, is_erased = await self._blank(lifecycle.CLEAR, *theirs)
        return _checked(count, tx.is_erased and is_further_erased and is_erased)

    @shielded
    async def erase(self, exchange: Exchange) -> None:
        await self._blank(lifecycle.CLEAR, exchanges.c.id == exchange.id)

    @shielded
    async def delete_messages(
        self, channel: ChannelKey, message_ids: Collection[str], *, is_expected: bool = False
    ) -> None:
        are_they = within(channel), exchanges.c.message.in_(message_ids)
        quotations = self._quotations()
        prepared = await self._prepare(quotations, *are_they)
        async with self._writing() as tx:
            is_read = await has_any(tx.connection, channel, message_ids)
            said: list[Said] = []
            if is_read:
                theirs = said_in(channel, message_ids)
                texts = await own_texts(tx.connection, self._vault, theirs)
                said = [Said((channel.platform, channel.channel), text) for _, text in texts]
                await delete_further(tx, theirs)
            if not (is_expected or is_read) and not await has_channel(tx.connection, channel):
                return  # the messages are not for the bot, and nothing quotes them
            await self._bury(tx, channel, message_ids)
            # Of all rows: quotations that name a message outlive its text.
            rows = (await tx.execute(select(*_VERSION, *_PLACE).where(*are_they))).all()
            said += await self._said(tx, quotations, rows, prepared)
            erased = select(*_ERASED).where(IS_KEPT, allowed(lifecycle.CLEAR), *are_they).with_for_update()
            await self._erase(tx, lifecycle.CLEAR, (await tx.execute(erased)).all())
            ids = [row.id for row in rows]
            await quotations.redact(tx, ids, said)
            await delete_copies(tx, ids)
            await delete_of_exchanges(tx, ids)
            await tx.execute(update(exchanges).where(*are_they).values(failure=DELETED))

    @shielded
    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        async with self._writing() as tx:
            await replace_quotes(tx, channel, message_id, text)
            await replace_texts(tx, channel, message_id, text)

    @shielded
    async def expire(self, before: datetime) -> int:
        aged = exchanges.c.sent_at < before
        count, _ = await self._blank(lifecycle.EXPIRE, aged, with_quotations=False)
        async with self._writing() as tx:
            await expire_changes(tx, before)
        await self._delete_further(*older(before))
        return count

    async def _blank(
        self,
        transition: Transition,
        *which: ColumnElement[bool],
        with_quotations: bool = True,
        beside: Update | None = None,
    ) -> tuple[int, bool]:
        """Delete texts and names, with another change; return the number of questions, and whether no file holds them.

        In batches: other writers take turns with them.
        """
        count, is_erased, quotations, batch = 0, True, self._quotations(), _LEAST_BATCH
        some = IS_KEPT, allowed(transition), *which
        columns = [*_ERASED, *_PLACE] if with_quotations else _ERASED
        while True:
            prepared = await self._prepare(quotations, *some, limit=batch) if with_quotations else {}
            async with self._writing() as tx:
                began = self._clock.now()
                found = (await tx.execute(select(*columns).where(*some).limit(batch).with_for_update())).all()
                rows = found[: await first_with_at_most(tx, [row.id for row in found], _MOST_FURTHER)]
                said = await self._said(tx, quotations, rows, prepared) if with_quotations else []
                count += await self._erase(tx, transition, rows)
                ids = [row.id for row in rows]
                if with_quotations:
                    await quotations.redact(tx, ids, said)
                    await delete_copies(tx, ids)
                await delete_of_exchanges(tx, ids)
                if beside is not None:
                    await tx.execute(beside)
            is_erased = is_erased and tx.is_erased
            if len(rows) == len(found) < batch:
                return count, is_erased
            await self._transactions.checkpoint()
            # A disk or a machine may be slow, and a row of a large database costs more.  A commit waits for the
            # disk while a checkpoint does.
            seconds = max(self._clock.now() - began, 0.001)
            if len(rows) == len(found):
                batch = max(_LEAST_BATCH, min(_BATCH, round(batch * _MOST_SECONDS / seconds)))

    async def _erase(self, tx: WriteTransaction, transition: Transition, rows: Collection[AnyRow]) -> int:
        """Blank rows, without their further messages; return the number of questions."""
        tx.keys.delete(*(number for row in rows for number in row[2 : len(_ERASED)]))
        # Pages from before the encryption may have a text, until the file is rewritten.
        tx.is_erased = tx.is_erased and (not rows or self._vault.encrypted_to is None)
        ids = [row.id for row in rows]
        await tx.execute(_blanking(transition), {"ids": ids})
        await delete_votes(tx, ids)
        return [row.kind for row in rows].count(Kind.CHAT)

    def _quotations(self) -> Quotations:
        return Quotations(self._transactions, self._vault)

    async def _prepare(
        self, quotations: Quotations, *which: ColumnElement[bool], limit: int | None = None
    ) -> dict[_Version, str]:
        """Find quotations of exchanges; return the texts of those that may be quoted by their words."""
        async with self._transactions.reading() as tx:
            here = (await tx.execute(select(*_PLACE).where(*which).limit(limit))).all()
            quoted = await quotations.read(tx, {(platform, channel) for platform, channel in here})
            if not quoted:
                return {}
            rows = (await tx.execute(select(*_VERSION, *_PLACE, exchanges.c.text).where(*which).limit(limit))).all()
            rows = [row for row in rows if _place(row) in quoted]
            texts = [
                _text(each) for each in await tx.run_sync(partial(self._vault.decrypt, table=exchanges, rows=rows))
            ]
            of_parts = await self._said_in_parts(tx, {row.id: _place(row) for row in rows})
        said = [Said(_place(row), text) for row, text in zip(rows, texts, strict=True)]
        await quotations.prepare([*said, *of_parts])
        return {(row.id, row.question_key): text for row, text in zip(rows, texts, strict=True)}

    async def _said(
        self, tx: WriteTransaction, quotations: Quotations, rows: Collection[AnyRow], prepared: Mapping[_Version, str]
    ) -> list[Said]:
        """Return the texts of rows that may be quoted by their words, before they are blanked.

        Texts that are known are not decrypted again.
        """
        quoted = await quotations.read_added(tx, {row[-2:] for row in rows})
        if not quoted:
            return []
        places = {row.id: _place(row) for row in rows}
        # A text of before the encryption has no key, and may have changed.
        versions = [(row.id, row.question_key) for row in rows if row.question_key is not None]
        texts = {id: prepared[id, key] for id, key in versions if (id, key) in prepared}
        unknown = [id for id, place in places.items() if place in quoted and id not in texts]
        if unknown:
            changed = (await tx.execute(select(*_VERSION, exchanges.c.text).where(exchanges.c.id.in_(unknown)))).all()
            for row, each in zip(changed, await tx.decrypt(exchanges, changed), strict=True):
                texts[row.id] = _text(each)
        of_parts = await self._said_in_parts(tx.connection, {id: each for id, each in places.items() if each in quoted})
        return [*(Said(places[id], text) for id, text in texts.items()), *of_parts]

    async def _said_in_parts(self, tx: AsyncConnection, places: Mapping[int, Place]) -> list[Said]:
        """Return the texts of the further parts of questions, by the ids of their exchanges."""
        texts = await own_texts(tx, self._vault, of_exchanges(places)) if places else []
        return [Said(places[id], text) for id, text in texts]

    async def _bury(self, tx: WriteTransaction, channel: ChannelKey, message_ids: Collection[str]) -> None:
        """Store messages that may still come as deleted, unless they are known."""
        await tx.execute(self._outdated_tombstones())
        rows = self._tombstones(channel, message_ids)
        await tx.execute(self._insert(exchanges).on_conflict_do_nothing(index_elements=KEY), rows)

    def _tombstones(self, channel: ChannelKey, message_ids: Collection[str]) -> list[dict[str, Any]]:
        """Return rows for messages of which nothing is known."""
        today = self._calendar.today()
        gone = [IncomingMessage(id, channel, Author("", "", ""), "", today) for id in message_ids]
        return [
            {**message_values(each), **BLANK, "kind": Kind.CHAT, "status": Status.CLEARED, "seed": 0} for each in gone
        ]

    def _outdated_tombstones(self) -> Delete:
        oldest = self._calendar.today() - TOMBSTONES_KEPT
        return delete(exchanges).where(IS_TOMBSTONE, exchanges.c.sent_at < oldest)


@cache
def _blanking(transition: Transition) -> Update:
    """Build the statement that blanks the rows `ids`."""
    these = exchanges.c.id.in_(bindparam("ids", expanding=True))
    return change(transition).where(IS_KEPT, these).values(**BLANK, **UNANSWERED)


def _place(row: AnyRow) -> Place:
    return row.platform, row.channel


def _text(decrypted: Mapping[str, Any] | DamagedRow) -> str:
    return "" if isinstance(decrypted, DamagedRow) else decrypted["text"]


def _checked(count: int, is_erased: bool) -> int:
    """Return the count; raise NotErased if the files still hold the text."""
    if not is_erased:
        raise NotErased(count)
    return count
