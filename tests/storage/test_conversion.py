"""A database from before the encryption is encrypted while the bot serves, however often it is killed."""

import asyncio
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from bot.domain import Answer, Kind
from bot.errors import NotErased
from bot.storage import connections, conversion, migrate
from bot.storage.conversion import Conversion
from bot.storage.sql import SqlStore
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, MEI, NOON, ROOM, bytes_in, message, temporary_store, url_of

EXCHANGES = 130
_COLUMNS = (
    "platform, channel, message, kind, status, seed, author_platform, author, author_name, author_roles, author_is_bot, "
    "text, quoted, sent_at, is_direct, answer, notice, reason, prompt_tokens, completion_tokens, fence, quotes_bot"
)


def old_rows() -> list[dict[str, object]]:
    return [
        {
            "platform": "slack",
            "channel": "C1",
            "message": str(number),
            "kind": "chat",
            "status": "delivered",
            "seed": number,
            "author_platform": "slack",
            "author": "U1" if number % 2 else "U2",
            "author_name": "Mei" if number % 2 else "Ben",
            "author_roles": '["staff"]',
            "author_is_bot": False,
            "text": f"old question {number} 问",
            "quoted": "an old quotation" if number == 3 else None,
            "sent_at": NOON,
            "is_direct": False,
            "answer": f"old answer {number}",
            "notice": "",
            "reason": "stop",
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "fence": 1,
            "quotes_bot": False,
        }
        for number in range(1, EXCHANGES + 1)
    ]


def write_old_database(url: str) -> None:
    """Write rows as the version before wrote them, into the columns as they were migrated."""
    migrate.upgrade(url)
    location = connections.locate(url)
    values = ", ".join(
        f"convert_to(:{name.strip()}, 'UTF8')"
        if location.path is None
        and name.strip() in ("author_name", "author_roles", "text", "quoted", "answer", "notice")
        else f":{name.strip()}"
        for name in _COLUMNS.split(",")
    )
    rows = old_rows()
    if location.path is not None:
        rows = [{**row, "sent_at": NOON.strftime("%Y-%m-%d %H:%M:%S.%f")} for row in rows]
    with connections.migrator(location).begin() as connection:
        connection.execute(text(f"INSERT INTO exchanges ({_COLUMNS}) VALUES ({values})"), rows)


async def converted(store: SqlStore) -> None:
    await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "conversion"])


async def check(store: SqlStore) -> None:
    for number in (1, 2, 3, EXCHANGES):
        found = await store.find(ROOM, str(number))
        assert found is not None
        assert found.message.text == f"old question {number} 问"
        assert found.message.author == replace(MEI if number % 2 else BEN, roles=frozenset({"staff"}))
        assert found.message.quoted == ("an old quotation" if number == 3 else None)
        assert found.answer is not None
        assert found.answer.text == f"old answer {number}"


async def test_an_old_database_is_readable_before_and_after_and_no_plain_text_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path / "bot.db")
    write_old_database(url)
    assert b"old question 7 " in bytes_in(tmp_path)
    hold = asyncio.Event()
    run = Conversion.run

    async def held(conversion: Conversion) -> None:
        await hold.wait()
        await run(conversion)

    monkeypatch.setattr(Conversion, "run", held)
    async with temporary_store(tmp_path) as store:
        await check(store)
        latest = await store.latest(ROOM, MEI)
        assert latest is not None
        assert latest.message.id == str(EXCHANGES - 1)
        hold.set()
        await converted(store)
        await check(store)
        assert b"old question" not in bytes_in(tmp_path)
        assert b"staff" not in bytes_in(tmp_path)
        assert await store.forget(MEI) == EXCHANGES // 2
    async with temporary_store(tmp_path) as store:
        found = await store.find(ROOM, "2")
        assert found is not None
        assert found.message.text == "old question 2 问"


async def test_a_conversion_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(tmp_path / "bot.db")
    write_old_database(url)
    monkeypatch.setattr(conversion, "_BATCH", 20)
    folders = [tmp_path]
    for number in range(3):
        # What is in the files after some batches is what a kill would leave.
        killed = tmp_path / f"{number}"
        killed.mkdir()
        async with temporary_store(folders[-1]) as store:
            while (store._vault.encrypted_to or 0) < 20 + 40 * number:  # noqa: ASYNC110  # another task makes progress
                await asyncio.sleep(0)
            for path in folders[-1].glob("bot.db*"):
                if not path.name.endswith((".lock", "-shm")):
                    (killed / path.name).write_bytes(path.read_bytes())
        folders.append(killed)
    async with temporary_store(folders[-1]) as store:
        await check(store)
        await converted(store)
        await check(store)
        assert b"old question" not in bytes_in(folders[-1])
        with closing(sqlite3.connect(folders[-1] / "bot.db")) as other:
            assert other.execute("SELECT encrypted_to FROM encryption").fetchone() == (None,)


