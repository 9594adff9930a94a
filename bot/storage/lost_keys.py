"""Compare rows with keys, when database and file of keys are not of the same time."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import Connection, Table, not_, select, update
from sqlalchemy.dialects.sqlite import insert  # a server's keys are in the database

from bot import lifecycle
from bot.errors import StoreError
from bot.storage.conditions import change
from bot.storage.encryption import key_columns, numbers_in
from bot.storage.feedback import delete_consents, delete_some_votes, delete_votes
from bot.storage.further import EVERYWHERE, delete_of_exchanges, set_readable_since
from bot.storage.keys import BATCH, Mismatch
from bot.storage.rows import BLANK, UNANSWERED, UNQUOTED
from bot.storage.schema import IS_KEPT, IS_OWED, exchanges, metadata, readable_since
from bot.storage.transactions import Transactions
from bot.storage.vault import AnyRow, Vault, WriteTransaction

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LostKeys:
    """Goes through all rows by id after a start that found a mismatch.

    A row whose question or answer has lost its key is cleared; a quotation that has is deleted.  Owed ones
    are left: the claim finds them, and their channel is told.  Keys without a row in any table, of a file that
    is older than the database, are deleted again.

    A restored database has votes and consents that may have been taken back since, and not what /clear and
    /forget me have made unreadable since: all of the former are deleted, and no earlier message is read.
    """

    def __init__(
        self,
        vault: Vault,
        transactions: Transactions,
        begin: Callable[[], AbstractAsyncContextManager[WriteTransaction]],
        today: Callable[[], datetime],
    ) -> None:
        self.count = 0  # of what was cleared
        self._orphans = 0
        self._vault = vault
        self._transactions = transactions
        self._begin = begin
        self._today = today

    async def run(self) -> None:
        try:
            if (mismatch := self._vault.keys.mismatch) is not None:
                await self._compare(mismatch)
        except StoreError as error:
            log.warning("not all rows were compared with their keys; the next start does", error=str(error))
        if self.count:
            log.warning(
                "exchanges cleared whose keys are deleted: the database is older than its keys", count=self.count
            )
        if self._orphans:
            log.warning("keys of deleted texts deleted again: they were older than the database", count=self._orphans)

    async def _compare(self, mismatch: Mismatch) -> None:
        if mismatch.is_restored:
            await asyncio.shield(self._transactions.start(self._forget_restored(), "lost keys"))
        # Of each number, whether a row has it.  What is numbered later is of rows from after the start.
        is_used = bytearray(mismatch.used)
        _mark(is_used, [self._vault.pseudonym_number])
        last: int | None = 0
        while last is not None:
            last = await asyncio.shield(self._transactions.start(self._check_after(last, is_used), "lost keys"))
        if mismatch.has_orphans:
            for table in metadata.sorted_tables:
                if key_columns(table) and table is not exchanges:
                    await asyncio.shield(self._transactions.start(self._mark_all(table, is_used), "lost keys"))
            unused = [number for number, each in enumerate(is_used) if not each]
            for start in range(0, len(unused), BATCH):
                some = unused[start : start + BATCH]
                await asyncio.shield(self._transactions.start(self._delete_orphans(some), "lost keys"))
        await asyncio.shield(self._transactions.start(self._settle(), "lost keys"))

    async def _forget_restored(self) -> None:
        async with self._begin() as tx:
            await set_readable_since(tx, insert(readable_since), *EVERYWHERE, self._today())
            await delete_consents(tx)
        is_any = True
        while is_any:
            async with self._begin() as tx:
                is_any = await delete_some_votes(tx, BATCH)
        log.warning("votes and consents deleted, earlier messages stay unread: the database is older than its keys")

    async def _check_after(self, last: int, is_used: bytearray) -> int | None:
        """Check some rows; return the last one's id, None if there was none."""
        columns = exchanges.c.id, *(exchanges.c[name] for name in key_columns(exchanges))
        some = select(*columns).where(exchanges.c.id > last).order_by(exchanges.c.id).limit(BATCH)
        async with self._transactions.reading() as reader:
            rows = (await reader.execute(some)).all()
            lost = await reader.run_sync(partial(self._lost, rows=rows))
        for row in rows:
            _mark(is_used, numbers_in(exchanges, row._asdict()))
        if lost:
            # A deletion may have come between the row and its key.
            these = select(*columns).where(exchanges.c.id.in_(lost), IS_KEPT, not_(IS_OWED)).with_for_update()
            async with self._begin() as tx:
                them = (await tx.execute(these)).all()
                lost = await tx.run_sync(partial(self._lost, rows=them))
                await self._clear(tx, [row for row in them if row.id in lost], lost)
        return rows[-1].id if rows else None

    def _lost(self, connection: Connection, rows: Collection[AnyRow]) -> dict[int, set[str]]:
        """Return the rows with lost keys, and the columns with the numbers of these."""
        names = list(key_columns(exchanges))
        numbers = {row.id: {name: row._mapping[name] for name in names} for row in rows}
        wanted = {number for row in numbers.values() for number in row.values() if isinstance(number, int)}
        found = self._vault.keys.read(connection, wanted)
        lost = {
            id: {name for name, number in row.items() if number is not None and number not in found}
            for id, row in numbers.items()
        }
        return {id: columns for id, columns in lost.items() if columns}

    async def _clear(self, tx: WriteTransaction, rows: Collection[AnyRow], lost: dict[int, set[str]]) -> None:
        unquoted = [row.id for row in rows if lost[row.id] == {"quotation_key"}]
        cleared = [row for row in rows if row.id not in unquoted]
        for row in cleared:
            tx.keys.delete(*(row._mapping[name] for name in key_columns(exchanges)))
        clear = change(lifecycle.CLEAR).where(exchanges.c.id.in_([row.id for row in cleared]))
        await tx.execute(clear.values(**BLANK, **UNANSWERED))
        await delete_votes(tx, [row.id for row in cleared])
        await delete_of_exchanges(tx, [row.id for row in cleared])
        await tx.execute(update(exchanges).where(exchanges.c.id.in_(unquoted)).values(UNQUOTED))
        self.count += len(cleared)

    async def _mark_all(self, table: Table, is_used: bytearray) -> None:
        """Mark the keys of all texts of a table."""
        async with self._transactions.reading() as reader:
            rows = (await reader.execute(select(*(table.c[name] for name in key_columns(table))))).all()
        for row in rows:
            _mark(is_used, numbers_in(table, row._asdict()))

    async def _delete_orphans(self, unused: list[int]) -> None:
        async with self._begin() as tx:
            orphans = await tx.run_sync(partial(self._existing, numbers=unused))
            tx.keys.delete(*orphans)
        self._orphans += len(orphans)

    def _existing(self, connection: Connection, numbers: Collection[int]) -> list[int]:
        return list(self._vault.keys.read(connection, numbers))

    async def _settle(self) -> None:
        async with self._begin() as tx:
            await tx.run_sync(lambda _: self._vault.keys.settle(tx.keys.connection))


def _mark(is_used: bytearray, numbers: Collection[int]) -> None:
    for number in numbers:
        if 0 <= number < len(is_used):  # a damaged row may have any
            is_used[number] = True
