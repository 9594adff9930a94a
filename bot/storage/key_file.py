"""The file of keys beside a SQLite database: a text is deleted by overwriting its key.

A header of 64 bytes, then slots of 32 bytes.  A slot is random before its number is used, so
that a new key needs no write; a deleted key is zero, and its number is never used again.
"""

import os
import secrets
from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path

from bot.errors import StoreError
from bot.storage.encryption import KEY_SIZE

_MAGIC = b"botkeys\x01"
_ID_SIZE = 16
_HEADER_SIZE = 64
# Slots that are made at once; one fsync each time.
_BLOCK = 512
_DELETED = bytes(KEY_SIZE)

_RESTORE = "restore it from the backup of the same time as the database"


def path_beside(database: Path) -> Path:
    """Return where the keys of a database are."""
    return database.with_name(f"{database.name}.keys")


class KeyFile:
    """Keys by number, in a file that is opened once.

    Calls block.

    Raises:
        StoreError: In every method: the file cannot be read or written, or is not the database's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._next = 0  # the number of the next key
        self._end = 0  # slots in the file
        self.database = b""

    def create(self) -> bytes:
        """Create the file with a new id, or take one that belongs to no database over; return the id."""
        if self._path.exists():
            self._open()
            self._next = self._end
            return self.database
        database = secrets.token_bytes(_ID_SIZE)
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            partial.unlink(missing_ok=True)
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(file, (_MAGIC + database).ljust(_HEADER_SIZE, b"\0"))
                os.fsync(file)
            finally:
                os.close(file)
            partial.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise self._failed("cannot be created", error) from error
        self._open()
        return database

    def open(self, database: bytes, used: int, *, is_read_only: bool = False) -> None:
        """Open the file of this database, of which `used` numbers are used; read-only beside a bot that runs."""
        self._open(os.O_RDONLY if is_read_only else os.O_RDWR)
        if self.database != database:
            self.close()
            raise StoreError(f"{self._path} has the keys of another database: {_RESTORE}")
        if self._end < used:
            self.close()
            raise StoreError(f"{self._path} is shorter than its database needs, keys are missing: {_RESTORE}")
        self._next = used
        if used < self._end and not is_read_only:
            # A transaction that was never committed may have used them.
            self._write(used, [secrets.token_bytes(KEY_SIZE) for _ in range(self._end - used)])
            self._sync()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def used(self) -> int:
        """How many numbers are used, deleted ones included."""
        return self._next

    @property
    def room(self) -> int:
        """How many keys `take` can return."""
        return self._end - self._next

    @property
    def is_short(self) -> bool:
        """Whether it is time to make keys for later."""
        return self.room < _BLOCK // 2

    def extend(self) -> None:
        """Make keys for later."""
        self._write(self._end, [secrets.token_bytes(KEY_SIZE) for _ in range(_BLOCK)])
        self._sync()
        self._end += _BLOCK

    def take(self) -> int:
        """Return the number of a key that nothing uses."""
        assert self.room, "extend first"
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        """Let the last number be used again; nothing was written with its key."""
        assert number == self._next - 1
        self._next -= 1

    def read(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return keys by number, without deleted ones."""
        keys = {}
        for number in numbers:
            if not 0 <= number < self._end:
                continue
            try:
                slot = os.pread(self._file, KEY_SIZE, _offset(number))
            except OSError as error:
                raise self._failed("cannot be read", error) from error
            if len(slot) == KEY_SIZE and slot != _DELETED:
                keys[number] = slot
        return keys

    def delete(self, numbers: Collection[int]) -> None:
        """Overwrite keys; durable when this returns."""
        numbers = {number for number in numbers if 0 <= number < self._end}
        if not numbers:
            return
        # Consecutive slots are one write.
        for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
            consecutive = [number for _, number in run]
            self._pwrite(bytes(KEY_SIZE * len(consecutive)), consecutive[0])
        self._sync()

    def _open(self, mode: int = os.O_RDWR) -> None:
        try:
            self._file = os.open(self._path, mode)
            header = os.pread(self._file, _HEADER_SIZE, 0)
            self._end = max(0, os.fstat(self._file).st_size - _HEADER_SIZE) // KEY_SIZE
        except FileNotFoundError:
            raise StoreError(
                f"{self._path} is missing, and no text can be read without these keys: {_RESTORE}"
            ) from None
        except OSError as error:
            raise self._failed("cannot be opened", error) from error
        if len(header) < _HEADER_SIZE or not header.startswith(_MAGIC):
            self.close()
            raise StoreError(f"{self._path} is no file of keys: {_RESTORE}")
        self.database = header[len(_MAGIC) : len(_MAGIC) + _ID_SIZE]

    def _write(self, first: int, keys: list[bytes]) -> None:
        self._pwrite(b"".join(keys), first)

    def _pwrite(self, data: bytes, first: int) -> None:
        offset = _offset(first)
        try:
            while data:
                written = os.pwrite(self._file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise self._failed("cannot be written", error) from error

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._failed("cannot be written", error) from error

    def _failed(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"{self._path} {what} ({error.strerror}): the bot's user needs read and write permission, and the disk space"
        )


def _offset(number: int) -> int:
    return _HEADER_SIZE + KEY_SIZE * number


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