# Encrypts one row at a time, and waits at the last ones: however late a kill comes, it comes in between.
_CONVERT = """
import asyncio, sys
from bot.storage import conversion
from bot.storage.sql import SqlStore

encrypt_some = conversion.Conversion._encrypt_some

async def encrypt_all_but_five(work):
    if work.left <= 5:
        await asyncio.Event().wait()
    return await encrypt_some(work)

async def main():
    async with SqlStore(sys.argv[1]):
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "conversion"])

conversion._BATCH = 1
conversion.Conversion._encrypt_some = encrypt_all_but_five
asyncio.run(main())
"""


def encrypted_to(file: Path) -> int | None:
    with closing(sqlite3.connect(file, timeout=30)) as other:
        row = other.execute("SELECT encrypted_to FROM encryption").fetchone()
    return 0 if row is None else row[0]


def kill_at(goal: int, file: Path) -> None:
    """Encrypt in a process that is killed once this many rows are encrypted."""
    with subprocess.Popen([sys.executable, "-c", _CONVERT, url_of(file)]) as process:
        while process.poll() is None and (encrypted_to(file) or 0) < goal:
            time.sleep(0.002)
        process.kill()


async def test_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "bot.db"
    write_old_database(url_of(file))
    for goal in (10, 50, 90):
        await asyncio.to_thread(kill_at, goal, file)
        reached = encrypted_to(file)
        assert reached is not None
        assert goal <= reached < EXCHANGES
    async with temporary_store(tmp_path) as store:
        await check(store)
        await converted(store)
        await check(store)
    assert b"old question" not in bytes_in(tmp_path)
    assert b"old answer" not in bytes_in(tmp_path)


async def test_settings_that_were_set_in_the_chat_are_encrypted_too(tmp_path: Path) -> None:
    url, file = url_of(tmp_path / "bot.db"), tmp_path / "bot.db"
    migrate.upgrade(url)
    with closing(sqlite3.connect(file)) as database, database:
        database.executemany(
            "INSERT INTO settings (id, level, place, setting, text, author_platform, author, author_name, set_at) "
            "VALUES (?, 'channel', 'slack:C1', 'persona', ?, 'slack', ?, ?, '2026-01-02 12:00:00.000000')",
            [(1, "be a pirate", "U1", "Mei"), (2, "be kind", "U2", "Ben"), (3, None, "", "")],
        )
    async with temporary_store(tmp_path) as store:
        await converted(store)
        changes = await store.setting_changes(str(ROOM), 5)
        assert [(each.text, each.author.id, each.author.name) for each in changes] == [
            (None, "", ""),
            ("be kind", "U2", "Ben"),
            ("be a pirate", "U1", "Mei"),
        ]
        assert b"pirate" not in bytes_in(tmp_path)
        await store.forget(MEI)
        assert [each.text for each in await store.setting_changes(str(ROOM), 5)] == [None, "be kind", None]


async def test_a_deletion_says_so_while_old_text_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old_database(url_of(tmp_path / "bot.db"))
    monkeypatch.setattr(conversion, "_ROOM", 1e15)  # the disk has no room for it
    async with temporary_store(tmp_path) as store:
        with pytest.raises(NotErased, match="still hold the text"):
            await store.clear(ROOM)


async def test_writes_during_the_conversion_are_encrypted(tmp_path: Path) -> None:
    write_old_database(url_of(tmp_path / "bot.db"))
    async with temporary_store(tmp_path) as store:
        old = await store.find(ROOM, "5")
        assert old is not None
        edited = await store.requeue(old, "an edited question")
        assert edited is not None
        assert await store.record_answer(edited, Answer("a new answer"))
        await store.enqueue(message("new", "a new question"), Kind.CHAT)
        await converted(store)
        found = await store.find(ROOM, "5")
        assert found is not None
        assert (found.message.text, found.answer) == ("an edited question", Answer("a new answer"))
        assert b"new question" not in bytes_in(tmp_path)
        assert b"edited" not in bytes_in(tmp_path)


async def test_a_server_is_converted_too(postgres: PostgresServer) -> None:
    with postgres.lent() as name:
        write_old_database(postgres.url(name))
        async with postgres.store(name) as store:
            assert isinstance(store, SqlStore)
            await converted(store)
            await check(store)
            assert await store.forget(BEN) == EXCHANGES // 2
        assert postgres.run("SELECT count(*) FROM exchanges WHERE text <> '' AND question_key IS NULL", name) == [(0,)]
