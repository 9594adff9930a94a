"""Tests of the database, with helpers for a store on a temporary file."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select

from bot.domain import Author, ChannelKey, IncomingMessage
from bot.storage.encryption import key_columns, pseudonyms
from bot.storage.export import open_snapshot, reading_vault
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.sql import SqlStore
from tests.harness.fakes.clock import JumpingClock

MEI = Author("slack", "U1", "Mei", frozenset({"staff", "运维"}))
BEN = Author("slack", "U2", "Ben")
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROOM = ChannelKey("slack", "C1")
THREAD = ChannelKey("slack", "C1", "17.1")


_MEMORY = Path("/dev/shm")


def memory_folder(room: int) -> Path | None:
    """Return a folder in memory with `room` bytes; None if there is none.

    A disk would take a minute for the thousands of commits of these tests.
    """
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= room else None


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@asynccontextmanager
async def temporary_store(folder: Path, master: MasterKeys = NO_MASTER_KEY) -> AsyncIterator[SqlStore]:
    """Open the store in this folder; create it if it is missing."""
    async with SqlStore(url_of(folder / "bot.db"), JumpingClock(), master=master) as store:
        yield store


def message(
    number: int | str, text: str = "hello", channel: ChannelKey = ROOM, author: Author = MEI
) -> IncomingMessage:
    return IncomingMessage(str(number), channel, author, text, NOON)


def decrypted_rows(url: str, table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table by id, with their texts, and without what is of this database only."""
    own = key_columns(table).keys() | pseudonyms(table).keys()
    with open_snapshot(url) as connection, reading_vault(url, connection) as vault:
        rows = vault.decrypt(connection, table, connection.execute(select(table).order_by(*table.primary_key)).all())
    return [{name: value for name, value in row.items() if name not in own} for row in rows if isinstance(row, dict)]


def bytes_in(folder: Path) -> bytes:
    """Return the content of all files in the folder: the database, its log, its shared memory."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())
