"""The file of keys beside a SQLite database: a text is deleted by overwriting its key.

A header of 64 bytes, then slots of 32 bytes.  A slot is random before its number is used, so
that a new key needs no write; a deleted key is zero, and its number is never used again.  With a
master key a slot is a key that is encrypted; a random one decrypts to a random key.
"""

import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import structlog

from bot.errors import StoreError
from bot.storage.encryption import KEY_SIZE
from bot.storage.master_key import CHECK_SIZE, NO_MASTER_KEY, MasterKeys, Wrapping
from bot.util.files import sync_path

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAGIC = b"botkeys\x01"
_ID_SIZE = 16
_HEADER_SIZE = 64
_CHECK = len(_MAGIC) + _ID_SIZE  # where the check value of the master key begins; zero without one
_COUNT = _CHECK + CHECK_SIZE  # where the number of the newest deletion begins
_COUNT_SIZE = 8
# Slots that are made at once; one fsync each time.
_BLOCK = 512
_DELETED = bytes(KEY_SIZE)
# Slots that are encrypted again in one step.
_MANY = 32_768

# Of a file: bytes that never change, and numbers that never decrease.
Marks = tuple[bytes, tuple[int, ...]]

_RESTORE = "restore it from the backup of the same time as the database"


def path_beside(database: Path) -> Path:
    """Return where the keys of a database are: like SQLite's log, beside the file that a symbolic link names."""
    with suppress(PermissionError):  # of its folder, which opening it reports
        if database.is_symlink():
            database = database.resolve()
    return database.with_name(f"{database.name}.keys")


