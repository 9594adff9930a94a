"""Encrypt the rows from before the encryption, while the bot serves."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
from sqlalchemy import Table, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.errors import StoreError
from bot.storage.connections import Location
from bot.storage.encryption import DamagedRow, key_columns, pseudonyms
from bot.storage.errors import map_errors
from bot.storage.schema import encryption, exchanges, settings
from bot.storage.transactions import Transactions
from bot.storage.vault import Vault, WriteTransaction
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Rows that are encrypted in one transaction; other writers take turns with them.
_BATCH = 50

# Seconds until another try, when the disk was full, or another program was reading the file.
_RETRY = 600.0

# Free bytes that a rewrite needs, in sizes of the file: its copy, and as much in the log.
_ROOM = 2.1


class Conversion:
    """Goes through the rows by id, then rewrites a SQLite file once, so that no old page has a text.

    The last id is stored with each batch: a process that was killed goes on there.
    """

    def __init__(
        self,
        location: Location,
        vault: Vault,
        transactions: Transactions,
        begin: Callable[[], AbstractAsyncContextManager[WriteTransaction]],
        clock: Clock,
    ) -> None:
        self._location = location
        self._vault = vault
        self._transactions = transactions
        self._begin = begin
        self._clock = clock
        self.left = 0  # exchanges

    async def run(self) -> None:
        """Convert everything; return once nothing is left to do."""
        if self._vault.encrypted_to is None:
            return
        while True:
            try:
                await self._start(self._count)
                log.info("encrypting texts of an older version; then the file is rewritten", exchanges=self.left)
                while await self._start(self._encrypt_settings) or await self._start(self._encrypt_some):
                    pass
                if self._location.path is None or await self._start(self._rewrite):
                    await self._start(self._end)
                    log.info("all texts are encrypted")
                    return
            except StoreError as error:
                log.warning("texts of an older version are not encrypted yet", retry_in=_RETRY, error=str(error))
            await self._clock.sleep(_RETRY)

    async def _start(self, step: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """Run a step that a cancellation does not interrupt."""
        work: Awaitable[bool] = self._transactions.start(step(), "convert")
        return await asyncio.shield(work)

    async def _count(self) -> bool:
        """Count the rows that are left; return whether there are any."""
        later = select(func.count()).where(exchanges.c.id > (self._vault.encrypted_to or 0))
        async with self._transactions.reading() as tx:
            self.left = (await tx.execute(later)).scalar_one()
        return bool(self.left)

    async def _encrypt_some(self) -> bool:
        """Encrypt some rows; return whether there were any."""
        last = self._vault.encrypted_to or 0
        some = select(exchanges).where(exchanges.c.id > last).order_by(exchanges.c.id).limit(_BATCH)
        async with self._begin() as tx:
            rows = (await tx.execute(some)).all()
            for texts in await tx.decrypt(exchanges, rows):
                if not isinstance(texts, DamagedRow):
                    await self._encrypt(tx, exchanges, texts)
            if rows:
                last = rows[-1].id
                await tx.execute(update(encryption).where(encryption.c.id == 1).values(encrypted_to=last))
        self._vault.encrypted_to = last
        self.left -= len(rows)
        return bool(rows)

    async def _encrypt_settings(self) -> bool:
        """Encrypt some settings that were set in the chat; return whether there were any."""
        some = select(settings).where(settings.c.text_key.is_(None), settings.c.author != "").limit(_BATCH)
        async with self._begin() as tx:
            rows = (await tx.execute(some)).all()
            for texts in await tx.decrypt(settings, rows):
                assert not isinstance(texts, DamagedRow), "it has no key"
                await self._encrypt(tx, settings, texts)
        return bool(rows)

    async def _encrypt(self, tx: WriteTransaction, table: Table, row: dict[str, Any]) -> None:
        values: dict[str, Any] = {}
        for column, person in pseudonyms(table).items():
            if row[table.c[person].info["key"]] is None and row[column]:
                row[person] = row[column]
                values[column] = self._vault.pseudonym(row["author_platform"], row[person])
        for key_column, columns in key_columns(table).items():
            texts = {column.name: row[column.name] for column in columns}
            if row[key_column] is None and any(texts.values()):
                values |= await tx.encrypt(table, key_column, texts)
        if values:
            await tx.execute(update(table).where(table.c.id == row["id"]).values(values))

    async def _rewrite(self) -> bool:
        """Rewrite the file; return whether no page of it, and none of its log, is an old one."""
        path = self._location.path
        assert path is not None
        size = path.stat().st_size
        if shutil.disk_usage(path.parent).free < _ROOM * size:
            log.warning("no room to rewrite the database, which still holds unencrypted text", needed=int(_ROOM * size))
            return False
        began = self._clock.now()
        with map_errors(self._location.name):
            async with self._transactions.lock.acquire(), self._transactions.writer.connect() as connection:
                await connection.execution_options(skip_begin=True)
                # In memory the copy would take as much as the whole file.
                await connection.exec_driver_sql("PRAGMA temp_store=FILE")
                try:
                    await connection.exec_driver_sql("VACUUM")
                finally:
                    await connection.exec_driver_sql("PRAGMA temp_store=MEMORY")
                is_busy = await _truncate_log(connection)
        log.info("database rewritten", seconds=round(self._clock.now() - began, 1))
        if is_busy:
            log.warning("another program reads the database, whose log still holds unencrypted text")
        return not is_busy

    async def _end(self) -> bool:
        async with self._begin() as tx:
            await tx.execute(update(encryption).where(encryption.c.id == 1).values(encrypted_to=None))
        self._vault.encrypted_to = None
        return True


async def _truncate_log(connection: AsyncConnection) -> bool:
    """Empty SQLite's log; return whether other programs prevent it."""
    return bool((await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one())
