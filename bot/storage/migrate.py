"""Upgrade a database; as a program, create the next migration.

    python -m bot.storage.migrate "exchanges have a rating"

compares schema.py with the migrations and writes the difference into a new one.
"""

import os
import sqlite3
import sys
import tempfile
import threading
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from bot.errors import StoreDamaged, StoreError
from bot.storage.connections import BUSY_TIMEOUT, Location, inspector, locate, migrator
from bot.storage.errors import SQLITE_MESSAGES, map_errors

if TYPE_CHECKING:
    from alembic.config import Config

# Seconds for the check of a file's pages, and steps of SQLite between looks at the clock.
CHECK_SECONDS = 30.0
_CHECK_STEPS = 10_000

# Alembic keeps the running migration in module variables.
_lock = threading.Lock()


def upgrade(url: str, busy_timeout: float = BUSY_TIMEOUT) -> None:
    """Upgrade the database to the head revision in one transaction; create it if it is missing.

    Blocks: call it in a thread where an event loop runs.

    Raises:
        StoreError: The database cannot be used, or is newer than this program; it is
            unchanged then.
    """
    location = locate(url)
    create_folder(location)
    if location.path is not None:
        # With mode 0600, which SQLite gives to its log too.
        with suppress(OSError):  # opening it has the better message
            os.close(os.open(location.path, os.O_WRONLY | os.O_CREAT, 0o600))
    with _lock:
        if _known_revision(location, url, busy_timeout) == head_revision():
            return
        # Not before: a start whose database is up to date saves the import, 0.1 s of CPU time.
        from alembic import command

        config = _config()
        engine = migrator(location, busy_timeout)
        # SQLite's write lock, or the lock of migrations/env.py on a server, excludes other processes; if
        # one was faster, Alembic finds nothing left to do.
        with map_errors(location.name), engine.begin() as connection:
            if location.path is None:
                _check_encoding(connection, location)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def check_database(url: str) -> None:
    """Check that `upgrade` could use the database, without creating or changing it.

    Raises:
        StoreError: As `upgrade`.
    """
    location = locate(url)
    if location.path is not None:
        place = next(each for each in (location.path, *location.path.absolute().parents) if each.exists())
        if not os.access(location.path.parent if place == location.path else place, os.W_OK | os.X_OK) or (
            place == location.path and not os.access(place, os.R_OK | os.W_OK)
        ):
            reason = f"{SQLITE_MESSAGES[sqlite3.SQLITE_CANTOPEN]} (no write permission on {place})"
            raise StoreError(f"{location.name} {reason}")
    with _lock:
        _known_revision(location, url)


def check_pages(url: str, seconds: float = CHECK_SECONDS) -> bool:
    """Check the pages of a SQLite file, without changing it; return False if it takes longer than these seconds.

    Raises:
        StoreDamaged: A page is damaged.
        StoreError: As `upgrade`.
    """
    location = locate(url)
    if location.path is None or current_revision(url) is None:
        return True
    deadline = time.monotonic() + seconds
    with map_errors(location.name), inspector(location).connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(lambda: time.monotonic() > deadline, _CHECK_STEPS)
        try:
            result = driver.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return False
            raise
    if result != "ok":
        raise StoreDamaged(f"{location.name} {SQLITE_MESSAGES[sqlite3.SQLITE_CORRUPT]} ({' '.join(result.split())})")
    return True


def _known_revision(location: Location, url: str, busy_timeout: float = BUSY_TIMEOUT) -> str | None:
    """Return the revision of a database; None if it is new."""
    current = current_revision(url, busy_timeout)
    if current is not None and current not in _revisions():
        raise StoreError(
            f"{location.name} has revision {current}, which is unknown: this version supports up to {head_revision()}. Update "
            "the program, or name another database in storage.url"
        )
    return current


def current_revision(url: str, busy_timeout: float = BUSY_TIMEOUT) -> str | None:
    """Return the revision of a database; None if it does not exist or is empty.

    Raises:
        StoreError: The database cannot be read, or belongs to another program.
    """
    location = locate(url)
    with map_errors(location.name):
        if location.path is not None:
            if not location.path.exists() or location.path.stat().st_size == 0:
                return None
            _check_header(location.path)
        with inspector(location, busy_timeout).connect() as connection:
            tables = inspect(connection).get_table_names()
            if "alembic_version" in tables:
                return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables and location.path is not None:
        raise StoreError(f"{location.name} belongs to another program: name another file in storage.url")
    return None


def _check_header(path: Path) -> None:
    """Raise StoreError for a file without SQLite's header; SQLite treats a very short one as empty."""
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise StoreError(f"{path} {SQLITE_MESSAGES[sqlite3.SQLITE_NOTADB]}")


def _check_encoding(connection: Connection, location: Location) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise StoreError(
            f"{location.name} has encoding {encoding}, not UTF8: create another database with "
            "createdb --encoding=UTF8 --template=template0 NAME, and name it in storage.url"
        )


def head_revision() -> str:
    """Return the newest revision of this version."""
    return _revisions()[-1]


def _revisions() -> list[str]:
    """Return the revisions in order: the numbers with which the files of the migrations begin."""
    return sorted(path.name.partition("_")[0] for path in (_folder() / "versions").glob("[0-9]*_*.py"))


def create_migration(name: str) -> Path:
    """Write the difference between schema.py and the migrations into a new one; return its path."""
    from alembic import command

    config, number = _config(), len(_revisions()) + 1
    with tempfile.TemporaryDirectory() as scratch, _lock:
        engine = migrator(locate(f"sqlite+aiosqlite:///{scratch}/scratch.db"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            made = command.revision(config, name, autogenerate=True, rev_id=f"{number:04}")
    assert made is not None
    assert not isinstance(made, list)
    return Path(made.path)


def _config() -> "Config":
    from alembic.config import Config

    config = Config(cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config


def _folder() -> Path:
    """Find the migrations: beside this file in a wheel, at the top level in a checkout."""
    here = Path(__file__).resolve().parent
    shipped = here / "migrations"
    return shipped if shipped.is_dir() else here.parent.parent / "migrations"


def create_folder(location: Location) -> None:
    if location.path is None:
        return
    parent = location.path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"the database's folder {parent} cannot be created ({exc.strerror}): create it, or name another "
            "file in storage.url"
        ) from exc


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].strip():
        sys.stderr.write('usage: python -m bot.storage.migrate "what the migration does"\n')
        return 2
    sys.stdout.write(f"{create_migration(arguments[0])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
