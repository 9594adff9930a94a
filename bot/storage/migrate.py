"""Brings a database up to date; run as a program, it writes the next migration.

    python -m bot.storage.migrate "exchanges have a rating"

compares schema.py with the migrations and puts what is missing into a new one.
"""

import os
import sqlite3
import sys
import tempfile
import threading
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from bot.errors import StoreError
from bot.storage.connections import BUSY_TIMEOUT, Location, inspector, locate, migrator
from bot.storage.errors import SQLITE_MESSAGES, map_errors

# Alembic keeps the migration that is running in variables of its modules.
_lock = threading.Lock()


def upgrade(url: str, busy_timeout: float = BUSY_TIMEOUT) -> None:
    """Bring the database to the newest revision, all or nothing; make it if there is none.

    It blocks: call it in a thread where an event loop runs.

    Raises:
        StoreError: The database cannot be used, or is newer than this program.  Then
            the file is as it was.
    """
    location = locate(url)
    create_folder(location)
    _create_file(location)
    with _lock:
        config = _config()
        current = current_revision(url, busy_timeout)
        known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
        if current == known[0]:
            return
        if current is not None and current not in known:
            raise StoreError(
                f"{location.name} was written by a newer version of this program (revision {current}; this one "
                f"knows {known[0]}), or by another program: update the program, or name another database in storage.url"
            )
        engine = migrator(location, busy_timeout)
        # On SQLite the transaction begins with the write lock, on a server with a lock
        # that migrations/env.py takes.  Should another process have been faster, Alembic
        # finds nothing left to do.
        with map_errors(location.name), engine.begin() as connection:
            if location.path is None:
                _check_encoding(connection, location)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def current_revision(url: str, busy_timeout: float = BUSY_TIMEOUT) -> str | None:
    """Read which revision a database has; None for one that does not exist or is empty.

    Raises:
        StoreError: It cannot be read, or is not a database of this program.
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
        raise StoreError(f"{location.name} is a database of another program: name another file in storage.url")
    return None


def _check_header(path: Path) -> None:
    """Refuse a file that is no database: SQLite would take a very short one for empty."""
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise StoreError(f"{path} {SQLITE_MESSAGES[sqlite3.SQLITE_NOTADB]}")


def _check_encoding(connection: Connection, location: Location) -> None:
    """Refuse a database that cannot keep what people write."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise StoreError(
            f"{location.name} keeps text as {encoding}, which lacks most of the world's characters: make another one "
            "with createdb --encoding=UTF8 --template=template0 NAME, and name it in storage.url"
        )


def head_revision() -> str:
    """Return the newest revision that this program knows."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    assert newest is not None
    return newest


def create_migration(name: str) -> Path:
    """Put what schema.py has and the migrations lack into a new one; return its file."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    number = len(list(scripts.walk_revisions())) + 1
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


def _config() -> Config:
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
            f"the folder {parent} for the database cannot be made ({exc.strerror}): make it, or name another "
            "file in storage.url"
        ) from exc


def _create_file(location: Location) -> None:
    """Make it as a file that nobody else on this machine may read; SQLite makes those beside it like it."""
    if location.path is not None:
        with suppress(OSError):  # opening it says better what is wrong
            os.close(os.open(location.path, os.O_WRONLY | os.O_CREAT, 0o600))


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].strip():
        sys.stderr.write('usage: python -m bot.storage.migrate "what the migration does"\n')
        return 2
    sys.stdout.write(f"{create_migration(arguments[0])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
