"""A copy of a SQLite database in one file, made while the bot runs."""

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
    """Write the database as it is at one moment into `target`, a new file that only its owner may read.

    What was deleted is not in it.  Return its size in bytes, once it is on the disk and
    has been looked through.

    Raises:
        StoreError: There is nothing to copy, `target` exists, or the copy cannot be
            written or is damaged; then there is no `target`.
    """
    location = locate(url)
    if location.path is None:
        raise StoreError(
            f"{location.name} is on a server, whose own program copies it: "
            f"pg_dump --format=custom --file={target} {location.name}"
        )
    if migrate.current_revision(url, busy_timeout) is None:
        raise StoreError(f"there is no database {location.name} yet: nothing to back up")
    # The empty file reserves the name; what is not whole yet has another one.
    with _written(target):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _written(target):
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        # Neither "immutable" nor read-only: a bot may start meanwhile.
        source = f"file:{quote(str(location.path))}?mode=rw"
        with (
            map_errors(f"{location.name}, or its backup {target},"),
            closing(sqlite3.connect(source, uri=True, timeout=busy_timeout, isolation_level=None)) as connection,
        ):
            connection.execute("VACUUM INTO ?", (str(partial),))
        _check(partial)
        with _written(target):
            _sync(partial)
            partial.replace(target)
            _sync(target.parent)
            return target.stat().st_size
    except BaseException:
        for file in (partial, target):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise


def _check(file: Path) -> None:
    """Read all of it: a backup that cannot be put back is none."""
    with map_errors(str(file)), closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise StoreError(f"the backup is damaged ({found}), and the database may be: look at the disk, then try again")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """Tell as a sentence what the file system says against the backup."""
    try:
        yield
    except FileExistsError:
        raise StoreError(f"{target} exists already: a backup overwrites nothing, name another file") from None
    except OSError as error:
        raise StoreError(f"{target} cannot be written ({error.strerror}): name another file") from error
