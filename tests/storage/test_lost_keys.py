"""Rows are compared with keys only if database and file of keys are not of the same time."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.domain import (
    Answer,
    Author,
    Exchange,
    FurtherKind,
    FurtherMessage,
    Kind,
    Scope,
    SettingChange,
    Upkeep,
    Vote,
)
from bot.storage.backup import back_up
from bot.storage.copy import copy_database
from bot.storage.key_file import path_beside
from bot.storage.master_key import MasterKeys
from bot.storage.sql import SqlStore
from tests.harness.fakes.clock import JumpingClock
from tests.storage import BEN, MEI, NOON, ROOM, message, temporary_store, url_of
from tests.storage.kill_at import kills_of

_SLOT = 32
_HEADER = 64


async def fill(folder: Path, count: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    async with temporary_store(folder) as store:
        for number in range(1, count + 1):
            exchange = await store.enqueue(message(number, f"question {number}"), Kind.CHAT)
            assert exchange is not None
            await store.record_answer(exchange, Answer(f"answer {number}"))
            await store.complete(exchange)


async def comparison(store: SqlStore) -> bool:
    """Wait until rows were compared with keys; return whether they are at all."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "lost keys"]
    await asyncio.gather(*tasks)
    return bool(tasks)


async def texts(store: SqlStore, *numbers: int) -> list[str]:
    found = [await store.find(ROOM, str(number)) for number in numbers]
    return [each.message.text if each else "unreadable" for each in found]


def kept_keys(folder: Path) -> set[bytes]:
    slots = (folder / "bot.db.keys").read_bytes()[_HEADER:]
    return {slots[at : at + _SLOT] for at in range(0, len(slots), _SLOT)} - {bytes(_SLOT)}


def key_of(folder: Path, message_id: str) -> bytes:
    with closing(sqlite3.connect(folder / "bot.db")) as database:
        query = "SELECT question_key FROM exchanges WHERE message = ?"
        number = database.execute(query, (message_id,)).fetchone()[0]
    return (folder / "bot.db.keys").read_bytes()[_HEADER + _SLOT * number :][:_SLOT]


async def test_rows_that_are_older_than_a_deletion_of_their_keys_are_cleared_at_the_start(tmp_path: Path) -> None:
    await fill(tmp_path, 2)
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(3, "question 3"), Kind.CHAT)
        quoting = replace(message(4, "look"), quoted="question 1", quoted_id="1")
        exchange = await store.enqueue(quoting, Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange, Answer("answer 4"))
        await store.complete(exchange)
    restored = (tmp_path / "bot.db").read_bytes()
    async with temporary_store(tmp_path) as store:
        await store.delete_messages(ROOM, ["1", "3"])
    (tmp_path / "bot.db").write_bytes(restored)  # without its keys of that time
    for is_first in (True, False):
        with capture_logs() as logs:
            async with temporary_store(tmp_path) as store:
                assert await comparison(store) == is_first
                assert store.upkeep == Upkeep(lost=int(is_first))
                found = [await store.find(ROOM, str(number)) for number in (1, 2, 4)]
                assert [each and (each.status, each.message.text, each.message.quoted) for each in found] == [
                    ("cleared", "", None),
                    ("delivered", "question 2", None),
                    ("delivered", "look", None),
                ]
                owed = await store.claim_owed("slack")  # it was owed at that time
                assert [each.is_unreadable for each in owed] == [True]
        told = [each["count"] for each in logs if each["event"].startswith("exchanges cleared whose keys are deleted")]
        assert told == [1] * is_first


async def test_a_restored_database_forgets_what_may_have_been_taken_back(tmp_path: Path) -> None:
    await fill(tmp_path)

    async def ask(store: SqlStore, number: int) -> Exchange:
        asked = await store.enqueue(message(number, author=BEN), Kind.CHAT)
        assert asked is not None
        return asked

    async def read(store: SqlStore, asked: Exchange, at: datetime) -> list[str]:
        said = FurtherMessage("100", "C1", MEI, "tea at five?", at, FurtherKind.BEFORE)
        assert await store.record_context(asked, [said])
        return [each.text for each in (await store.history(asked, 1)).now.message.further]

    async with temporary_store(tmp_path) as store:
        now = store._calendar.today()
        voted = await store.find(ROOM, "1")
        assert voted is not None
        await store.vote(voted, BEN, Vote.UP, NOON)
        await store.record_consent(MEI, NOON)
        assert await read(store, await ask(store, 4), now) == ["tea at five?"]
    restored = (tmp_path / "bot.db").read_bytes()
    async with temporary_store(tmp_path) as store:
        await store.forget(MEI)
    (tmp_path / "bot.db").write_bytes(restored)
    for number in (5, 6):
        async with temporary_store(tmp_path) as store:
            await comparison(store)
            assert not await store.has_consented(MEI)
            assert await store.own_votes(BEN, [voted.id]) == {}
            assert await read(store, await ask(store, number), now) == []
            assert await read(store, await ask(store, 10 + number), now + timedelta(days=1)) == ["tea at five?"]


