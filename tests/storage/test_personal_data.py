"""Personal data in every table: deletion, export, backup and copy cover it.

A new table with personal columns fails here until it has an entry in KEYS, ENQUEUE and
DELETIONS, and the store's deletion and the export handle it.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import JSON, Table

from bot.domain import (
    Answer,
    Attachment,
    Author,
    FurtherKind,
    FurtherMessage,
    Kind,
    Picture,
    Scope,
    SettingChange,
    Vote,
    VoteResult,
)
from bot.storage.backup import back_up
from bot.storage.copy import copy_database
from bot.storage.export import export_channel
from bot.storage.key_file import path_beside
from bot.storage.schema import Encrypted, SafeText, metadata
from bot.storage.sql import SqlStore
from tests.storage import NOON, ROOM, THREAD, bytes_in, decrypted_rows, message, temporary_store, url_of
from tests.storage.test_lost_keys import comparison

# Text columns that identify no person and that no person wrote.
KEYS = {
    "exchanges": {
        *("platform", "channel", "thread", "message", "author_platform", "author", "server"),
        *("kind", "status", "reason", "failure", "owner", "model", "persona"),
    },
    "parts": {"message"},
    "channels": {"platform", "channel", "thread", "last_message"},
    "further_messages": {"channel", "thread", "message", "platform", "kind", "author_platform", "author"},
    "settings": {"level", "place", "setting", "value", "author_platform", "author"},
    "readable_since": {"level", "place"},  # of a person a pseudonym
    "usage": {"level", "place"},  # of a person a pseudonym
    "feedback": {"voter", "vote"},
    "consents": {"person"},
}
PICTURE = Picture("image/personal", b"png", 1, 1)
AUTHOR = Author("slack", "personal author", "personal name", frozenset({"personal role"}))
VOTER = Author("slack", "U0VOTER", "Ben")
WRITER = Author("slack", "personal writer", "")  # of a text that the author restored


async def enqueue_exchange(store: SqlStore) -> None:
    incoming = replace(
        message(1, "personal text", author=AUTHOR),
        quoted="personal quotation",
        quoted_id="personal id",
        locale="personal-locale",
        files=(
            Attachment("personal file", text="personal contents"),
            *(Attachment("a.png", is_picture=True, is_quoted=each, picture=PICTURE) for each in (False, True)),
        ),
    )
    exchange = await store.enqueue(incoming, Kind.CHAT)
    assert exchange is not None
    await store.record_answer(exchange, Answer("personal answer", "personal notice"))
    await store.complete(exchange)


async def record_setting(store: SqlStore) -> None:
    await enqueue_exchange(store)  # only a channel with exchanges can be exported
    scope = Scope("channel", str(ROOM))
    await store.record_setting(SettingChange(scope, "persona", None, "personal text", AUTHOR, NOON, WRITER.key))


async def record_context(store: SqlStore) -> None:
    exchange = await store.enqueue(message(1, "why?"), Kind.CHAT)
    assert exchange is not None
    files = Attachment("personal file", text="personal contents"), Attachment("a.png", is_picture=True, picture=PICTURE)
    said = FurtherMessage("7", ROOM.channel, AUTHOR, "personal text", NOON, FurtherKind.BEFORE, files)
    await store.record_context(exchange, [said])
    await store.record_answer(exchange, Answer("because"))
    await store.complete(exchange)


async def erase(store: SqlStore) -> None:
    exchange = await store.find(ROOM, "1")
    assert exchange is not None
    await store.erase(exchange)


async def forget_both(store: SqlStore) -> None:
    await store.forget(AUTHOR)
    await store.forget(WRITER)


# Each stores one row whose personal columns contain the word "personal".
ENQUEUE: dict[str, Callable[[SqlStore], Awaitable[object]]] = {
    "exchanges": enqueue_exchange,
    "further_messages": record_context,
    "settings": record_setting,
}
# The store's deletions that cover a table.
DELETIONS: dict[str, dict[str, Callable[[SqlStore], Awaitable[object]]]] = {
    "exchanges": {
        "clear": lambda store: store.clear(ROOM),
        "clear one's own": lambda store: store.clear(ROOM, author=AUTHOR),
        "forget": lambda store: store.forget(AUTHOR),
        "erase": erase,
        "delete_messages": lambda store: store.delete_messages(ROOM, ["1"]),
        "expire": lambda store: store.expire(NOON + timedelta(days=1)),
    },
    "further_messages": {
        "clear": lambda store: store.clear(ROOM),
        "clear one's own": lambda store: store.clear(ROOM, author=AUTHOR),
        "forget": lambda store: store.forget(AUTHOR),
        "erase": erase,
        "delete_messages": lambda store: store.delete_messages(ROOM, ["7"]),
        "delete the question": lambda store: store.delete_messages(ROOM, ["1"]),
        "expire": lambda store: store.expire(NOON + timedelta(days=1)),
    },
    # What /clear deletes was said: everybody may use it, but not change a setting.
    "settings": {"forget": forget_both},
}


def personal(table: Table) -> set[str]:
    return {column.name for column in table.columns if column.info.get("personal")}


TABLES = [table for table in metadata.sorted_tables if personal(table)]


def read(file: Path, table: Table) -> dict[str, str]:
    """Return the only row of a table, decrypted, as JSON by column; empty if it was deleted."""
    rows = decrypted_rows(url_of(file), table)
    assert len(rows) <= 1
    return {name: json.dumps(value, default=str) for row in rows for name, value in row.items()}


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_every_text_column_is_personal_or_a_key(table: Table) -> None:
    texts = {column.name for column in table.columns if isinstance(column.type, SafeText | JSON | Encrypted)}
    assert texts == personal(table) | KEYS.get(table.name, set())
    assert not personal(table) & KEYS.get(table.name, set())
    assert all("key" in column.info for column in table.columns if isinstance(column.type, Encrypted))


@pytest.mark.parametrize(
    ("table", "deletion"), [(table, deletion) for table in TABLES for deletion in DELETIONS[table.name]], ids=str
)
async def test_every_deletion_covers_every_personal_column(table: Table, deletion: str, tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await ENQUEUE[table.name](store)
        before = read(tmp_path / "bot.db", table)
        assert {name for name, value in before.items() if "personal" in value} == personal(table)
        await DELETIONS[table.name][deletion](store)
        after = read(tmp_path / "bot.db", table)
    assert [name for name, value in after.items() if "personal" in value] == []


async def test_a_stored_press_has_no_id_of_its_person(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await enqueue_exchange(store)
        exchange = await store.find(ROOM, "1")
        assert exchange is not None
        for result in (VoteResult.DOWN, VoteResult.REPEATED):
            assert await store.vote(exchange, VOTER, Vote.DOWN, NOON, f"{VOTER.id}/1700000000.25") is result
        assert b"U0VOTER" not in bytes_in(tmp_path)


@pytest.mark.parametrize("table", TABLES, ids=str)
async def test_every_personal_column_can_be_read_after_older_keys_were_restored(table: Table, tmp_path: Path) -> None:
    keys = path_beside(tmp_path / "bot.db")
    async with temporary_store(tmp_path) as store:
        await ENQUEUE[table.name](store)
        [before] = decrypted_rows(url_of(tmp_path / "bot.db"), table)
        older = keys.read_bytes()
        for id in ("2", "3"):
            await store.enqueue(message(id, channel=THREAD), Kind.CHAT)
            await store.delete_messages(THREAD, [id])
    keys.write_bytes(older)
    async with temporary_store(tmp_path) as store:
        assert await comparison(store)
        assert before in decrypted_rows(url_of(tmp_path / "bot.db"), table)


@pytest.mark.parametrize("table", TABLES, ids=str)
async def test_export_backup_and_copy_contain_every_personal_column(table: Table, tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await ENQUEUE[table.name](store)
    url = url_of(tmp_path / "bot.db")
    row = read(tmp_path / "bot.db", table)
    back_up(url, tmp_path / "backup.db")
    copy_database(url, url_of(tmp_path / "copy.db"))
    assert read(tmp_path / "backup.db", table) == read(tmp_path / "copy.db", table) == row
    exported = "".join(export_channel(url, str(ROOM)))
    said = {name: re.findall(r"personal[ -]?\w*", row[name]) for name in personal(table)}
    assert [name for name, words in said.items() if not words or any(word not in exported for word in words)] == []
