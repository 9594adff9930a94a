"""Connections to the database that storage.url names, and the settings each one needs."""

import os
import sqlite3
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from bot.config.secrets import has_raw_at_sign
from bot.errors import StoreError

BUSY_TIMEOUT = 5.0  # seconds that another program's lock is waited for
STATEMENT_TIMEOUT = 60.0  # seconds that a server may take over one statement
READERS = 4

# When a server counts as gone, in libpq's words, seconds and milliseconds.  Where a network swallows
# everything, a call would otherwise hang for a quarter of an hour.
KEEPALIVE = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where the database is: `name` is for people, and holds no password."""

    url: URL
    name: str
    path: Path | None = None  # of the SQLite file; None for a server


def locate(url: str) -> Location:
    """Read storage.url.

    >>> locate("sqlite+aiosqlite:///data/bot.db").name
    'data/bot.db'

    >>> locate("postgres://bot:secret@db.example/bot").name
    'postgresql://bot@db.example/bot'

    Raises:
        StoreError: It names no database that this program can use.
    """
    try:
        if has_raw_at_sign(url):
            raise ValueError
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # What it was is not told, not even by a traceback: half a password may be taken for a port.
        raise StoreError(
            "storage.url is not a database URL: write for example sqlite+aiosqlite:///data/bot.db, or "
            "postgresql://user:password@host/database; in a password, @ is written %40, : %3A, / %2F and % %25"
        ) from None
    match parsed.drivername:
        case "sqlite+aiosqlite":
            if parsed.database in {None, "", ":memory:"} or parsed.query:
                raise StoreError("storage.url must name a plain file: sqlite+aiosqlite:///data/bot.db")
            return Location(parsed, str(parsed.database), Path(str(parsed.database)))
        # The first two are what providers hand out.
        case "postgresql" | "postgres" | "postgresql+psycopg":
            if find_spec("psycopg") is None:
                raise StoreError("PostgreSQL needs one more package: python -m pip install 'psycopg[binary]>=3.3'")
            # Its query may hold a password as well.
            public = URL.create(
                "postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database or parsed.username
            )
            return Location(parsed.set(drivername="postgresql+psycopg"), public.render_as_string())
        case other:
            raise StoreError(
                f"storage.url begins with {other}: write sqlite+aiosqlite:///… for a file, "
                "or postgresql://… for a server"
            )


def writer(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> AsyncEngine:
    """Open what changes things: one connection, so that rows are numbered in the order of the calls.

    On SQLite it also takes its turn at once.  A transaction that reads first and then
    wants to write fails at once with "database is locked" when another one wrote in
    between, whatever the busy timeout: 92 % of them with 64 tasks.  One connection with
    BEGIN IMMEDIATE fails none.
    """
    # Parameters are what people wrote: they belong in no error message.
    if location.path is None:
        return create_async_engine(
            location.url,
            hide_parameters=True,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,  # a server may have been started anew meanwhile
            connect_args=_connect_args(location.url, busy_timeout),
        )
    # What VACUUM puts aside is as large as the file: where that one lies there is room, and in a
    # container nowhere else may be written to.
    os.environ.setdefault("SQLITE_TMPDIR", str(location.path.parent.absolute()))
    engine = create_async_engine(location.url, hide_parameters=True, pool_size=1, max_overflow=0)
    _configure_sqlite(engine.sync_engine, "BEGIN IMMEDIATE", busy_timeout)
    return engine


def reader(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> AsyncEngine:
    """Open what only looks, beside the writer and never in its way."""
    if location.path is None:
        return create_async_engine(
            location.url,
            hide_parameters=True,
            pool_size=READERS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args=_connect_args(location.url, busy_timeout),
            # What a transaction reads first and last is of one moment, as on SQLite.
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
    engine = create_async_engine(location.url, hide_parameters=True, pool_size=READERS, max_overflow=0)
    _configure_sqlite(engine.sync_engine, "BEGIN", busy_timeout, query_only=True)
    return engine


def migrator(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Open it for a migration: one plain connection, for a thread that may wait."""
    if location.path is None:
        return create_engine(location.url, poolclass=NullPool, connect_args=_connect_args(location.url, busy_timeout))
    engine = create_engine(location.url.set(drivername="sqlite"), poolclass=NullPool)
    _configure_sqlite(engine, "BEGIN IMMEDIATE", busy_timeout)
    return engine


def inspector(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Open it to look only: no setting of the file is changed, and no file is made beside it."""
    if location.path is None:
        return create_engine(location.url, poolclass=NullPool, connect_args=_connect_args(location.url, busy_timeout))
    # Without a log beside it nobody is at work on the file.  Then SQLite need not make a
    # log either, which might belong to another user than the one that runs the bot.
    at_work = any(Path(f"{location.path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    uri = f"file:{quote(str(location.path))}?{'mode=ro' if at_work else 'immutable=1'}"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=busy_timeout), poolclass=NullPool
    )


def snapshot_reader(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Open it to read at length, beside a bot that may start or end meanwhile: its locks are kept."""
    if location.path is None:
        return create_engine(
            location.url,
            poolclass=NullPool,
            connect_args=_connect_args(location.url, busy_timeout),
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
    engine = create_engine(location.url.set(drivername="sqlite"), poolclass=NullPool)
    _configure_sqlite(engine, "BEGIN", busy_timeout, query_only=True)
    return engine


def _connect_args(url: URL, busy_timeout: float) -> dict[str, str]:
    """What a connection to a server is opened with; what the URL itself says comes first."""
    settings = {
        "lock_timeout": milliseconds(busy_timeout),
        "statement_timeout": milliseconds(STATEMENT_TIMEOUT),
        # A bot that stands still must not keep others from the rows it changes.
        "idle_in_transaction_session_timeout": milliseconds(STATEMENT_TIMEOUT),
        "timezone": "UTC",
    }
    options = [f"-c {name}={value}" for name, value in settings.items()]
    return {
        **{name: value for name, value in KEEPALIVE.items() if name not in url.query},
        "client_encoding": "utf8",
        "application_name": str(url.query.get("application_name", "chatglm-bot")),
        "options": " ".join([*options, str(url.query.get("options", ""))]).rstrip(),
    }


def _configure_sqlite(engine: Engine, begin: str, busy_timeout: float, *, query_only: bool = False) -> None:
    pragmas = [
        f"busy_timeout={milliseconds(busy_timeout)}",  # first: the next one may have to wait
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",  # what is deleted is overwritten
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
        # KiB of pages that a connection keeps.  With SQLite's own 2000, five of them came to hold 10 MB;
        # a long history, read from the system's cache, then takes 9 ms instead of 7.
        "cache_size=-512",
        *(["query_only=ON"] if query_only else []),
    ]

    @event.listens_for(engine, "connect")
    def connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        # The driver must not begin transactions by itself: it would defer them.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # Some pragmas do not work in a transaction: `skip_begin` is for them.
        if not connection.get_execution_options().get("skip_begin"):
            connection.exec_driver_sql(begin)


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
