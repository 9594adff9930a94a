"""Encrypts what is written, decrypts what is read, and deletes keys with the rows."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Row, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.errors import StoreError
from bot.storage.encryption import Cipher, DamagedRow, numbers_in, pseudonym
from bot.storage.keys import Keys
from bot.storage.schema import encryption, exchanges, settings

AnyRow = Row[*tuple[Any, ...]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Vault:
    """Encrypts and decrypts the texts of one database; `open` or `open_to_read` comes first."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.cipher = Cipher(b"")
        self.encrypted_to: int | None = None  # see the table `encryption`
        self.pseudonym_number = -1
        self.pseudonym_key = b""

    def open(self, changes: "KeyChanges", pseudonym_key: bytes = b"") -> None:
        """Read the database's id and keys; give a database without them its own.

        An empty database can have the key of another one's pseudonyms.

        Raises:
            StoreError: The keys are not there, or are not this database's.
        """
        connection = changes.connection
        row = connection.execute(select(encryption)).one_or_none()
        if row is None:
            database = self.keys.create(connection)
            number = changes.take()
            has_rows = any(
                connection.execute(select(table.c.id).limit(1)).first() is not None for table in (exchanges, settings)
            )
            self.encrypted_to = 0 if has_rows else None
            values = {"id": 1, "database": database, "pseudonym_key": number, "used": 0}
            connection.execute(insert(encryption).values(**values, encrypted_to=self.encrypted_to))
            self.keys.settle(connection)
        else:
            database, number, self.encrypted_to = bytes(row.database), row.pseudonym_key, row.encrypted_to
            self.keys.open(connection, database, row.used)
        if pseudonym_key:
            self.keys.replace(connection, number, pseudonym_key)
        self._begin(connection, database, number)

    def open_to_read(self, connection: Connection) -> None:
        """Read the database's id and keys, and change nothing.

        Raises:
            StoreError: As `open`.
        """
        row = connection.execute(select(encryption)).one_or_none()
        if row is not None:  # else no bot has run since the migration
            self.keys.open_to_read(connection, bytes(row.database), row.used)
            self._begin(connection, bytes(row.database), row.pseudonym_key)

    def _begin(self, connection: Connection, database: bytes, number: int) -> None:
        self.cipher = Cipher(database)
        found = self.keys.read(connection, [number])
        if number not in found:
            raise StoreError("the keys of the database are damaged: restore database and keys from one backup")
        self.pseudonym_number, self.pseudonym_key = number, found[number]

    def decrypt(
        self, connection: Connection, table: Table, rows: Iterable[AnyRow]
    ) -> list[dict[str, Any] | DamagedRow]:
        """Return rows with their texts; an error in place of a row that cannot be decrypted."""
        mappings = [row._asdict() for row in rows]
        numbers = [each for row in mappings for each in numbers_in(table, row)]
        keys = self.keys.read(connection, numbers) if numbers else {}
        decrypted: list[dict[str, Any] | DamagedRow] = []
        for row in mappings:
            try:
                decrypted.append(self.cipher.decrypt(table, row, keys))
            except DamagedRow as error:
                decrypted.append(error)
        return decrypted

    def pseudonyms(self, platform: str, person: str) -> list[str]:
        """Return what rows may have for a person: those from before the encryption have the id itself."""
        return [self.pseudonym(platform, person), person]

    def pseudonym(self, platform: str, person: str) -> str:
        return pseudonym(self.pseudonym_key, platform, person)


class KeyChanges:
    """The keys that one transaction makes and deletes.

    A key is durable before a text that is encrypted with it, and is deleted after the row is.
    """

    def __init__(self, connection: Connection, vault: Vault) -> None:
        self.connection = connection
        self._vault = vault
        self._taken: list[int] = []
        self._deleted: set[int] = set()
        self.deletion = 0  # its number, once it is prepared

    def take(self) -> int:
        """Return the number of a new key."""
        number = self._vault.keys.take(self.connection)
        self._taken.append(number)
        return number

    def encrypt(self, table: Table, key_column: str, texts: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the values of columns that are encrypted with a new key, and of its number's column."""
        if not any(texts.values()):
            return {key_column: None, **{name: None if text is None else b"" for name, text in texts.items()}}
        number = self.take()
        key = self._vault.keys.read(self.connection, [number])[number]
        return self._vault.cipher.encrypt(table, key_column, number, key, texts)

    def give_back(self, *numbers: int | None) -> None:
        """Let keys be used again that were made last; nothing was written with them."""
        for number in sorted((each for each in numbers if each is not None), reverse=True):
            self._taken.remove(number)
            self._vault.keys.give_back(number)

    def delete(self, *numbers: int | None) -> None:
        """Delete keys once the rows are; None is no key."""
        # A damaged row may name no number, or that of the key which all rows share.
        self._deleted.update(
            number for number in numbers if isinstance(number, int) and number != self._vault.pseudonym_number
        )

    def prepare(self) -> None:
        """Do what belongs to the transaction, before its commit."""
        self.deletion = self._vault.keys.prepare(self.connection, bool(self._taken), sorted(self._deleted))

    def outdated(self, *, is_committed: bool) -> list[int]:
        """Return the keys to delete when the transaction has ended.

        Where nothing was committed these are its new ones, because SQLite's log may have texts.
        """
        return sorted(self._deleted) if is_committed else self._taken


class WriteTransaction:
    """A transaction of the writer, with the keys that it makes and deletes."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        assert connection.sync_connection is not None
        self.connection = connection
        self.execute = connection.execute
        self.run_sync = connection.run_sync
        self.keys = KeyChanges(connection.sync_connection, vault)
        # Whether no file holds what this transaction deleted, once it has ended.
        self.is_erased = True
        self._vault = vault

    async def encrypt(self, table: Table, key_column: str, texts: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the values of columns that are encrypted with a new key, and of its number's column."""
        return await self.run_sync(lambda _: self.keys.encrypt(table, key_column, texts))

    async def decrypt(self, table: Table, rows: Iterable[AnyRow]) -> list[dict[str, Any] | DamagedRow]:
        """Return rows with their texts; an error in place of a row that cannot be decrypted."""
        return await self.run_sync(partial(self._vault.decrypt, table=table, rows=rows))

    async def prepare(self) -> None:
        await self.run_sync(lambda _: self.keys.prepare())

    async def finish(self, *, is_committed: bool = True) -> None:
        """Delete the keys of deleted texts, durably."""
        outdated = self.keys.outdated(is_committed=is_committed)
        if self._vault.keys.is_finished(outdated):
            return
        try:
            await asyncio.to_thread(self._vault.keys.finish, outdated, self.keys.deletion if is_committed else 0)
        except StoreError as error:
            self.is_erased = self.is_erased and not outdated
            log.warning("deleted text can still be decrypted; the next write retries", error=str(error))
