"""Deleted text cannot be read: with the keys that are left, nothing that was deleted can be decrypted."""

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.domain import Answer, Author, ChannelKey, Exchange, FurtherKind, FurtherMessage, Kind
from bot.errors import NotErased, StoreError
from bot.storage import deletion
from bot.storage.key_file import KeyFile
from bot.storage.sql import SqlStore
from tests.storage import BEN, MEI, NOON, ROOM, bytes_in, message, temporary_store
from tests.storage.forensics import KeptFiles

# Each one is in another column; the long ones fill whole pages.
TEXTS = [
    "the secret question",
    "密码是芝麻开门",
    "a long one 很长 " * 5_000,
    "quoted text 引用",
    "Meimei Zhang 张",
]
ANSWERS = ["the open answer", "芝麻开门不是密码", "long-winded 啰嗦 " * 5_000, "the queue is full"]
WROTE = Author("slack", "U0123456789", TEXTS[4], frozenset({"role-of-hers", "她的角色"}))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with temporary_store(tmp_path) as store:
        yield store


async def talk(store: SqlStore) -> int:
    exchange: Exchange | None = None
    for number, (text, answer) in enumerate(zip(TEXTS[:3], ANSWERS[:3], strict=True)):
        asked = replace(message(number, text, author=WROTE), quoted=TEXTS[3], locale="zh-Hant-HK")
        exchange = await store.enqueue(asked, Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange, Answer(answer, ANSWERS[3]))
    assert exchange is not None
    # An edit: the old text must be deleted as well.
    edited = await store.requeue(exchange, TEXTS[2] + "edited")
    assert edited is not None
    assert await store.fail(edited, "chat not found")
    return exchange.id


def traces(content: bytes) -> list[str]:
    texts = [*TEXTS, *ANSWERS, WROTE.id, *WROTE.roles, "zh-Hant-HK", "很长", "啰嗦"]
    return [words[:30] for words in texts if words.encode() in content]


