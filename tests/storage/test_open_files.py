"""Files that are overwritten under an open store are noticed, and nothing else is taken for that."""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bot.domain import Answer, Kind
from bot.errors import StoreError, StoreLost
from bot.storage.backup import back_up
from bot.storage.export import export_all
from bot.storage.sql import SqlStore
from tests.storage import ROOM, message, temporary_store, url_of
from tests.storage.test_conversion import converted, write_old_database


async def answer(store: SqlStore, number: int) -> None:
    exchange = await store.enqueue(message(number, "question"), Kind.CHAT)
    assert exchange is not None
    await store.record_answer(exchange, Answer("answer " * 100))
    await store.complete(exchange)


def copy_over(source: Path, target: Path) -> None:
    """Do what `cp` does: the file stays, its content changes."""
    shutil.copyfile(source, target)


async def assert_lost(store: SqlStore, name: str) -> None:
    with pytest.raises(StoreLost, match=rf"{name} was deleted or replaced while the bot was running"):
        store.check_files()
    with pytest.raises(StoreLost):
        await store.enqueue(message("later"), Kind.CHAT)


async def test_a_backup_that_is_copied_over_the_open_database_is_noticed(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await answer(store, 1)
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
        await answer(store, 2)
        store.check_files()
        copy_over(tmp_path / "backup.db", tmp_path / "bot.db")
        await assert_lost(store, "bot.db")


async def test_another_backup_is_noticed_right_after_a_restore(tmp_path: Path) -> None:
    """The header of a restored database has the counts of every backup, until it is written."""
    async with temporary_store(tmp_path) as store:
        await answer(store, 1)
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "first.db")
        await answer(store, 2)
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "second.db")
    (tmp_path / "restored").mkdir()
    for suffix in ("", ".keys"):
        copy_over(tmp_path / f"first.db{suffix}", tmp_path / "restored" / f"bot.db{suffix}")
    async with temporary_store(tmp_path / "restored") as store:
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "first page"])
        store.check_files()
        copy_over(tmp_path / "second.db", tmp_path / "restored" / "bot.db")
        await assert_lost(store, "bot.db")


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00", b"something else" * 100])
@pytest.mark.parametrize("name", ["bot.db", "bot.db.keys"])
async def test_a_file_that_is_emptied_or_overwritten_is_noticed(tmp_path: Path, name: str, content: bytes) -> None:
    async with temporary_store(tmp_path) as store:
        await answer(store, 1)
        (tmp_path / name).write_bytes(content)
        await assert_lost(store, name)


async def test_older_keys_are_noticed_before_deleted_ones_are_back_for_good(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await answer(store, 1)
        copy_over(tmp_path / "bot.db.keys", tmp_path / "older.keys")
        await store.delete_messages(ROOM, ["1"])
        copy_over(tmp_path / "older.keys", tmp_path / "bot.db.keys")
        await assert_lost(store, "bot.db.keys")
    assert (tmp_path / "bot.db.keys").read_bytes() == (tmp_path / "older.keys").read_bytes()  # no count hides it


async def test_keys_of_before_the_start_are_noticed_without_a_deletion(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await answer(store, 1)
    copy_over(tmp_path / "bot.db.keys", tmp_path / "older.keys")
    async with temporary_store(tmp_path) as store:
        await answer(store, 2)
        copy_over(tmp_path / "older.keys", tmp_path / "bot.db.keys")
        await assert_lost(store, "bot.db.keys")


@contextmanager
def checked(store: SqlStore) -> Iterator[None]:
    """Check the files all the time in a thread."""
    is_over, errors = threading.Event(), list[StoreError]()

    def check() -> None:
        while not is_over.wait(0.002) and not errors:
            try:
                store.check_files()
            except StoreError as error:
                errors.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert not errors


async def test_work_on_the_files_by_this_and_by_other_programs_is_no_loss(tmp_path: Path) -> None:
    url = url_of(tmp_path / "bot.db")
    write_old_database(url)
    async with temporary_store(tmp_path) as store:
        with checked(store):
            await converted(store)  # rewrites the file
            for number in range(1000, 1030):
                await answer(store, number)
                if number % 10 == 0:
                    await store.delete_messages(ROOM, [str(number)])
                    await store.check()
                    await store._transactions.checkpoint()
            back_up(url, tmp_path / "backup.db")
            assert list(export_all(url))
            with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
                for statement in ("PRAGMA user_version=3", "ANALYZE", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    other.execute(statement)
            await store.clear(ROOM)
            await store._transactions.checkpoint()
            for number in range(2000, 2300):  # more keys than the file has made for later
                await store.enqueue(message(number, "more"), Kind.CHAT)
            back_up(url, tmp_path / "backup2.db")
