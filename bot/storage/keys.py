"""The keys of a database: in a file beside SQLite, in a table on a server."""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import structlog
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import sqlite

from bot.errors import StoreError
from bot.storage.connections import Location
from bot.storage.encryption import KEY_SIZE
from bot.storage.key_file import KeyFile, Marks, path_beside
from bot.storage.master_key import CHECK_SIZE, NO_MASTER_KEY, MasterKeys, Wrapping
from bot.storage.schema import encryption, key_deletions, text_keys

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Rows per statement: SQLite limits the number of values.
BATCH = 500

# The row of a server's keys with the check value of the master key; keys are numbered from 1.
_CHECK_ROW = 0


class Keys(Protocol):
    """Keys by number.  All calls block, those on a file for as long as a disk takes where this is said."""

    def create(self, connection: Connection) -> bytes:
        """Begin with a new database; return its id."""
        ...

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        """Begin with a known database, and finish deletions that a crash interrupted."""
        ...

    def open_to_read(self, connection: Connection, database: bytes, used: int) -> None:
        """Begin to read only, perhaps while a bot runs."""
        ...

    def take(self, connection: Connection) -> int:
        """Return the number of a new key, which is durable before the transaction is."""
        ...

    def give_back(self, number: int) -> None:
        """Let the number that was taken last be taken again: nothing was written with its key."""
        ...

    def replace(self, connection: Connection, number: int, key: bytes) -> None:
        """Give a number, with which nothing was written, the key of another database; as durable as a new one."""
        ...

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        """Return keys by number; deleted ones are left out."""
        ...

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> int:
        """Make a transaction that is about to be committed recoverable; return the number of its deletion, or 0."""
        ...

    def finish(self, deleted: Collection[int], deletion: int = 0) -> None:
        """Delete keys after the commit, durably, and make keys for later: waits for a disk."""
        ...

    def is_finished(self, deleted: Collection[int]) -> bool:
        """Return whether `finish` has nothing to do."""
        ...

    @property
    def mismatch(self) -> "Mismatch | None":
        """How keys and rows may differ since `open`; None if they do not."""
        ...

    def settle(self, connection: Connection) -> None:
        """Store that keys and rows match."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Rows may have lost their keys; with `has_orphans`, keys numbered below `used` may have lost their rows.

    With `is_restored` the database may be older than its keys.
    """

    used: int
    has_orphans: bool
    is_restored: bool


class FileKeys:
    """Keys in a file; what is to be deleted is in a table until it is."""

    def __init__(self, database: Path, master: MasterKeys = NO_MASTER_KEY) -> None:
        self._file = KeyFile(path_beside(database), master)
        self._done: set[int] = set()  # deleted, but still in the table
        self._undone: set[int] = set()  # the file could not be written
        self._finishing = Lock()  # transactions finish in threads, several at once
        self._mismatch: Mismatch | None = None

    def create(self, connection: Connection) -> bytes:
        return self._file.create()

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        self._file.open(database, used)
        deletions, began = connection.execute(select(encryption.c.deletions, encryption.c.began)).one()
        here = self._file.deletions
        # A later database has deleted keys, or an earlier one's file was put in the place of this one's.
        if deletions is None or here > deletions or here < began:
            is_restored = deletions is None or here > deletions
            self._mismatch = Mismatch(used, has_orphans=here < began, is_restored=is_restored)
            connection.execute(update(encryption).values(deletions=None))
            deletions = 0
        numbers = connection.execute(select(key_deletions.c.number)).scalars().all()
        self._file.delete(numbers, deletions)
        self._done.update(numbers)

    def open_to_read(self, connection: Connection, database: bytes, used: int) -> None:
        self._file.open(database, used, is_read_only=True)

    def take(self, connection: Connection) -> int:
        if not self._file.room:
            with self._finishing:
                if not self._file.room:
                    self._file.extend()
        return self._file.take()

    def give_back(self, number: int) -> None:
        self._file.give_back(number)

    def replace(self, connection: Connection, number: int, key: bytes) -> None:
        self._file.replace(number, key)

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        return self._file.read(numbers)

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> int:
        if is_any_taken:
            connection.execute(update(encryption).where(encryption.c.id == 1).values(used=self._file.used))
        if not deleted:
            return 0
        connection.execute(
            sqlite.insert(key_deletions).on_conflict_do_nothing(), [{"number": number} for number in deleted]
        )
        done = sorted(self._done)
        for start in range(0, len(done), BATCH):
            some = done[start : start + BATCH]
            connection.execute(delete(key_deletions).where(key_deletions.c.number.in_(some)))
        self._done.difference_update(done)
        # While the number is null, rows are compared with keys, and it stays null.  An older file's count does
        # not replace a higher `began`: by that the next start knows of it, if this one ends before it has compared.
        began = func.max(encryption.c.began, self._file.deletions)
        counted = update(encryption).values(deletions=encryption.c.deletions + 1, began=began)
        number = connection.execute(counted.where(encryption.c.id == 1).returning(encryption.c.deletions)).scalar_one()
        return number or 0

    def finish(self, deleted: Collection[int], deletion: int = 0) -> None:
        with self._finishing:
            numbers = self._undone.union(deleted)
            try:
                self._file.delete(numbers, deletion)
            except StoreError:
                self._undone = numbers
                raise
            self._undone = set()
            self._done |= numbers
            if self._file.is_short:
                self._extend_early()

    def _extend_early(self) -> None:
        try:
            self._file.extend()
        except StoreError as error:  # `take` raises it once no key is left
            log.warning("no keys for later texts can be made; the next write retries", error=str(error))

    def is_finished(self, deleted: Collection[int]) -> bool:
        return not deleted and not self._undone and not self._file.is_short

    def marks(self) -> Marks:
        """Return the marks of the file (OpenFiles)."""
        return self._file.marks()

    @property
    def mismatch(self) -> Mismatch | None:
        return self._mismatch

    def settle(self, connection: Connection) -> None:
        began = connection.execute(select(encryption.c.began)).scalar_one()
        self._file.count(max(began, self._file.deletions))
        connection.execute(update(encryption).where(encryption.c.id == 1).values(deletions=self._file.deletions))
        self._mismatch = None

    def close(self) -> None:
        self._file.close()