async def test_no_text_and_no_name_stands_in_the_files(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    assert traces(bytes_in(tmp_path)) == []


async def test_all_of_it_can_be_decrypted_before_a_deletion(store: SqlStore, tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    await talk(store)
    kept.copy()
    assert {"密码是芝麻开门", "the open answer", WROTE.id} <= set(traces(kept.decrypted()))


DELETIONS = {
    "clear": lambda store: store.clear(ROOM),
    "clear one's own": lambda store: store.clear(ROOM, author=WROTE),
    "forget": lambda store: store.forget(WROTE),
    "expire": lambda store: store.expire(NOON + timedelta(days=1)),
}


@pytest.mark.parametrize("deletion", DELETIONS)
async def test_no_copy_of_the_database_can_be_decrypted_after_a_deletion(
    store: SqlStore, tmp_path: Path, deletion: str
) -> None:
    kept = KeptFiles(tmp_path)
    await talk(store)
    kept.copy()
    await DELETIONS[deletion](store)
    kept.copy()
    assert traces(kept.decrypted()) == []


async def test_erase_and_an_edit_delete_only_what_they_should(store: SqlStore, tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    asked = [await store.enqueue(message(number, f"question {number}!"), Kind.CHAT) for number in range(3)]
    assert asked[0] is not None
    assert asked[1] is not None
    await store.record_answer(asked[1], Answer("first answer"))
    kept.copy()
    await store.erase(asked[0])
    assert await store.requeue(asked[1], "question one") is not None
    kept.copy()
    left = kept.decrypted()
    assert [text for text in (b"question 0!", b"question 1!", b"first answer") if text in left] == []
    assert b"question one" in left
    assert b"question 2!" in left


async def test_an_answer_that_is_stored_again_leaves_one_key(store: SqlStore, tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    exchange = await store.enqueue(message(1), Kind.CHAT)
    assert exchange is not None
    for text in ("half an answer", "the whole answer"):
        assert await store.record_answer(exchange, Answer(text))
        kept.copy()
    assert b"half an answer" not in kept.decrypted()


async def test_messages_that_are_known_use_no_keys(store: SqlStore, tmp_path: Path) -> None:
    exchange = await store.enqueue(message(1), Kind.CHAT)
    assert exchange is not None
    before = used_keys(tmp_path)
    for claim in (True, False):
        assert await store.enqueue(replace(message(1), quoted="so?"), Kind.CHAT, claim=claim) is None
    assert await store.enqueue(message(2), Kind.CHAT, claim=False) is None
    assert used_keys(tmp_path) == before + 1


def used_keys(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "bot.db")) as other:
        used: int = other.execute("SELECT used FROM encryption").fetchone()[0]
        return used


# What a kill leaves.


async def test_the_start_deletes_the_keys_of_rows_that_were_blanked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptFiles(tmp_path)
    async with temporary_store(tmp_path) as store:
        await talk(store)
        kept.copy()
        # As if the process had been killed after the commit.
        monkeypatch.setattr(KeyFile, "delete", lambda *_: None)
        await store.clear(ROOM)
        monkeypatch.undo()
        kept.copy()
    assert traces(kept.decrypted()), "the keys are still there"
    async with temporary_store(tmp_path):
        assert traces(kept.decrypted()) == []


async def test_the_start_replaces_keys_that_nothing_committed_was_written_with(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)
    before = (tmp_path / "bot.db.keys").read_bytes()
    async with temporary_store(tmp_path) as store:
        assert await store.find(ROOM, "1") is not None
        after = (tmp_path / "bot.db.keys").read_bytes()
    used = 64 + 32 * used_keys(tmp_path)
    assert after[:used] == before[:used]
    assert len(after) == len(before)
    assert after[used : used + 32] != before[used : used + 32]


async def test_keys_of_a_transaction_that_failed_are_deleted(store: SqlStore, tmp_path: Path) -> None:
    exchange = await store.enqueue(message(1, "first"), Kind.CHAT)
    assert exchange is not None
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute("CREATE TRIGGER no BEFORE UPDATE OF used ON encryption BEGIN SELECT RAISE(ABORT, 'no'); END")
        number = used_keys(tmp_path)
        with pytest.raises(StoreError):
            await store.enqueue(message(2, "second"), Kind.CHAT)
        other.execute("DROP TRIGGER no")
    slot = 64 + 32 * number
    assert (tmp_path / "bot.db.keys").read_bytes()[slot : slot + 32] == bytes(32)
    assert await store.enqueue(message(2, "second"), Kind.CHAT) is not None


async def test_a_key_file_that_cannot_be_written_is_reported_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    kept = KeptFiles(tmp_path)
    async with temporary_store(tmp_path) as store:
        await talk(store)
        kept.copy()
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(os, "pwrite", failing)
            with pytest.raises(NotErased, match="still hold the text") as raised:
                await store.clear(ROOM)
        assert raised.value.count == 3
        assert "cannot be written (Input/output error)" in logs[0]["error"]
        assert traces(kept.decrypted())
        await store.enqueue(message(9), Kind.CHAT)
        assert traces(kept.decrypted()) == []


@pytest.mark.parametrize("seed", [4, 7, 8])
async def test_rows_that_grew_and_moved_leave_nothing_that_can_be_decrypted(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    channels = [ChannelKey("slack", f"C{number}") for number in range(4)]
    unanswered: list[tuple[Exchange, str]] = []
    kept = KeptFiles(tmp_path)
    async with temporary_store(tmp_path) as store:
        for number in range(400):
            channel = dice.choice(channels)
            words = f"{channel.channel} says {number:06}. "
            asked = message(number, words * dice.choice([1, 2, 5, 20, 60, 150, 300, 600]), channel)
            exchange = await store.enqueue(asked, Kind.CHAT)
            assert exchange is not None
            unanswered.append((exchange, words))
            if dice.random() < 0.8:
                which, words = unanswered.pop(dice.randrange(len(unanswered)))
                await store.record_answer(which, Answer(words * dice.choice([1, 5, 30, 100, 250, 700]), words))
                if dice.random() < 0.2:
                    await store.requeue(which, words * dice.choice([1, 50, 300]))
            if number % 100 == 0:
                kept.copy()
        for channel in channels:
            await store.clear(channel)
        kept.copy()
        left = kept.decrypted()
        assert b"says" not in left


async def test_concurrent_deletions_delete_all(store: SqlStore, tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    begun = [await store.enqueue(message(number, f"secret {number}"), Kind.CHAT) for number in range(50)]
    kept.copy()
    await asyncio.gather(*[store.erase(exchange) for exchange in begun if exchange is not None])
    assert b"secret" not in kept.decrypted()


async def test_more_messages_than_a_batch_are_deleted(store: SqlStore) -> None:
    asked = [store.enqueue(message(number, "a secret"), Kind.CHAT) for number in range(1100)]
    await asyncio.gather(*asked)
    assert await store.forget(MEI) == 1100
    assert await store.latest(ROOM) is None


@pytest.mark.parametrize("way", ["clear", "forget who said it", "forget who asked", "expire"])
async def test_what_others_said_is_deleted_in_small_transactions(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    numbers: list[int] = []
    overwrite = KeyFile.delete

    def counted(file: KeyFile, keys: Collection[int], deletion: int = 0) -> None:
        numbers.append(len(keys))
        overwrite(file, keys, deletion)

    asked: Exchange | None = None
    for number in range(6):
        asked = await store.enqueue(message(number, "and?", author=BEN), Kind.CHAT)
        assert asked is not None
        said = [FurtherMessage(f"{number}.{each}", "C1", WROTE, "words", NOON, FurtherKind.BEFORE) for each in range(5)]
        assert await store.record_context(asked, said)
        await store.record_answer(asked, Answer("well"))
        await store.complete(asked)
    for name, value in (("_LEAST_BATCH", 3), ("_BATCH", 7), ("_MOST_FURTHER", 7)):
        monkeypatch.setattr(deletion, name, value)
    monkeypatch.setattr(KeyFile, "delete", counted)
    match way:
        case "clear":
            assert await store.clear(ROOM) == 6
        case "forget who said it":
            assert await store.forget(WROTE) == 0
            assert [each.message.further for each in await store.said_in(ROOM, 9)] == [()] * 6
        case "forget who asked":
            assert await store.forget(BEN) == 6
        case _:
            assert await store.expire(NOON + timedelta(days=1)) == 6
    assert sum(numbers) == (30 if way == "forget who said it" else 30 + 6 * 2)
    assert max(numbers) <= 7, "five messages, a question and an answer"


async def test_ids_are_not_reused_after_rows_were_deleted(store: SqlStore, tmp_path: Path) -> None:
    last = await talk(store)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute("DELETE FROM exchanges")
    exchange = await store.enqueue(message("new"), Kind.CHAT)
    assert exchange is not None
    assert exchange.id == last + 1
