"""Back up a SQLite database into one file while the bot runs."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from bot.errors import StoreError
from bot.storage import migrate
from bot.storage.connections import BUSY_TIMEOUT, locate
from bot.storage.errors import map_errors


def back_up(url: str, target: Path, busy_timeout: float = BUSY_TIMEOUT) -> int:
    """Write a snapshot of the database into `target`, a new file with mode 0600.

    It contains no deleted text.  Return its size in bytes, after fsync and an integrity check.

    Raises:
        StoreError: There is nothing to copy, `target` exists, or the copy cannot be
            written or is damaged; then `target` is not created.
    """
    location = locate(url)
    if location.path is None:
        raise StoreError(
            f"{location.name} is a server: back it up with pg_dump --format=custom --file={target} {location.name}"
        )
    if migrate.current_revision(url, busy_timeout) is None:
        raise StoreError(f"no database {location.name}: nothing to back up")
    # The empty file reserves the name; the unfinished copy has another one.
    with _map_errors(target):
        _create(target)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _map_errors(target):
            partial.unlink(missing_ok=True)
            _create(partial)
        # Neither "immutable" nor read-only, because a bot may start meanwhile.
        source = f"file:{quote(str(location.path))}?mode=rw"
        with (
            map_errors(f"{location.name}, or its backup {target},"),
            closing(sqlite3.connect(source, uri=True, timeout=busy_timeout, isolation_level=None)) as connection,
        ):
            connection.execute("VACUUM INTO ?", (str(partial),))
        _check_integrity(partial)
        with _map_errors(target):
            _sync(partial)
            partial.replace(target)
            _sync(target.parent)
            return target.stat().st_size
    except BaseException:
        for file in (partial, target):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise


def _check_integrity(file: Path) -> None:
    with map_errors(str(file)), closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
        result = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if result != "ok":
        raise StoreError(
            f"integrity check of the backup failed ({result}), the database may be damaged too: "
            "check the disk, then try again"
        )


def _create(file: Path) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _map_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise StoreError(f"{target} already exists: a backup does not overwrite files, name another one") from None
    except OSError as error:
        raise StoreError(f"{target} cannot be written ({error.strerror}): name another file") from error