class TableKeys:
    """Keys in a table of the database's server, whose logs and backups are its operator's.

    Row 0 has the check value of the master key, if there is one.
    """

    def __init__(self, name: str, master: MasterKeys = NO_MASTER_KEY) -> None:
        self._name = name
        self._master = master
        self._wrapping = Wrapping(None, b"")

    def create(self, connection: Connection) -> bytes:
        database = secrets.token_bytes(16)
        self._wrapping = Wrapping(self._master.current, database)
        self._write_check(connection)
        return database

    def open(self, connection: Connection, database: bytes, used: int) -> None:
        # No deletion is left to finish: keys are deleted in the transaction itself.
        self.open_to_read(connection, database, used)
        wanted = self._master.wanted(database, self._wrapping)
        if wanted is not None:
            self._rewrap(connection, wanted)

    def open_to_read(self, connection: Connection, database: bytes, used: int) -> None:
        check = connection.execute(select(text_keys.c.key).where(text_keys.c.number == _CHECK_ROW)).scalar()
        self._wrapping = self._master.find(database, bytes(check or bytes(CHECK_SIZE)), self._name)

    def _rewrap(self, connection: Connection, wanted: Wrapping) -> None:
        """Encrypt all keys with another master key, in the transaction."""
        changed = update(text_keys).where(text_keys.c.number == bindparam("of")).values(key=bindparam("changed"))
        last = _CHECK_ROW
        while True:
            some = select(text_keys).where(text_keys.c.number > last).order_by(text_keys.c.number).limit(BATCH)
            rows = connection.execute(some).all()
            if not rows:
                break
            last = rows[-1].number
            wrapped = wanted.wrap(self._wrapping.unwrap(_sized(rows)))
            connection.execute(changed, [{"of": number, "changed": key} for number, key in wrapped.items()])
        self._wrapping = wanted
        self._write_check(connection)

    def _write_check(self, connection: Connection) -> None:
        connection.execute(delete(text_keys).where(text_keys.c.number == _CHECK_ROW))
        if any(self._wrapping.check):
            connection.execute(insert(text_keys).values(number=_CHECK_ROW, key=self._wrapping.check))

    def take(self, connection: Connection) -> int:
        # Random is what it decrypts to, also with a master key.
        new = insert(text_keys).values(key=secrets.token_bytes(KEY_SIZE)).returning(text_keys.c.number)
        number: int = connection.execute(new).scalar_one()
        return number

    def give_back(self, number: int) -> None:
        """Do nothing: a key that nothing uses harms nothing."""

    def replace(self, connection: Connection, number: int, key: bytes) -> None:
        [wrapped] = self._wrapping.wrap({number: key}).values()
        connection.execute(update(text_keys).where(text_keys.c.number == number).values(key=wrapped))

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        wanted = sorted(set(numbers) - {_CHECK_ROW})
        keys: dict[int, bytes] = {}
        for start in range(0, len(wanted), BATCH):
            query = select(text_keys).where(text_keys.c.number.in_(wanted[start : start + BATCH]))
            keys |= _sized(connection.execute(query))
        return self._wrapping.unwrap(keys)

    def prepare(self, connection: Connection, is_any_taken: bool, deleted: Sequence[int]) -> int:
        for start in range(0, len(deleted), BATCH):
            some = deleted[start : start + BATCH]
            gone = text_keys.c.number.in_(some), text_keys.c.number != _CHECK_ROW  # which a damaged row may name
            connection.execute(delete(text_keys).where(*gone))
        return 0

    def finish(self, deleted: Collection[int], deletion: int = 0) -> None:
        """They were deleted with the transaction."""

    def is_finished(self, deleted: Collection[int]) -> bool:
        return True

    @property
    def mismatch(self) -> Mismatch | None:
        return None  # keys and rows are in one database

    def settle(self, connection: Connection) -> None:
        """Keys and rows always match."""

    def close(self) -> None:
        """Close nothing."""


def _sized(rows: Iterable[Row[Any]]) -> dict[int, bytes]:
    """Return the keys of rows; a damaged one may have any size."""
    return {row.number: bytes(row.key) for row in rows if len(row.key) == KEY_SIZE}


def keys_of(location: Location, master: MasterKeys = NO_MASTER_KEY) -> Keys:
    """Return the keys of a database."""
    return TableKeys(location.name, master) if location.path is None else FileKeys(location.path, master)