async def test_a_setting_of_a_person_who_was_forgotten_since_is_in_force_in_a_restored_database(tmp_path: Path) -> None:
    place, text_place, nobody = Scope("channel", "slack:C1"), Scope("channel", "slack:C2"), Author("slack", "", "")
    chosen = SettingChange(place, "persona", "pirate", None, MEI, NOON)
    written = replace(chosen, scope=text_place, value=None, text="a text of hers")
    async with temporary_store(tmp_path) as store:
        await store.record_setting(chosen)
        await store.record_setting(written)
    restored = (tmp_path / "bot.db").read_bytes()
    async with temporary_store(tmp_path) as store:
        await store.forget(MEI)
        forgotten = await store.settings()
    (tmp_path / "bot.db").write_bytes(restored)
    copy_database(url_of(tmp_path / "bot.db"), url_of(tmp_path / "copy.db"))
    for name in ("bot.db", "copy.db"):
        async with SqlStore(url_of(tmp_path / name), JumpingClock()) as store:
            await comparison(store)
            assert await store.settings() == forgotten
            assert forgotten == [replace(chosen, author=nobody), replace(written, author=nobody, text=None)]


async def test_deletions_after_a_restore_do_not_hide_that_keys_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    restored = (tmp_path / "bot.db").read_bytes()
    async with temporary_store(tmp_path) as store:
        await store.delete_messages(ROOM, ["1"])
    (tmp_path / "bot.db").write_bytes(restored)

    async def killed(_: object) -> None:
        """Compare nothing."""

    with monkeypatch.context() as patch:
        patch.setattr("bot.storage.lost_keys.LostKeys.run", killed)
        async with temporary_store(tmp_path) as store:
            for number in ("10", "11", "12"):
                await store.enqueue(message(number), Kind.CHAT)
                await store.delete_messages(ROOM, [number])
    async with temporary_store(tmp_path) as store:
        assert await comparison(store)
        assert await texts(store, 1, 2) == ["", "question 2"]


async def test_keys_that_are_older_than_the_database_are_deleted_again(tmp_path: Path) -> None:
    await fill(tmp_path, 5)
    async with temporary_store(tmp_path) as store:
        await store.delete_messages(ROOM, ["5"])
    keys = path_beside(tmp_path / "bot.db")
    old = keys.read_bytes()
    deleted = {key_of(tmp_path, number) for number in ("1", "2")}
    async with temporary_store(tmp_path) as store:
        for number in ("1", "2", "4"):
            await store.delete_messages(ROOM, [number])
    keys.write_bytes(old)
    assert deleted <= kept_keys(tmp_path)
    for is_first in (True, False):
        with capture_logs() as logs:
            async with temporary_store(tmp_path) as store:
                assert await comparison(store) == is_first
                assert await texts(store, 1, 2, 3) == ["", "", "question 3"]
        told = [each["count"] for each in logs if each["event"].startswith("keys of deleted texts deleted again")]
        # Question and answer of 1 and 2; those of 4 were listed in the database, and its slots of later keys are free.
        assert told == [4] * is_first
    assert not deleted & kept_keys(tmp_path)


@pytest.mark.parametrize("change", ["backup", "master key"])
async def test_a_backup_or_another_master_key_needs_no_comparison(tmp_path: Path, change: str) -> None:
    await fill(tmp_path)
    async with temporary_store(tmp_path) as store:
        await store.delete_messages(ROOM, ["1"])
        back_up(url_of(tmp_path / "bot.db"), tmp_path / "backup.db")
        await store.delete_messages(ROOM, ["2"])
    master = MasterKeys("m" * 32 if change == "master key" else None)
    if change == "backup":
        shutil.move(tmp_path / "backup.db", tmp_path / "bot.db")
        shutil.move(tmp_path / "backup.db.keys", tmp_path / "bot.db.keys")
    for _ in range(2):
        async with SqlStore(url_of(tmp_path / "bot.db"), master=master) as store:
            assert not await comparison(store)
            assert await texts(store, 1, 2, 3) == ["", "question 2" if change == "backup" else "", "question 3"]


