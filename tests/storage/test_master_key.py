"""A master key can be set, changed and removed at any start, and a kill loses nothing."""

import shutil
from pathlib import Path

import pytest

from bot.domain import Answer, Kind
from bot.errors import StoreError
from bot.storage import key_file
from bot.storage.backup import back_up
from bot.storage.copy import copy_database
from bot.storage.export import check_keys, export_channel
from bot.storage.key_file import KeyFile, path_beside
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.sql import SqlStore
from tests.harness.postgres import PostgresServer
from tests.storage import MEI, ROOM, bytes_in, message, temporary_store, url_of
from tests.storage.kill_at import kills_of

ONE, TWO = "one " * 8, "two " * 8

# What an operator sets, start after start.
STARTS = [
    MasterKeys(ONE),
    MasterKeys(ONE),
    MasterKeys(TWO, ONE),
    MasterKeys(TWO, ONE),  # the old one is left in the settings
    MasterKeys(TWO),
    MasterKeys(None, TWO),
    NO_MASTER_KEY,
    MasterKeys(TWO, ONE),
]


async def store_one(store: SqlStore, number: int) -> None:
    exchange = await store.enqueue(message(number, f"question {number}"), Kind.CHAT)
    assert exchange is not None
    await store.record_answer(exchange, Answer(f"answer {number}"))


async def read(store: SqlStore) -> list[tuple[str, Answer | None]]:
    found = [await store.find(ROOM, str(number)) for number in range(20)]
    return [(exchange.message.text, exchange.answer) for exchange in found if exchange is not None]


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("bot.db", "bot.db.keys")]


def expected(numbers: range) -> list[tuple[str, Answer | None]]:
    return [(f"question {number}", Answer(f"answer {number}")) for number in numbers]


