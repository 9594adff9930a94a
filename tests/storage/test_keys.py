"""Keys that are missing, foreign or damaged cost one sentence, or only the exchanges that they belong to."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.domain import UNREADABLE, Answer, Kind
from bot.errors import NotErased, StoreError
from bot.storage import key_file
from bot.storage.backup import back_up
from bot.storage.key_file import path_beside
from bot.storage.sql import SqlStore
from tests.storage import MEI, NOON, ROOM, message, temporary_store, url_of


async def fill(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    async with temporary_store(folder) as store:
        for number in (1, 2, 3):
            exchange = await store.enqueue(message(number, f"question {number}"), Kind.CHAT)
            assert exchange is not None
            if number < 3:
                await store.record_answer(exchange, Answer(f"answer {number}"))
                await store.complete(exchange)


async def enqueue_many(store: SqlStore) -> None:
    for number in range(10, 20):
        await store.enqueue(message(number), Kind.CHAT)


def execute(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "bot.db")) as database, database:
        database.execute(statement)


def remove(keys: Path) -> None:
    keys.unlink()


def exchange_with_another(keys: Path) -> None:
    shutil.copyfile(path_beside(keys.parent / "other" / "bot.db"), keys)


def shorten(keys: Path) -> None:
    os.truncate(keys, 64 + 32)


def replace_by_text(keys: Path) -> None:
    keys.write_text("no keys at all " * 100)


def make_unreadable(keys: Path) -> None:
    keys.unlink()
    keys.mkdir()  # as root every file is readable


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (remove, r"bot\.db\.keys is missing, and no text can be read without these keys: restore it"),
        (exchange_with_another, r"bot\.db\.keys has the keys of another database: restore it"),
        (shorten, r"bot\.db\.keys is shorter than its database needs, keys are missing: restore it"),
        (replace_by_text, r"bot\.db\.keys is no file of keys: restore it"),
        (make_unreadable, r"bot\.db\.keys cannot be opened \(Is a directory\)"),
    ],
)
async def test_without_its_keys_a_database_is_not_opened_and_not_changed(
    tmp_path: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    await fill(tmp_path)
    await fill(tmp_path / "other")
    back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
    keys = path_beside(tmp_path / "bot.db")
    harm(keys)
    before = (tmp_path / "bot.db").read_bytes()
    with capture_logs() as logs, pytest.raises(StoreError, match=sentence):
        async with temporary_store(tmp_path):
            pass
    assert not [entry for entry in logs if entry["log_level"] == "warning"]
    assert (tmp_path / "bot.db").read_bytes() == before
    shutil.rmtree(keys) if keys.is_dir() else keys.unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "backup.db.keys", keys)
    async with temporary_store(tmp_path) as store:
        found = await store.find(ROOM, "1")
        assert found is not None
        assert (found.message.text, found.answer) == ("question 1", Answer("answer 1"))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE exchanges SET text = substr(text, 1, length(text) - 1) || x'00' WHERE id = 1",
        "UPDATE exchanges SET text = (SELECT text FROM exchanges WHERE id = 2) WHERE id = 1",
        "UPDATE exchanges SET answer = text WHERE id = 1",
        "UPDATE exchanges SET question_key = 400 WHERE id = 1",
    ],
    ids=["altered", "of another row", "of another column", "of another key"],
)
async def test_a_text_that_cannot_be_decrypted_costs_its_exchange_only(tmp_path: Path, change: str) -> None:
    await fill(tmp_path)
    execute(tmp_path, change)
    with capture_logs() as logs:
        async with temporary_store(tmp_path) as store:
            for _ in range(2):
                assert await store.find(ROOM, "1") is None
            owed = await store.claim_owed("slack")
            assert [exchange.message.text for exchange in owed] == ["question 3"]
            history = await store.history(owed[0], 10)
            assert [each.message.text for each in history.exchanges] == ["question 2"]
            assert await store.clear(ROOM) == 3
    damaged = [each["exchange"] for each in logs if each["event"] == "exchange skipped, its row is damaged"]
    assert damaged == [1]


@pytest.mark.parametrize("status", ["open", "answered"])
async def test_an_owed_exchange_without_a_key_is_empty_and_known_to_be_unreadable(tmp_path: Path, status: str) -> None:
    await fill(tmp_path)
    execute(tmp_path, f"UPDATE exchanges SET status = '{status}', question_key = 1000000000 WHERE id = 2")
    for _ in range(2):  # a kill before the sentence is stored
        async with temporary_store(tmp_path) as store:
            owed = await store.claim_owed("slack")
            assert [(each.message.text, each.is_unreadable) for each in owed] == [("", True), ("question 3", False)]
            assert owed[0].answer is None
    async with temporary_store(tmp_path) as store:
        unreadable = (await store.claim_owed("slack"))[0]
        assert await store.fail(unreadable, UNREADABLE)
        retried = await store.requeue(unreadable)
        assert retried is not None
        assert retried.is_unreadable
        edited = await store.requeue(unreadable, "said again")
        assert edited is not None
        assert (edited.message.text, edited.is_unreadable) == ("said again", False)


async def test_a_message_is_not_stored_while_no_key_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "_BLOCK", 2)
    await fill(tmp_path)

    def write(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with temporary_store(tmp_path) as store:
        with monkeypatch.context() as full:
            full.setattr("bot.storage.key_file.os.pwrite", write)
            with pytest.raises(StoreError, match=r"bot\.db\.keys cannot be written \(No space left on device\)"):
                await enqueue_many(store)
        stored = {number for number in range(10, 20) if await store.find(ROOM, str(number)) is not None}
        assert len(stored) < 10
        await enqueue_many(store)
        for number in range(10, 20):
            found = await store.find(ROOM, str(number))
            assert found is not None
            assert found.message == message(number)


async def test_a_deletion_says_so_while_no_key_can_be_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)

    def write(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with temporary_store(tmp_path) as store:
        before = path_beside(tmp_path / "bot.db").read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr("bot.storage.key_file.os.pwrite", write)
            with pytest.raises(NotErased):
                await store.forget(MEI)
            assert path_beside(tmp_path / "bot.db").read_bytes() == before
        await store.expire(NOON)  # the next write retries
        await store.enqueue(message("new"), Kind.CHAT)
    slots = path_beside(tmp_path / "bot.db").read_bytes()[64:]
    assert sum(slots[at : at + 32] == bytes(32) for at in range(0, len(slots), 32)) == 5


async def test_a_symbolic_link_has_its_keys_beside_the_file_that_it_names(tmp_path: Path) -> None:
    for folder in ("volume", "data", "other"):
        (tmp_path / folder).mkdir()
    for folder in ("data", "other"):
        (tmp_path / folder / "bot.db").symlink_to(tmp_path / "volume" / "bot.db")
    async with temporary_store(tmp_path / "data") as store:
        await store.enqueue(message(1, "hello"), Kind.CHAT)
        back_up(url_of(tmp_path / "data" / "bot.db"), tmp_path / "backup.db")
    assert (tmp_path / "volume" / "bot.db.keys").exists()
    assert (tmp_path / "backup.db.keys").exists()
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"bot.db"}
    for folder in ("other", "volume"):
        async with temporary_store(tmp_path / folder) as store:
            assert (found := await store.find(ROOM, "1")) is not None
            assert found.message.text == "hello"


async def test_a_deletion_does_not_report_that_the_file_cannot_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    size = path_beside(tmp_path / "bot.db").stat().st_size
    write_within = os.pwrite

    def write(file: int, data: bytes, offset: int) -> int:
        if offset + len(data) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_within(file, data, offset)

    async with temporary_store(tmp_path) as store:
        monkeypatch.setattr(key_file, "_BLOCK", 2 * key_file._BLOCK)  # so that keys for later are wanted at once
        with monkeypatch.context() as full, capture_logs() as logs:
            full.setattr("bot.storage.key_file.os.pwrite", write)
            assert await store.forget(MEI) == 3
        events = {line["event"] for line in logs}
        assert events == {"no keys for later texts can be made; the next write retries"}
        assert await store.enqueue(message("new"), Kind.CHAT) is not None
    content = path_beside(tmp_path / "bot.db").read_bytes()
    assert len(content) > size
    assert sum(content[at : at + 32] == bytes(32) for at in range(64, len(content), 32)) == 5