# Deletes two messages, and is killed before one of the calls that change the file of keys.
_KILLED = """
import asyncio, sys
from pathlib import Path
from tests.harness.fakes.clock import JumpingClock
from tests.storage import BEN, MEI, NOON, ROOM, temporary_store
from tests.storage.kill_at import kill_at, kill_in_turn

async def delete(folder, number):
    async with temporary_store(folder) as store:
        kill_at(number, ("pwrite", "fsync"))
        for message in ("1", "2"):
            await store.delete_messages(ROOM, [message])

print(kill_in_turn(Path(sys.argv[1]), lambda folder, number: asyncio.run(delete(folder, number))))
"""


async def test_after_a_kill_no_rows_are_compared_and_the_deletion_ends(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    await fill(whole)
    first, second = key_of(whole, "1"), key_of(whole, "2")
    old = (whole / "bot.db").read_bytes()
    kills = await asyncio.to_thread(kills_of, _KILLED, str(whole))
    assert kills >= 6
    for number in range(kills):
        folder = tmp_path / f"{number}"
        # The database from before, beside keys of which some are deleted.
        restored = folder.with_suffix(".restored")
        shutil.copytree(folder, restored)
        for suffix in ("-wal", "-shm"):
            (restored / f"bot.db{suffix}").unlink(missing_ok=True)
        (restored / "bot.db").write_bytes(old)
        async with temporary_store(folder) as store:
            assert not await comparison(store)
            is_second = (await texts(store, 2)) == [""]
            assert await texts(store, 1, 3) == ["", "question 3"]
        assert first not in kept_keys(folder)
        assert not is_second or second not in kept_keys(folder)
        is_lost = {first, second} - kept_keys(restored)
        async with temporary_store(restored) as store:
            assert await comparison(store) or not is_lost
            assert await texts(store, 1, 2) == [
                "" if key in is_lost else f"question {id}" for id, key in ((1, first), (2, second))
            ]


# Deletes a message before rows are compared with keys, and is killed before one of the calls that change the
# file of keys, or at the end.
_KILLED_WHILE_COMPARING = """
import asyncio, sys
from pathlib import Path
from bot.storage.lost_keys import LostKeys
from tests.harness.fakes.clock import JumpingClock
from tests.storage import BEN, MEI, NOON, ROOM, temporary_store
from tests.storage.kill_at import kill_at, kill_in_turn

compare, is_deleted, is_compared = LostKeys._compare, asyncio.Event(), asyncio.Event()

async def compare_later(self, mismatch):
    await is_deleted.wait()
    await compare(self, mismatch)
    is_compared.set()

async def delete(folder, number):
    LostKeys._compare = compare_later
    kill_at(number, ("pwrite", "fsync"))
    async with temporary_store(folder) as store:
        await store.delete_messages(ROOM, ["3"])
        is_deleted.set()
        await is_compared.wait()

print(kill_in_turn(Path(sys.argv[1]), lambda folder, number: asyncio.run(delete(folder, number))))
"""


async def test_keys_of_deleted_texts_do_not_outlive_a_deletion_and_a_kill_before_the_comparison(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole"
    await fill(whole, 4)
    older = (whole / "bot.db.keys").read_bytes()
    deleted = {key_of(whole, number) for number in ("1", "2", "3")}
    async with temporary_store(whole) as store:
        for number in ("1", "2", "4"):
            await store.delete_messages(ROOM, [number])
    (whole / "bot.db.keys").write_bytes(older)
    kills = await asyncio.to_thread(kills_of, _KILLED_WHILE_COMPARING, str(whole))
    assert kills >= 6
    for kill in range(kills + 1):
        folder = tmp_path / f"{kill}"
        async with temporary_store(folder) as store:
            assert await comparison(store) or kill == kills
            await store.delete_messages(ROOM, ["3"])
        assert not deleted & kept_keys(folder), f"killed before call {kill}"