async def test_it_is_set_changed_and_removed_at_a_start(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store_one(store, 0)
    plain = path_beside(tmp_path / "bot.db").read_bytes()
    for number, master in enumerate(STARTS, 1):
        async with temporary_store(tmp_path, master) as store:
            await store_one(store, number)
            assert await read(store) == expected(range(number + 1))
        if master.current is not None:
            stored = bytes_in(tmp_path)
            assert not any(plain[at : at + 32] in stored for at in range(64, 64 + 32 * 3, 32)), "a key as it is"
        assert {path.name for path in tmp_path.iterdir()} == {"bot.db", "bot.db.keys"}
    assert path_beside(tmp_path / "bot.db").stat().st_mode & 0o777 == 0o600


async def test_a_server_has_it_too(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.storage.keys.BATCH", 3)
    with postgres.lent() as name:
        for number, master in enumerate([NO_MASTER_KEY, *STARTS]):
            before = postgres.run("SELECT key FROM text_keys WHERE number > 0 ORDER BY number", name)
            async with SqlStore(postgres.url(name), master=master) as store:
                await store_one(store, number)
                assert await read(store) == expected(range(number + 1))
            after = postgres.run("SELECT key FROM text_keys WHERE number > 0 ORDER BY number", name)
            assert (before == after[: len(before)]) == (number in (0, 2, 4, 5, 7))
        with pytest.raises(StoreError, match=r"is encrypted with another master key than storage\.master_key: set"):
            async with SqlStore(postgres.url(name), master=MasterKeys(ONE)):
                pass
        with pytest.raises(StoreError, match=r"^postgresql://.* is encrypted with a master key, and storage.master_"):
            check_keys(postgres.url(name))
        async with SqlStore(postgres.url(name), master=MasterKeys(TWO)) as store:
            assert await store.forget(MEI) == len(STARTS) + 1
            await store_one(store, 30)


async def test_new_databases_begin_with_it(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.lent() as name:
        for url in (url_of(tmp_path / "bot.db"), postgres.url(name)):
            async with SqlStore(url, master=MasterKeys(ONE)) as store:
                await store_one(store, 0)
            with pytest.raises(StoreError, match="is encrypted with a master key"):
                check_keys(url)


@pytest.mark.parametrize(
    ("master", "sentence"),
    [
        (NO_MASTER_KEY, "is encrypted with a master key, and storage.master_key is not set: set it as before"),
        (
            MasterKeys(TWO),
            "is encrypted with another master key than storage.master_key: set the one from before; to change",
        ),
        (MasterKeys(None, TWO), "is encrypted with another master key"),
    ],
    ids=["missing", "wrong", "wrong old one"],
)
async def test_without_it_nothing_is_opened_and_nothing_changed(
    tmp_path: Path, master: MasterKeys, sentence: str
) -> None:
    async with temporary_store(tmp_path, MasterKeys(ONE)) as store:
        await store_one(store, 0)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=rf"bot\.db\.keys {sentence}") as raised:
        async with temporary_store(tmp_path, master):
            pass
    assert raised.value.exit_code == 2
    url = url_of(tmp_path / "bot.db")
    with pytest.raises(StoreError, match=sentence):
        check_keys(url, master)
    with pytest.raises(StoreError, match=sentence):
        list(export_channel(url, str(ROOM), master))
    with pytest.raises(StoreError, match=sentence):
        copy_database(url, url_of(tmp_path / "copy" / "bot.db"), master=master)
    assert contents(tmp_path) == before


async def test_a_deletion_reaches_the_keys_that_were_replaced(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store_one(store, 0)
    keys, old = path_beside(tmp_path / "bot.db"), tmp_path / "another name of the old file"
    old.hardlink_to(keys)
    async with temporary_store(tmp_path, MasterKeys(ONE)):
        assert old.read_bytes() == b""


async def test_backup_export_and_copy_work_with_it(tmp_path: Path) -> None:
    master = MasterKeys(ONE)
    async with temporary_store(tmp_path, master) as store:
        await store_one(store, 0)
        (tmp_path / "backup").mkdir()
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup" / "bot.db")
        assert "question 0" in "".join(export_channel(url_of(tmp_path / "bot.db"), str(ROOM), master))
    check_keys(url_of(tmp_path / "bot.db"), master)
    copy_database(url_of(tmp_path / "bot.db"), url_of(tmp_path / "copy" / "bot.db"), master=master)
    for folder in (tmp_path / "backup", tmp_path / "copy"):
        async with temporary_store(folder, master) as store:
            assert await read(store) == expected(range(1))
        assert b"question 0" not in bytes_in(folder)


# Replaces the file in one process after another, each of which is killed at a later call.
_KILLED = """
import sys
from pathlib import Path
from bot.storage import key_file
from bot.storage.key_file import KeyFile
from bot.storage.master_key import MasterKeys
from tests.storage.kill_at import kill_at, kill_in_turn

folder, database, current, old = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3] or None, sys.argv[4] or None
key_file._MANY = 2

def replace(copy, number):
    kill_at(number, ("open", "pwrite", "fsync", "link", "replace", "ftruncate", "unlink"))
    KeyFile(copy / "bot.db.keys", MasterKeys(current, old)).open(database, 5)

print(kill_in_turn(folder, replace))
"""


@pytest.mark.parametrize(("before", "current", "old"), [(None, ONE, None), (ONE, TWO, ONE), (ONE, None, ONE)])
def test_a_kill_leaves_the_old_keys_or_the_new_ones(
    tmp_path: Path, before: str | None, current: str | None, old: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "_BLOCK", 5)
    folder = tmp_path / "whole"
    folder.mkdir()
    keys = KeyFile(folder / "bot.db.keys", MasterKeys(before))
    database = keys.create()
    keys.extend()
    keys.delete([3])
    contents = keys.read(range(5))
    keys.close()
    stored = (folder / "bot.db.keys").read_bytes()
    kills = kills_of(_KILLED, str(folder), database.hex(), current or "", old or "")
    assert kills > 15
    for number in range(kills + 1):
        killed = tmp_path / f"{number}"
        again = killed.with_suffix(".again")
        shutil.copytree(killed, again)
        for place, master in ((killed, MasterKeys(current, old)), (again, MasterKeys(before, current))):
            opened = KeyFile(place / "bot.db.keys", master)
            opened.open(database, 5)
            assert opened.read(range(5)) == contents
            opened.close()
            assert [path.name for path in place.iterdir()] == ["bot.db.keys"]
        assert not any(stored[at : at + 32] in bytes_in(killed) for at in (64, 96, 128, 192))