class KeyFile:
    """Keys by number, in a file that is opened once.

    Calls block.

    Raises:
        StoreError: In every method: the file cannot be read or written, or is not the database's.
    """

    def __init__(self, path: Path, master: MasterKeys = NO_MASTER_KEY) -> None:
        self._path = path
        self._master = master
        self._wrapping = Wrapping(None, b"")
        self._file = -1
        self._next = 0  # the number of the next key
        self._end = 0  # slots in the file
        self.database = b""
        self._last: tuple[int, bytes] | None = None  # a slot, and what it had when `marks` was first called
        self.deletions = 0  # the number of the newest deletion that was begun in the file

    def create(self) -> bytes:
        """Create the file with a new id, or take one that belongs to no database over; return the id."""
        if not self._path.exists():
            database = secrets.token_bytes(_ID_SIZE)
            partial = self._beside("partial")
            with self._mapped("cannot be created"):
                partial.unlink(missing_ok=True)
                file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    os.write(file, _header(database, Wrapping(self._master.current, database), 0))
                    os.fsync(file)
                finally:
                    os.close(file)
                partial.replace(self._path)
                sync_path(self._path.parent)
        self._open()
        self._follow_master()
        self._next = self._end
        return self.database

    def open(self, database: bytes, used: int, *, is_read_only: bool = False) -> None:
        """Open the file of this database, of which `used` numbers are used; read-only beside a bot that runs."""
        self._open_of(database, used, os.O_RDONLY if is_read_only else os.O_RDWR)
        self._next = used
        if is_read_only:
            self._wrapping = self._find_wrapping()
            return
        self._warn_of_readers()
        self._follow_master()
        if used < self._end:
            # A transaction that was never committed may have used them.
            self._write(used, [secrets.token_bytes(KEY_SIZE) for _ in range(self._end - used)])
            self._sync()

    def check(self, database: bytes, used: int) -> None:
        """Check that the file is that of this database and complete; needs no master key."""
        self._open_of(database, used, os.O_RDONLY)
        self.close()

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
        return self._file >= 0 and self.room < _BLOCK // 2

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

    def replace(self, number: int, key: bytes) -> None:
        """Give a number, with which nothing was written, another key; durable when this returns."""
        self._write(number, list(self._wrapping.wrap({number: key}).values()))
        self._sync()

    def read(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return keys by number, without deleted ones."""
        slots = {}
        with self._mapped("cannot be read"):
            for number in numbers:
                if 0 <= number < self._end:
                    slot = os.pread(self._file, KEY_SIZE, _offset(number))
                    if len(slot) < KEY_SIZE:
                        raise StoreError(f"{self._path} was replaced meanwhile: try again")
                    if slot != _DELETED:
                        slots[number] = slot
        return self._wrapping.unwrap(slots)

    def count(self, deletion: int) -> None:
        """Store the number of the newest deletion, durably."""
        self._count(deletion)
        self._sync()

    def delete(self, numbers: Collection[int], deletion: int = 0) -> None:
        """Overwrite keys, and store the number of their deletion; durable when this returns."""
        # A damaged row may name any number, also one that is to be used yet.
        numbers = {number for number in numbers if 0 <= number < self._next}
        if not numbers:
            return
        self._count(deletion)  # first: after a kill it tells that keys may be gone
        # Consecutive slots are one write.
        for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
            consecutive = [number for _, number in run]
            self._pwrite(bytes(KEY_SIZE * len(consecutive)), consecutive[0])
        self._sync()

    def marks(self) -> Marks:
        """Return what tells that the open file was overwritten with another; safe in threads."""
        known = self.deletions  # before the file is read, which may have a later one
        if self._last is None:
            # Made anew at each start, and deleted at most.
            self._last = self._end - 1, os.pread(self._file, KEY_SIZE, _offset(self._end - 1))
        number, content = self._last
        states = {content: 0, _DELETED: 1}
        header, last = (os.pread(self._file, size, at) for size, at in ((_HEADER_SIZE, 0), (KEY_SIZE, _offset(number))))
        count = _to_count(header[_COUNT:])
        rising = states.get(last, -1), os.fstat(self._file).st_size, count if count >= known else -1
        return header[:_COUNT], rising

    def _count(self, deletion: int) -> None:
        if deletion > self.deletions:
            with self._mapped("cannot be written"):
                if _to_count(os.pread(self._file, _COUNT_SIZE, _COUNT)) < self.deletions:
                    # A higher count would hide from `marks` that deleted keys are back.
                    raise StoreError(f"{self._path} was replaced meanwhile: restore it, or restart the bot")
                _write_all(self._file, deletion.to_bytes(_COUNT_SIZE), _COUNT)
            self.deletions = deletion

    def _warn_of_readers(self) -> None:
        # A group may be the bot's own, as that of a volume in Kubernetes.
        mode = stat.S_IMODE(os.fstat(self._file).st_mode)
        if mode & stat.S_IRWXO and not self._master.current:
            log.warning(
                "every user of this machine can read the keys of the texts: chmod 600",
                file=str(self._path),
                mode=oct(mode),
            )

    def _find_wrapping(self) -> Wrapping:
        try:
            return self._master.find(self.database, self._check, str(self._path))
        except StoreError:
            self.close()
            raise

    def _follow_master(self) -> None:
        """Encrypt the keys with the master key of the settings, if they are not yet."""
        self._wrapping = self._find_wrapping()
        self._discard()
        wanted = self._master.wanted(self.database, self._wrapping)
        if wanted is not None:
            try:
                self._rewrap(wanted)
            except StoreError:
                self.close()
                raise

    def _rewrap(self, wanted: Wrapping) -> None:
        """Replace the file by one whose keys are encrypted otherwise; a kill leaves either."""
        partial, old = self._beside("partial"), self._beside("old")
        with self._mapped("cannot be replaced"):
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with suppress(OSError):
                    os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))
                _write_all(file, _header(self.database, wanted, self.deletions), 0)
                for first in range(0, self._end, _MANY):
                    _write_all(file, self._rewrapped(first, min(_MANY, self._end - first), wanted), _offset(first))
                os.fsync(file)
                # The old file has a name until it is overwritten: its keys may be deleted in the new one.
                with suppress(OSError):  # a file system without hard links
                    os.link(self._path.resolve(), old)
                partial.replace(self._path.resolve())
                sync_path(partial.parent)
            except OSError:
                os.close(file)
                raise
            file, self._file = self._file, file
            self._wrapping = wanted
            try:
                _overwrite(file)
            finally:
                os.close(file)
            self._discard()

    def _rewrapped(self, first: int, count: int, wanted: Wrapping) -> bytes:
        data = os.pread(self._file, KEY_SIZE * count, _offset(first))
        slots = {at: data[at : at + KEY_SIZE] for at in range(0, len(data), KEY_SIZE)}
        kept = {at: slot for at, slot in slots.items() if slot != _DELETED}
        return b"".join((slots | wanted.wrap(self._wrapping.unwrap(kept))).values())

    def _discard(self) -> None:
        """Delete what a kill left of a replacement, keys first: they may be deleted in the file by now."""
        with self._mapped("cannot be replaced"):
            for left in (self._beside("partial"), self._beside("old")):
                if not left.exists():
                    continue
                if not left.samefile(self._path):
                    file = os.open(left, os.O_RDWR)
                    try:
                        _overwrite(file)
                    finally:
                        os.close(file)
                left.unlink()

    def _beside(self, suffix: str) -> Path:
        path = self._path.resolve()
        return path.with_name(f"{path.name}.{suffix}")

    def _open_of(self, database: bytes, used: int, mode: int) -> None:
        self._open(mode)
        if self.database != database:
            self.close()
            raise StoreError(f"{self._path} has the keys of another database: {_RESTORE}")
        if self._end < used:
            self.close()
            raise StoreError(f"{self._path} is shorter than its database needs, keys are missing: {_RESTORE}")

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
        self.database = header[len(_MAGIC) : _CHECK]
        self._check = header[_CHECK:_COUNT]
        self.deletions = _to_count(header[_COUNT:])

    def _write(self, first: int, keys: list[bytes]) -> None:
        self._pwrite(b"".join(keys), first)

    def _pwrite(self, data: bytes, first: int) -> None:
        with self._mapped("cannot be written"):
            _write_all(self._file, data, _offset(first))

    def _sync(self) -> None:
        with self._mapped("cannot be written"):
            os.fsync(self._file)

    @contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"{self._path} {what} ({error.strerror}): the bot's user needs read and write permission, and the disk space"
        )


def _header(database: bytes, wrapping: Wrapping, deletions: int) -> bytes:
    return (_MAGIC + database + wrapping.check + deletions.to_bytes(_COUNT_SIZE)).ljust(_HEADER_SIZE, b"\0")


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _overwrite(file: int) -> None:
    """Overwrite all keys of a file that is not used any more, durably, and empty it."""
    size = os.fstat(file).st_size
    for start in range(0, size, _MANY * KEY_SIZE):
        _write_all(file, bytes(min(_MANY * KEY_SIZE, size - start)), start)
    os.fsync(file)
    os.ftruncate(file, 0)


def _to_count(data: bytes) -> int:
    return int.from_bytes(data[:_COUNT_SIZE])


def _offset(number: int) -> int:
    return _HEADER_SIZE + KEY_SIZE * number
