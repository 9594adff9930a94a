"""Backup and restore: complete, private, without deleted text, while the bot runs."""

import errno
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from bot.domain import Answer, Kind
from bot.errors import StoreError
from bot.storage import backup, migrate
from bot.storage.backup import back_up
from bot.storage.sql import SqlStore
from tests.storage import ROOM, message, temporary_store, url_of


async def test_a_backup_of_a_running_bot_is_a_snapshot_that_can_be_restored(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        first = await store.enqueue(message(1, "before"), Kind.CHAT)
        assert first is not None
        await store.record_answer(first, Answer("yes"))
        size = back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
        await store.enqueue(message(2, "after"), Kind.CHAT)
    assert size == sum(file.stat().st_size for file in tmp_path.glob("backup.db*"))
    (tmp_path / "restored").mkdir()
    for suffix in ("", ".keys"):
        shutil.copy(tmp_path / f"backup.db{suffix}", tmp_path / "restored" / f"bot.db{suffix}")
    async with temporary_store(tmp_path / "restored") as store:
        assert (found := await store.find(ROOM, "1")) is not None
        assert found.answer == Answer("yes")
        assert await store.find(ROOM, "2") is None
        later = await store.enqueue(message(3), Kind.CHAT)
        assert later is not None
        assert later.id > first.id


async def test_a_backup_without_the_keys_of_the_database_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        async with temporary_store(tmp_path / folder) as store:
            await store.enqueue(message(1, "hello"), Kind.CHAT)
    keys, whole = tmp_path / "one" / "bot.db.keys", (tmp_path / "one" / "bot.db.keys").read_bytes()

    def refusal() -> str:
        with pytest.raises(StoreError) as raised:
            back_up(url_of(tmp_path / "one" / "bot.db"), tmp_path / "backup.db")
        assert not list(tmp_path.glob("backup.db*"))
        return str(raised.value)

    keys.unlink()
    assert f"{keys} is missing, and no text can be read without these keys" in refusal()
    shutil.copy(tmp_path / "other" / "bot.db.keys", keys)
    assert f"{keys} has the keys of another database" in refusal()
    keys.write_bytes(whole[:64])
    assert f"{keys} is shorter than its database needs" in refusal()
    keys.write_bytes(whole)
    assert back_up(url_of(tmp_path / "one" / "bot.db"), tmp_path / "backup.db")


async def test_a_backup_contains_no_deleted_text(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1, "swordfish"), Kind.CHAT)
        await store.clear(ROOM)
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert b"swordfish" not in (tmp_path / "backup.db").read_bytes()


def test_a_backup_has_mode_0600_under_any_umask(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    before = os.umask(0)
    try:
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600


def test_a_backup_does_not_overwrite_a_file(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    (tmp_path / "backup.db").write_bytes(b"precious")
    with pytest.raises(StoreError, match="already exists: a backup does not overwrite files"):
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert (tmp_path / "backup.db").read_bytes() == b"precious"


def test_the_partial_file_of_a_killed_backup_is_replaced(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    (tmp_path / "backup.db.partial").write_bytes(b"half of it")
    back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert {path.name for path in tmp_path.iterdir()} == {"bot.db", "backup.db"}


async def test_a_backup_that_was_killed_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)
    for name in ("backup.db.keys", "backup.db.partial", "backup.db.partial-journal"):
        (tmp_path / name).write_bytes(b"left by a kill between the two renames")
    (tmp_path / "backup.db").touch()
    back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    async with SqlStore(url_of(tmp_path / "backup.db")) as store:
        assert await store.find(ROOM, "1") is not None
    assert not [file.name for file in tmp_path.glob("backup.db.partial*")]


async def test_a_backup_does_not_overwrite_the_keys_of_another(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)
    (tmp_path / "old.db.keys").write_bytes(b"keys whose database is elsewhere")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"old\.db\.keys already exists: a backup does not overwrite files"):
            back_up(url_of(tmp_path / "bot.db"), tmp_path / "old.db")
    assert [file.name for file in tmp_path.glob("old*")] == ["old.db.keys"]
    assert (tmp_path / "old.db.keys").read_bytes() == b"keys whose database is elsewhere"


async def test_of_two_backups_with_one_name_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1, "kept"), Kind.CHAT)
    refusals: list[str] = []

    def check(file: Path) -> None:
        real(file)
        monkeypatch.setattr(backup, "_check_integrity", real)  # for the second
        with pytest.raises(StoreError) as refused:
            back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
        refusals.append(str(refused.value))

    real = backup._check_integrity
    monkeypatch.setattr(backup, "_check_integrity", check)
    assert back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert refusals == [
        f"another backup is being written to {tmp_path / 'backup.db'}: wait for its end, or name another file"
    ]
    async with SqlStore(url_of(tmp_path / "backup.db")) as restored:
        assert await restored.find(ROOM, "1") is not None


def test_a_device_is_no_leftover(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    os.mkfifo(tmp_path / "backup.db")
    with pytest.raises(StoreError, match=r"backup\.db already exists"):
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert (tmp_path / "backup.db").is_fifo()


async def test_a_full_disk_is_named_where_the_keys_find_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backup.shutil, "copyfile", fail)  # type: ignore[attr-defined]  # the module's own import
    with pytest.raises(StoreError, match=r"backup\.db, cannot grow, the disk is full: free some space"):
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert not list(tmp_path.glob("backup.db*"))


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    with pytest.raises(StoreError, match=r"cannot be written \(No such file or directory\): name another file"):
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "absent" / "backup.db")


def test_a_backup_does_not_create_a_missing_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no database .*bot\.db: nothing to back up"):
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["source", "copy"])
def test_a_backup_that_fails_the_integrity_check_is_deleted(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bot.db"
    migrate.upgrade(url_of(file))
    if damage == "source":
        with file.open("r+b") as pages:
            pages.seek(4096)
            pages.write(b"\xff" * 4096 * 3)
    else:

        def connect(*args: object, **kwargs: object) -> sqlite3.Connection:
            if "partial" in str(args[0]) and "immutable" in str(
                args[0]
            ):  # the disk returns other bytes than were written
                partial = tmp_path / "backup.db.partial"
                content = bytearray(partial.read_bytes())
                content[4096 + 8 : 4096 + 40] = b"\xff" * 32
                partial.write_bytes(content)
            return real(*args, **kwargs)  # type: ignore[call-overload,no-any-return]  # the same arguments

        real = sqlite3.connect
        monkeypatch.setattr(backup.sqlite3, "connect", connect)  # type: ignore[attr-defined]  # the module's own import
    with pytest.raises(StoreError, match="damaged"):
        back_up(url_of(file), tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()
    assert not (tmp_path / "backup.db.partial").exists()


def test_file_names_may_contain_characters_that_are_special_in_a_uri(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "why not #1.db"))
    back_up(url_of(tmp_path / "why not #1.db"), tmp_path / "to?here#%41.db")
    assert {path.name for path in tmp_path.iterdir()} == {"why not #1.db", "to?here#%41.db"}


def test_a_server_is_backed_up_with_pg_dump(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"pg_dump --format=custom --file=\S+ postgresql://bot@db/bot$"):
        back_up("postgresql://bot:secret@db/bot", tmp_path / "backup.db")
