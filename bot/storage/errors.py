"""Map errors of SQLAlchemy and its drivers to StoreErrors that say what to do."""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bot.errors import StoreDamaged, StoreError

_LOCKED = "is locked by another program: close that (a second bot on the same file?) and try again"
_RECOVERS = "a running bot recovers by itself"

# By SQLite's primary result code, which is the low byte of the extended one.
SQLITE_MESSAGES = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: "is not writable: give the bot's user write permission on it and its folder",
    # Not only a faulty disk: on a full one SQLite says this of the files it keeps beside the database.
    sqlite3.SQLITE_IOERR: "cannot be read or written, an I/O error or the disk is full: free some space, or check the disk",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore a backup, or save what can be read with sqlite3's .recover",
    sqlite3.SQLITE_FULL: f"cannot grow, the disk is full: free some space; {_RECOVERS}, restart one that has ended",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: it must be a file, and the bot's user needs read and write permission "
    "on it and its folder",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another file in storage.url, or move this one away",
}

# The system's codes for a full disk, and for what a user may have of it.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_DAMAGED_SERVER = ("XX001", "XX002")

# By PostgreSQL's SQLSTATE.
POSTGRES_MESSAGES = {
    "25006": "is read-only (a standby?): name the primary server in storage.url",
    "40P01": "had a deadlock, and this call was cancelled: try again",
    "42501": "denies the bot's user permission: make that user the owner with ALTER DATABASE … OWNER TO …, and of the "
    "tables too",
    "3F000": "has no schema where the bot's user may create tables: CREATE SCHEMA … AUTHORIZATION … with that user's name",
    "53100": f"cannot grow, the server's disk is full: free some space; {_RECOVERS}",
    "53200": f"is out of memory: free some memory on the server; {_RECOVERS}",
    "55P03": "is locked by another program: end that (a second bot's migration, a backup, a VACUUM FULL?) and try again",
    "57014": "cancelled a statement that took too long: check the server's load",
    **dict.fromkeys(_DAMAGED_SERVER, "is damaged: restore a backup"),
    **dict.fromkeys(
        ("57P01", "57P02", "57P03", "25P03", "08003", "08006"),
        f"closed the connection: {_RECOVERS} once the server is back, restart one that has ended",
    ),
}

# By a pattern in the driver's text, because a failed connection has no SQLSTATE.  A server may use another
# language; the driver's text, which is always appended, must do then.
CONNECTION_MESSAGES = {
    "no password": "requires a password: write postgresql://user:password@host/database into BOT_STORAGE__URL",
    "password authentication failed": "rejects this user and password: correct them in BOT_STORAGE__URL, where in a "
    "password @ is written %40, : %3A, / %2F and % %25",
    "permission denied|not permitted|not currently accepting": "denies this user access: GRANT CONNECT ON DATABASE … "
    "TO …, and ALTER ROLE … LOGIN",
    "role .* does not exist": "has no such user: create it with CREATE ROLE … LOGIN PASSWORD '…', or name another one "
    "in storage.url",
    "database .* does not exist": "does not exist: create it with createdb --owner=USER NAME, or name another one in "
    "storage.url",
    r"pg_hba\.conf": "denies this user access from this host: add an entry to pg_hba.conf on the server",
    "authentication failed": "denies this user access: check the authentication method in pg_hba.conf on the server",
    "too many|connection slots": "has no connection left: end other programs, or raise max_connections on the server",
    "database system": "is not ready, its server is starting or stopping: try again in a moment",
    r"invalid (\w+ value|connection option)|unrecognized configuration": "rejects a connection option: check what "
    "follows the ? in storage.url",
    "SSL|certificate": "failed TLS negotiation: check sslmode in storage.url, and the server's certificate",
}
UNREACHABLE = (
    "cannot be reached: is its server running, and are host and port in storage.url right? "
    f"{_RECOVERS.capitalize()} once the server is back"
)

RESTORE = "restore a backup, or name another database in storage.url"


@contextmanager
def map_errors(place: str) -> Iterator[None]:
    """Raise errors of SQLAlchemy and its drivers as StoreErrors about `place`."""
    try:
        yield
    except (PoolTimeout, TimeoutError) as exc:
        raise StoreError(f"{place} is overloaded, no connection was free in time: try again later") from exc
    except DBAPIError as exc:
        raise _kind(exc.orig)(describe(place, exc.orig)) from exc
    except sqlite3.Error as exc:
        raise _kind(exc)(describe(place, exc)) from exc
    except OSError as exc:
        code = sqlite3.SQLITE_FULL if exc.errno in DISK_FULL else sqlite3.SQLITE_CANTOPEN
        raise StoreError(f"{place} {SQLITE_MESSAGES[code]} ({exc.strerror})") from exc
    except SQLAlchemyError as exc:
        raise StoreError(f"{place} cannot be used ({str(exc).splitlines()[0]}): {RESTORE}") from exc


def _kind(error: BaseException | None) -> type[StoreError]:
    is_damaged = (
        getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        or getattr(error, "sqlstate", None) in _DAMAGED_SERVER
    )
    return StoreDamaged if is_damaged else StoreError


def is_disk_full(error: StoreError) -> bool:
    """Return True if SQLite found no space for its file or its log."""
    driver = getattr(error.__cause__, "orig", error.__cause__)
    code = getattr(driver, "sqlite_errorcode", 0) & 0xFF
    return isinstance(driver, sqlite3.Error) and code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def describe(place: str, error: BaseException | None) -> str:
    """Return a driver's error as one sentence, without people's texts."""
    if isinstance(error, sqlite3.Error):
        known = SQLITE_MESSAGES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        return f"{place} {known or f'cannot be used ({error}): {RESTORE}'}"
    state = getattr(error, "sqlstate", None)
    if state in POSTGRES_MESSAGES:
        return f"{place} {POSTGRES_MESSAGES[state]}"
    if (reason := _connection_error(error)) is not None:
        message = next((text for clue, text in CONNECTION_MESSAGES.items() if re.search(clue, reason)), UNREACHABLE)
        return f"{place} {message} ({reason})"
    # A PostgreSQL message may quote stored text; its class and its code never do.
    what = type(error).__name__ + ("" if state is None else f", SQLSTATE {state}")
    return f"{place} cannot be used ({what}): {RESTORE}"


def _connection_error(error: BaseException | None) -> str | None:
    """Return the reason for a failed or lost connection; None for any other error.

    It may contain the user and the database, but neither the password nor stored text.
    """
    text = str(error).strip() or "no reason given"
    # By class name, because the driver is an optional dependency.
    connects = type(error).__name__ in {"OperationalError", "ConnectionTimeout"}
    if getattr(error, "sqlstate", None) is not None or not (connects or text.startswith("invalid connection option")):
        return None
    lines = text.splitlines()
    # Of several attempts, for example with and without TLS, the server's own refusal is the most useful.
    line = next((line for line in reversed(lines) if "FATAL:" in line), lines[0])
    return line.rpartition("FATAL:")[2].rpartition(" failed: ")[2].strip()
