"""Back up a SQLite database into one file while the bot runs."""

import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from bot.errors import StoreError
from bot.storage import migrate
from bot.storage.connections import BUSY_TIMEOUT, locate
from bot.storage.errors import DISK_FULL, map_errors
from bot.storage.key_file import KeyFile, path_beside
from bot.util.files import sync_path

# Pages between two reports of the progress: 16 MiB.
_STEP = 4096


def back_up(
    url: str, target: Path, busy_timeout: float = BUSY_TIMEOUT, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write a snapshot of the database into `target`, and its keys beside it, new files with mode 0600.

    Return their size in bytes, after fsync and an integrity check of the database.  The copy has no key of a
    deleted text; what is deleted later can be read with it.  `progress` gets the pages that were copied, and all.

    Raises:
        StoreError: There is nothing to copy, the keys are missing or another database's, `target`
            exists, or the copy cannot be written or is damaged; then `target` is not created.
    """
    location = locate(url)
    if location.path is None:
        raise StoreError(
            f"{location.name} is a server: back it up with pg_dump --format=custom --file={target} {location.name}"
        )
    if migrate.current_revision(url, busy_timeout) is None:
        raise StoreError(f"no database {location.name}: nothing to back up")
    keys, files = path_beside(location.path), _Files(target)
    with _map_errors(target), files.reserved():
        partials = {target: files.partial, **({files.keys: files.key_partial} if keys.exists() else {})}
        for partial in partials.values():
            _create(partial)
        with map_errors(f"{location.name}, or its backup {target},"):
            _copy(location.path, keys, files.partial, partials.get(files.keys), busy_timeout, progress)
            _check_integrity(files.partial)
        size = sum(partial.stat().st_size for partial in partials.values())
        for file, partial in reversed(partials.items()):  # the database last: with it the backup is complete
            sync_path(partial)
            partial.replace(file)
        sync_path(target.parent)
        return size


def remove_left(folder: Path) -> None:
    """Delete what killed backups left in a folder; what another process writes there stays."""
    for database in {*folder.glob("*.db"), *(file.with_suffix("") for file in folder.glob("*.db.partial"))}:
        with suppress(OSError, StoreError):
            _Files(database).remove_left()


class _Files:
    """The names of a backup.

    While it is made, the name of the database is that of an empty file, with a lock that a kill releases.
    """

    def __init__(self, database: Path) -> None:
        self.database, self.keys = database, path_beside(database)
        self.partial, self.key_partial = (file.with_name(f"{file.name}.partial") for file in (database, self.keys))
        self._journal = database.with_name(f"{self.partial.name}-journal")  # which SQLite makes

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve the names, without what a killed backup left; delete all files after an error."""
        lock = self._lock()
        try:
            self._remove_others()
            yield
        except BaseException:
            with suppress(OSError):
                self._remove_others()
                self.database.unlink()
            raise
        finally:
            os.close(lock)

    def remove_left(self) -> None:
        """Delete what a killed backup left."""
        lock = self._lock()
        try:
            self._remove_others()
            self.database.unlink()
        finally:
            os.close(lock)

    def _lock(self) -> int:
        while True:
            self._check()
            lock = os.open(self.database, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    raise StoreError(
                        f"another backup is being written to {self.database}: wait for its end, or name another file"
                    ) from None
            # The process that had the lock may have put the backup in the place of this file, or deleted it.
            with suppress(FileNotFoundError):
                status = os.fstat(lock)
                if not status.st_size and os.path.samestat(status, self.database.lstat()):
                    return lock
            os.close(lock)

    def _check(self) -> None:
        # A backup has keys before it has a database; until then it has a partial one.
        for file in (self.database, *(() if self.partial.exists() else (self.keys,))):
            with suppress(FileNotFoundError):
                status = file.lstat()
                if status.st_size or not stat.S_ISREG(status.st_mode):
                    raise StoreError(f"{file} already exists: a backup does not overwrite files, name another one")

    def _remove_others(self) -> None:
        for file in (self.keys, self.key_partial, self._journal, self.partial):  # see _check
            file.unlink(missing_ok=True)


def _copy(
    database: Path,
    keys: Path,
    target: Path,
    key_target: Path | None,
    busy_timeout: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Copy database and keys as they are at one moment; writers wait while the keys are copied."""
    # Neither "immutable" nor read-only, because a bot may start meanwhile.
    source = f"file:{quote(str(database))}?mode=rw"
    with (
        closing(sqlite3.connect(source, uri=True, timeout=busy_timeout, isolation_level=None)) as reader,
        closing(sqlite3.connect(source, uri=True, timeout=busy_timeout, isolation_level=None)) as writer,
        closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        writer.execute("BEGIN IMMEDIATE")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM alembic_version").fetchone()  # the snapshot is of now
        _check_keys(reader, keys)
        if key_target is not None:
            shutil.copyfile(keys, key_target)
        writer.execute("ROLLBACK")
        if progress is None:
            reader.backup(copy)
        else:
            # The transaction of `reader` keeps the snapshot between the steps.
            reader.backup(copy, pages=_STEP, progress=lambda status, left, total: progress(total - left, total))


def _check_keys(reader: sqlite3.Connection, keys: Path) -> None:
    """Check that the database can be read with these keys; one of before the encryption needs none."""
    if reader.execute("SELECT 1 FROM sqlite_master WHERE name = 'encryption'").fetchone() is None:
        return
    for database, used in reader.execute("SELECT database, used FROM encryption"):
        KeyFile(keys).check(database, used)


def _check_integrity(file: Path) -> None:
    with closing(sqlite3.connect(f"file:{quote(str(file))}?immutable=1", uri=True)) as connection:
        result = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if result != "ok":
        raise StoreError(
            f"integrity check of the backup failed ({result}), the database may be damaged too: "
            "check the disk, then try again"
        )


def _create(file: Path) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextmanager
def _map_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in DISK_FULL else "name another file"
        raise StoreError(f"{target} cannot be written ({error.strerror}): {hint}") from error
