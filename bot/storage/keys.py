"""The keys of a database: in a file beside SQLite, in a table on a server."""

import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import sqlite

from bot.errors import StoreError
from bot.storage.connections import Location
from bot.storage.encryption import KEY_SIZE
from bot.storage.key_file import KeyFile, path_beside
from bot.storage.schema import encryption, key_deletions, text_keys

# Rows per statement: SQLite limits the number of values.
BATCH = 500


class Keys(Protocol):
    """Keys by number.  All calls block, those on a file for as long as a disk takes where this is said."""

    def create(self, connection: Connection) -> bytes:
        """Begin with a new database; return its id."""
        ...

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        """Begin with a known database, and finish deletions that a crash interrupted."""
        ...

    def open_to_read(self, database: bytes, used: int) -> None:
        """Begin to read only, perhaps while a bot runs."""
        ...

    def take(self, connection: Connection) -> int:
        """Return the number of a new key, which is durable before the transaction is."""
        ...

    def give_back(self, number: int) -> None:
        """Let the number that was taken last be taken again: nothing was written with its key."""
        ...

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        """Return keys by number; deleted ones are left out."""
        ...

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> None:
        """Make a transaction that is about to be committed recoverable."""
        ...

    def finish(self, deleted: Collection[int]) -> None:
        """Delete keys after the commit, durably, and make keys for later: waits for a disk."""
        ...

    def is_finished(self, deleted: Collection[int]) -> bool:
        """Return whether `finish` has nothing to do."""
        ...

    def close(self) -> None: ...


class FileKeys:
    """Keys in a file; what is to be deleted is in a table until it is."""

    def __init__(self, database: Path) -> None:
        self._file = KeyFile(path_beside(database))
        self._done: set[int] = set()  # deleted, but still in the table
        self._undone: set[int] = set()  # the file could not be written

    def create(self, connection: Connection) -> bytes:
        return self._file.create()

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        self._file.open(database, used)
        numbers = connection.execute(select(key_deletions.c.number)).scalars().all()
        self._file.delete(numbers)
        self._done.update(numbers)

    def open_to_read(self, database: bytes, used: int) -> None:
        self._file.open(database, used, is_read_only=True)

    def take(self, connection: Connection) -> int:
        if not self._file.room:
            self._file.extend()
        return self._file.take()

    def give_back(self, number: int) -> None:
        self._file.give_back(number)

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        return self._file.read(numbers)

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> None:
        if is_any_taken:
            connection.execute(update(encryption).where(encryption.c.id == 1).values(used=self._file.used))
        if not deleted:
            return
        connection.execute(
            sqlite.insert(key_deletions).on_conflict_do_nothing(), [{"number": number} for number in deleted]
        )
        done = sorted(self._done)
        for start in range(0, len(done), BATCH):
            some = done[start : start + BATCH]
            connection.execute(delete(key_deletions).where(key_deletions.c.number.in_(some)))
        self._done.difference_update(done)

    def finish(self, deleted: Collection[int]) -> None:
        numbers = self._undone.union(deleted)
        try:
            self._file.delete(numbers)
        except StoreError:
            self._undone = numbers
            raise
        self._undone = set()
        self._done |= numbers
        if self._file.is_short:
            self._file.extend()

    def is_finished(self, deleted: Collection[int]) -> bool:
        return not deleted and not self._undone and not self._file.is_short

    def close(self) -> None:
        self._file.close()


class TableKeys:
    """Keys in a table of the database's server, whose logs and backups are its operator's."""

    def create(self, connection: Connection) -> bytes:
        return secrets.token_bytes(16)

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        """Nothing is left to finish: keys are deleted in the transaction itself."""

    def open_to_read(self, database: bytes, used: int) -> None:
        """Open nothing."""

    def take(self, connection: Connection) -> int:
        new = insert(text_keys).values(key=secrets.token_bytes(KEY_SIZE)).returning(text_keys.c.number)
        number: int = connection.execute(new).scalar_one()
        return number

    def give_back(self, number: int) -> None:
        """Do nothing: a key that nothing uses harms nothing."""

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        wanted = sorted(set(numbers))
        keys: dict[int, bytes] = {}
        for start in range(0, len(wanted), BATCH):
            query = select(text_keys).where(text_keys.c.number.in_(wanted[start : start + BATCH]))
            keys.update({row.number: bytes(row.key) for row in connection.execute(query)})
        return keys

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> None:
        for start in range(0, len(deleted), BATCH):
            some = deleted[start : start + BATCH]
            connection.execute(delete(text_keys).where(text_keys.c.number.in_(some)))

    def finish(self, deleted: Collection[int]) -> None:
        """They were deleted with the transaction."""

    def is_finished(self, deleted: Collection[int]) -> bool:
        return True

    def close(self) -> None:
        """Close nothing."""


def keys_of(location: Location) -> Keys:
    """Return the keys of a database."""
    return TableKeys() if location.path is None else FileKeys(location.path)
