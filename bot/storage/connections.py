"""SQLAlchemy engines for storage.url, one per purpose."""

import json
import os
import sqlite3
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from bot.config.secrets import has_raw_at_sign
from bot.errors import StoreError
from bot.storage.sqlite_driver import Driver, OneCallConnection

# In seconds.
BUSY_TIMEOUT = 5.0  # for another program's lock
STATEMENT_TIMEOUT = 60.0  # for one statement on a server
IDLE_TIMEOUT = 10.0  # of a bot within a transaction: the one that takes its place needs the rows
READERS = 4

# libpq's settings, in seconds and milliseconds.  Without them a call would hang for a quarter of an hour
# in a network that drops every packet.
KEEPALIVE = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_READ_ONLY_SNAPSHOT: dict[str, Any] = {
    "isolation_level": "REPEATABLE READ",
    "execution_options": {"postgresql_readonly": True},
}


@dataclass(frozen=True, slots=True)
class Location:
    """Parsed storage.url; `name` is for messages and has no password."""

    url: URL
    name: str
    path: Path | None = None  # of the SQLite file; None for a server


def locate(url: str) -> Location:
    """Parse storage.url.

    >>> locate("sqlite+aiosqlite:///data/bot.db").name
    'data/bot.db'

    >>> locate("postgres://bot:secret@db.example/bot").name
    'postgresql://bot@db.example/bot'

    Raises:
        StoreError: The URL is malformed, or its database is not supported.
    """
    try:
        if has_raw_at_sign(url):
            raise ValueError
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the URL, also in a traceback: half a password may have been parsed as a port.
        raise StoreError(
            "storage.url is not a database URL: write for example sqlite+aiosqlite:///data/bot.db, or "
            "postgresql://user:password@host/database; in a password, @ is written %40, : %3A, / %2F and % %25"
        ) from None
    match parsed.drivername:
        case "sqlite+aiosqlite":
            if parsed.database in {None, "", ":memory:"} or parsed.query:
                raise StoreError("storage.url must name a plain file: sqlite+aiosqlite:///data/bot.db")
            return Location(parsed, str(parsed.database), Path(str(parsed.database)))
        # Hosting providers use the first two.
        case "postgresql" | "postgres" | "postgresql+psycopg":
            if find_spec("psycopg") is None:
                raise StoreError("PostgreSQL needs one more package: python -m pip install 'psycopg[binary]>=3.3'")
            # The query is left out: it may contain a password as well.
            public = URL.create(
                "postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database or parsed.username
            )
            return Location(parsed.set(drivername="postgresql+psycopg"), public.render_as_string())
        case other:
            raise StoreError(
                f"unsupported database in storage.url: {other}; write sqlite+aiosqlite:///… for a file, "
                "or postgresql://… for a server"
            )


