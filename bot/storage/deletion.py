"""Deletions: the row is blanked, then its keys are deleted."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Update, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bot import lifecycle
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage, Kind, Status
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
from bot.storage.keys import BATCH
from bot.storage.opened import shielded
from bot.storage.quoted_text import Said, redact_quotes, replace_quotes
from bot.storage.reading import Reading
from bot.storage.rows import BLANK, UNANSWERED, message_values
from bot.storage.schema import IS_KEPT, IS_TOMBSTONE, PARTS, channels, exchanges
from bot.storage.settings import expire_changes, forget_author
from bot.storage.vault import WriteTransaction

# The key of a message.
KEY = ["platform", "channel", "message"]


class Deletion(Reading):
    """The methods that delete texts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The dialects' own inserts, alike but for their module.
        self._insert = sqlite.insert if self._location.path is not None else postgresql.insert

    @shielded
    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        place = exactly(channel) if channel.thread is not None else within(channel)
        places = here(channel) if channel.thread is not None else with_threads(channel)
        begin_anew = update(channels).where(places).values(is_shortening_told=False)
        return _checked(
            *await self._blank(lifecycle.CLEAR, place, NOT_OPEN_COMMAND, *earlier(before), beside=begin_anew)
        )

    @shielded
    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        theirs = self._by(author), *(earlier(before) or [NOT_OPEN_COMMAND])
        async with self._writing() as tx:
            await forget_author(tx, author.platform, self._vault.pseudonyms(author.platform, author.id))
        return _checked(*await self._blank(lifecycle.CLEAR, *theirs))

    @shielded
    async def erase(self, exchange: Exchange) -> None:
        await self._blank(lifecycle.CLEAR, exchanges.c.id == exchange.id)

    @shielded
    async def delete_messages(
        self, channel: ChannelKey, message_ids: Collection[str], *, is_expected: bool = False
    ) -> None:
        are_they = within(channel), exchanges.c.message.in_(message_ids)
        async with self._writing() as tx:
            if not is_expected and not await has_channel(tx.connection, channel):
                return  # the messages are not for the bot, and nothing quotes them
            await self._bury(tx, channel, message_ids)
            await self._erase(tx, lifecycle.CLEAR, await self._said(tx, *are_they), *are_they)
            await tx.execute(update(exchanges).where(*are_they).values(failure=DELETED))

    @shielded
    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        async with self._writing() as tx:
            await replace_quotes(tx, channel, message_id, text)

    @shielded
    async def expire(self, before: datetime) -> int:
        aged = exchanges.c.sent_at < before
        count, _ = await self._blank(lifecycle.EXPIRE, aged, with_quotations=False)
        async with self._writing() as tx:
            await expire_changes(tx, before)
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
        count, is_erased = 0, True
        some = select(exchanges.c.id).where(IS_KEPT, allowed(transition), *which).limit(BATCH)
        while True:
            async with self._writing() as tx:
                ids = (await tx.execute(some)).scalars().all()
                these = exchanges.c.id.in_(ids)
                said = await self._said(tx, these) if with_quotations else []
                count += await self._erase(tx, transition, said, these)
                if beside is not None:
                    await tx.execute(beside)
            is_erased = is_erased and tx.is_erased
            if len(ids) < BATCH:
                return count, is_erased

    async def _erase(
        self, tx: WriteTransaction, transition: Transition, said: Sequence[Said], *which: ColumnElement[bool]
    ) -> int:
        """Blank rows, and quotations of what was `said`; return the number of questions."""
        columns = exchanges.c.kind, *(exchanges.c[name] for name in key_columns(exchanges))
        rows = (await tx.execute(select(*columns).where(IS_KEPT, allowed(transition), *which).with_for_update())).all()
        for _, *keys in rows:
            tx.keys.delete(*keys)
            # Pages from before the encryption may have its text, until the file is rewritten.
            tx.is_erased = tx.is_erased and self._vault.encrypted_to is None
        await tx.execute(change(transition).where(IS_KEPT, *which).values(**BLANK, **UNANSWERED))
        await redact_quotes(tx, said)
        return [row.kind for row in rows].count(Kind.CHAT)

    async def _said(self, tx: WriteTransaction, *which: ColumnElement[bool]) -> list[Said]:
        """Return what is said in exchanges, before they are blanked."""
        columns = exchanges.c
        query = select(columns.platform, columns.channel, columns.message, PARTS, columns.text, columns.question_key)
        rows = (await tx.execute(query.where(*which))).all()
        decrypted = await tx.decrypt(exchanges, rows)
        return [
            Said(
                row.platform,
                row.channel,
                row.message,
                row.parts or [],
                "" if isinstance(each, DamagedRow) else each["text"],
            )
            for row, each in zip(rows, decrypted, strict=True)
        ]

    async def _bury(self, tx: WriteTransaction, channel: ChannelKey, message_ids: Collection[str]) -> None:
        """Store messages that may still come as deleted, unless they are known."""
        today = self._calendar.today()
        gone = [IncomingMessage(id, channel, Author("", "", ""), "", today) for id in message_ids]
        rows = [
            {**message_values(each), **BLANK, "kind": Kind.CHAT, "status": Status.CLEARED, "seed": 0} for each in gone
        ]
        await tx.execute(delete(exchanges).where(IS_TOMBSTONE, exchanges.c.sent_at < today - TOMBSTONES_KEPT))
        await tx.execute(self._insert(exchanges).on_conflict_do_nothing(index_elements=KEY), rows)


def _checked(count: int, is_erased: bool) -> int:
    """Return the count; raise NotErased if the files still hold the text."""
    if count and not is_erased:
        raise NotErased(count)
    return count
