"""A database's errors as one sentence with what to do: StoreError."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bot.errors import StoreError

# By SQLite's primary result code, which is the low byte of the extended one.
SQLITE_MESSAGES = {
    sqlite3.SQLITE_BUSY: "is locked by another program: close that (a second bot on the same file?) and try again",
    sqlite3.SQLITE_LOCKED: "is locked by another program: close that (a second bot on the same file?) and try again",
    sqlite3.SQLITE_READONLY: "cannot be written: give the user that runs the bot the right to write it and its folder",
    # Not only a faulty disk: on a full one SQLite says this of the files it keeps beside the database.
    sqlite3.SQLITE_IOERR: "cannot be read or written, the disk reports an error, or is full: free some space, "
    "or check the disk",
    sqlite3.SQLITE_CORRUPT: "is damaged: put a backup in its place, or save what can be read with sqlite3's .recover",
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full: free some space; a bot that runs then goes on by itself, "
    "one that has ended must be started again",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: it must be a file, and the user that runs the bot must be allowed to "
    "read and write it and its folder",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another file in storage.url, or move this one away",
}

# By PostgreSQL's SQLSTATE.
POSTGRES_MESSAGES = {
    "25006": "takes no changes, it is read-only (a standby?): name the server that takes them in storage.url",
    "40P01": "was wanted by two at once, and this call gave way: try again",
    "42501": "does not give the bot's user the rights it needs: make that user the owner with "
    "ALTER DATABASE … OWNER TO …, and of the tables too",
    "3F000": "has no schema where the bot's user may make tables: CREATE SCHEMA … AUTHORIZATION … with that user's name",
    "53100": "cannot grow, the server's disk is full: free some space, and the bot goes on by itself",
    "53200": "has no memory left on its server: free some, and the bot goes on by itself",
    "55P03": "is locked by another program: end that (a second bot's migration, a backup, a VACUUM FULL?) and try again",
    "57014": "took too long over a statement, and it was broken off: look for what slows the server down",
    "XX001": "is damaged: put a backup in its place",
    "XX002": "is damaged: put a backup in its place",
    **dict.fromkeys(
        ("57P01", "57P02", "57P03", "25P03", "08003", "08006"),
        "has broken off the connection: a bot that runs goes on by itself once the server is back, one that has ended "
        "must be started again",
    ),
}

# By what the refusal of a connection says: no SQLSTATE comes with it.  A server may speak another
# language; then its own words, which are always told, must do.
CONNECTION_MESSAGES = {
    "no password": "wants a password: write postgresql://user:password@host/database into BOT_STORAGE__URL",
    "password authentication failed": "refuses this user with this password: set both right in "
    "BOT_STORAGE__URL, where in a password @ is written %40, : %3A, / %2F and % %25",
    "permission denied|not permitted|not currently accepting": "does not let this user in: GRANT CONNECT ON DATABASE … TO …, "
    "and ALTER ROLE … LOGIN",
    "role .* does not exist": "has no such user: CREATE ROLE … LOGIN PASSWORD '…' makes one, or name another one in "
    "storage.url",
    "database .* does not exist": "does not exist: createdb --owner=USER NAME makes it, or name another one in "
    "storage.url",
    r"pg_hba\.conf": "does not let this user in from here: pg_hba.conf on the server says who may come",
    "authentication failed": "does not let this user in: pg_hba.conf on the server says how one proves who one is",
    "too many|connection slots": "has no connection left: end other programs, or raise max_connections on the server",
    "database system": "is not ready, its server is starting or stopping: try again in a moment",
    r"invalid (\w+ value|connection option)|unrecognized configuration": "cannot be opened with these options: look at what follows the ? in storage.url",
    "SSL|certificate": "and the bot do not agree on encryption: look at sslmode in storage.url, and at the server's "
    "certificate",
}
AWAY = (
    "cannot be reached: is its server running, and are host and port in storage.url right? A bot that runs goes on by "
    "itself once the server is back"
)

RESTORE = "put a backup in its place, or name another database in storage.url"


@contextmanager
def map_errors(place: str) -> Iterator[None]:
    """Turn what SQLAlchemy and its drivers raise into StoreErrors about `place`."""
    try:
        yield
    except (PoolTimeout, TimeoutError) as exc:
        raise StoreError(f"{place} did not come free in time: too much is waiting for it, try again later") from exc
    except DBAPIError as exc:
        raise StoreError(describe(place, exc.orig)) from exc
    except sqlite3.Error as exc:
        raise StoreError(describe(place, exc)) from exc
    except OSError as exc:
        raise StoreError(f"{place} {SQLITE_MESSAGES[sqlite3.SQLITE_CANTOPEN]} ({exc.strerror})") from exc
    except SQLAlchemyError as exc:
        raise StoreError(f"{place} cannot be used ({str(exc).splitlines()[0]}): {RESTORE}") from exc


def describe(place: str, error: BaseException | None) -> str:
    if isinstance(error, sqlite3.Error):
        known = SQLITE_MESSAGES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        return f"{place} {known or f'cannot be used ({error}): {RESTORE}'}"
    state = getattr(error, "sqlstate", None)
    if state in POSTGRES_MESSAGES:
        return f"{place} {POSTGRES_MESSAGES[state]}"
    words = _connection_error(error)
    if words is not None:
        advice = next((advice for clue, advice in CONNECTION_MESSAGES.items() if re.search(clue, words)), AWAY)
        return f"{place} {advice} ({words})"
    # A PostgreSQL message may quote what was being stored; its class and its number never do.
    what = type(error).__name__ + ("" if state is None else f", SQLSTATE {state}")
    return f"{place} cannot be used ({what}): {RESTORE}"


def _connection_error(error: BaseException | None) -> str | None:
    """What a driver says of a connection that it did not get, or lost; None if it has one.

    It may name the user and the database, but neither the password nor what was stored.
    """
    words = str(error).strip() or "no reason given"
    # The driver is installed only where it is used: its classes are known by their names.
    connects = type(error).__name__ in {"OperationalError", "ConnectionTimeout"}
    if getattr(error, "sqlstate", None) is not None or not (connects or words.startswith("invalid connection option")):
        return None
    lines = words.splitlines()
    # Of several attempts, over TLS and without it for example, the server's own refusal says most.
    line = next((line for line in reversed(lines) if "FATAL:" in line), lines[0])
    return line.rpartition("FATAL:")[2].rpartition(" failed: ")[2].strip()