def writer(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> AsyncEngine:
    """Return the engine for writes: one connection, so that ids follow the order of the calls.

    On SQLite a transaction begins with BEGIN IMMEDIATE: one that reads first and upgrades
    to a write fails with "database is locked" when another one wrote in between, whatever
    the busy timeout (92 % of them with 64 tasks).
    """
    if location.path is None:
        return _server_pool(location, busy_timeout, pool_size=1)
    # VACUUM's temporary copy is as large as the file.  Beside the file there is room, and in a
    # container no other folder may be writable.
    os.environ.setdefault("SQLITE_TMPDIR", str(location.path.parent.absolute()))
    return _file_pool(location, "BEGIN IMMEDIATE", busy_timeout, pool_size=1)


def reader(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> AsyncEngine:
    """Return the engine for reads: a few connections that do not block the writer."""
    if location.path is None:
        return _server_pool(location, busy_timeout, pool_size=READERS, **_READ_ONLY_SNAPSHOT)
    return _file_pool(location, "BEGIN", busy_timeout, pool_size=READERS, query_only=True)


def _server_pool(location: Location, busy_timeout: float, *, pool_size: int, **options: Any) -> AsyncEngine:
    return create_async_engine(
        location.url,
        hide_parameters=True,  # they are people's texts, which belong in no error message
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,  # the server may have restarted
        connect_args=_connect_args(location.url, busy_timeout, IDLE_TIMEOUT),
        **options,
    )


def _file_pool(
    location: Location, begin: str, busy_timeout: float, *, pool_size: int, query_only: bool = False
) -> AsyncEngine:
    engine = create_async_engine(
        location.url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        json_deserializer=_load_json,
        module=Driver(),
    )
    _configure_sqlite(engine.sync_engine, begin, busy_timeout, query_only=query_only)
    return engine


def _file_connection(location: Location, begin: str, busy_timeout: float, *, query_only: bool = False) -> Engine:
    engine = create_engine(location.url.set(drivername="sqlite"), poolclass=NullPool, json_deserializer=_load_json)
    _configure_sqlite(engine, begin, busy_timeout, query_only=query_only)
    return engine


def migrator(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Return a blocking engine for a migration."""
    if location.path is None:
        return _server_connection(location, busy_timeout)
    return _file_connection(location, "BEGIN IMMEDIATE", busy_timeout)


def inspector(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Return a blocking engine that changes no setting of the file and creates no file beside it."""
    if location.path is None:
        return _server_connection(location, busy_timeout)
    # Without a log no process has the file open.  "immutable" then keeps SQLite from creating a log,
    # which could belong to another user than the bot's.
    is_open = any(Path(f"{location.path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    uri = f"file:{quote(str(location.path))}?{'mode=ro' if is_open else 'immutable=1'}"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=busy_timeout), poolclass=NullPool
    )


def snapshot_reader(location: Location, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """Return a blocking engine for long reads of one snapshot while a bot may start or stop."""
    if location.path is None:
        return _server_connection(location, busy_timeout, **_READ_ONLY_SNAPSHOT)
    return _file_connection(location, "BEGIN", busy_timeout, query_only=True)


def _server_connection(location: Location, busy_timeout: float, **options: Any) -> Engine:
    connect_args = _connect_args(location.url, busy_timeout, STATEMENT_TIMEOUT)
    return create_engine(location.url, poolclass=NullPool, connect_args=connect_args, **options)


def _connect_args(url: URL, busy_timeout: float, idle_timeout: float) -> dict[str, str]:
    """Return psycopg's arguments; settings in the URL itself take precedence."""
    settings = {
        "lock_timeout": milliseconds(busy_timeout),
        "statement_timeout": milliseconds(STATEMENT_TIMEOUT),
        # A process that hangs must not keep its row locks.
        "idle_in_transaction_session_timeout": milliseconds(idle_timeout),
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
        "secure_delete=ON",  # overwrite deleted content
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
        # Pages of the log after which a commit writes them into the database, and all writers behind it wait: 90 ms
        # for 1,000 pages.  It hardly comes to that, because the store does so beside the writers (transactions.py).
        "wal_autocheckpoint=4000",
        # In KiB per connection.  With SQLite's default of 2000, five connections grew to 10 MB; with 512
        # a long history, read from the system's cache, takes 9 ms instead of 7.
        "cache_size=-512",
        *(["query_only=ON"] if query_only else []),
    ]

    @event.listens_for(engine, "connect")
    def connected(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        # One damaged text must not make all rows of its query unreadable.
        assert entry.driver_connection is not None
        entry.driver_connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        # Otherwise the driver begins deferred transactions by itself.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        if connection.get_execution_options().get("skip_begin"):
            return  # VACUUM and some pragmas do not work in a transaction
        driver: Any = connection.connection.dbapi_connection
        if isinstance(driver, OneCallConnection):
            driver.begin = begin
        else:
            connection.exec_driver_sql(begin)


def _load_json(text: Any) -> Any:
    """Read a JSON column; None if it is damaged."""
    try:
        return json.loads(text)
    except (RecursionError, TypeError, ValueError):
        return None


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
