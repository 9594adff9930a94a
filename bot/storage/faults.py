"""A database's errors as one sentence with what to do: StoreError."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from bot.errors import StoreError

# By SQLite's primary result code, which is the low byte of the extended one.
SENTENCES = {
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

RESTORE = "put a backup in its place, or name another database in storage.url"


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn what SQLAlchemy and its drivers raise into StoreErrors about `place`."""
    try:
        yield
    except TimeoutError as exc:
        raise StoreError(f"{place} did not come free in time: too much is waiting for it, try again later") from exc
    except DBAPIError as exc:
        raise StoreError(sentence(place, exc.orig)) from exc
    except sqlite3.Error as exc:
        raise StoreError(sentence(place, exc)) from exc
    except OSError as exc:
        raise StoreError(f"{place} {SENTENCES[sqlite3.SQLITE_CANTOPEN]} ({exc.strerror})") from exc
    except SQLAlchemyError as exc:
        raise StoreError(f"{place} cannot be used ({str(exc).splitlines()[0]}): {RESTORE}") from exc


def sentence(place: str, error: BaseException | None) -> str:
    if isinstance(error, sqlite3.Error):
        known = SENTENCES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        return f"{place} {known or f'cannot be used ({error}): {RESTORE}'}"
    # A PostgreSQL message may quote what was being stored; the name of its class never does.
    name = type(error).__name__
    return f"{place} cannot be used ({name}): is its server running, and are its rights in order? If so, {RESTORE}"
