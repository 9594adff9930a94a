"""The driver: calls to a connection's thread, and what SQLAlchemy's own adapter does otherwise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bot.storage import connections
from tests.storage import url_of


@pytest.fixture(params=["ours", "SQLAlchemy's"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = url_of(tmp_path / "bot.db")
    ours = request.param == "ours"
    engine = connections.writer(connections.locate(url)) if ours else create_async_engine(url)
    async with engine.begin() as tx:
        await tx.execute(text("CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT UNIQUE)"))
    yield engine
    await engine.dispose()


async def test_results_equal_those_of_sqlalchemys_adapter(engine: AsyncEngine) -> None:
    rows = [{"word": "one"}, {"word": "two"}, {"word": "三"}]
    async with engine.begin() as tx:
        assert (await tx.execute(text("INSERT INTO words (word) VALUES (:word)"), rows)).rowcount == 3
        changed = await tx.execute(text("UPDATE words SET word = word || '!' WHERE id < 3"))
        assert changed.rowcount == 2
        assert not changed.returns_rows
        added = await tx.execute(text("INSERT INTO words (word) VALUES ('four') RETURNING id, word"))
        assert added.keys() == ["id", "word"]
        assert added.all() == [(4, "four")]
        assert (await tx.exec_driver_sql("INSERT INTO words (word) VALUES ('five')")).lastrowid == 5
        none = await tx.execute(text("SELECT word FROM words WHERE id = 9"))
        assert none.keys() == ["word"]
        assert none.first() is None
        assert (await tx.execute(text("SELECT word FROM words ORDER BY id"))).scalars().all() == [
            *("one!", "two!", "三", "four", "five")
        ]


async def test_a_failed_transaction_is_rolled_back(engine: AsyncEngine) -> None:
    async def write_twice() -> None:
        async with engine.begin() as tx:
            await tx.execute(text("INSERT INTO words (word) VALUES ('twice')"))
            await tx.execute(text("INSERT INTO words (word) VALUES ('twice')"))

    with pytest.raises(IntegrityError):
        await write_twice()
    async with engine.connect() as reader:
        assert (await reader.execute(text("SELECT count(*) FROM words"))).scalar_one() == 0


async def test_a_transaction_can_go_on_after_a_savepoint_that_failed(engine: AsyncEngine) -> None:
    async with engine.begin() as tx:
        with suppress(OperationalError):
            async with tx.begin_nested():
                await tx.execute(text("INSERT INTO words (word) VALUES ('undone')"))
                await tx.execute(text("INSERT INTO nothing VALUES (1)"))
        await tx.execute(text("INSERT INTO words (word) VALUES ('kept')"))
    async with engine.connect() as reader:
        assert (await reader.execute(text("SELECT word FROM words"))).scalars().all() == ["kept"]


async def test_a_cancelled_statement_leaves_no_open_transaction(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough that the task is cancelled while the connection's thread executes it.
    slow = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
        "INSERT INTO words (word) SELECT 'word ' || i FROM n"
    )
    is_executed = asyncio.Event()
    execute: Any = aiosqlite.Connection._execute

    async def observed(connection: aiosqlite.Connection, function: Any, *arguments: Any, **named: Any) -> Any:
        if slow in arguments:
            is_executed.set()
        return await execute(connection, function, *arguments, **named)

    async def write() -> None:
        async with engine.begin() as tx:
            await tx.exec_driver_sql(slow)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", observed)
    task = asyncio.create_task(write())
    await is_executed.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    async with engine.begin() as tx:
        await tx.execute(text("INSERT INTO words (word) VALUES ('next')"))
    async with engine.connect() as reader:
        words = await reader.execute(text("SELECT word FROM words WHERE word NOT LIKE 'word %'"))
        assert words.scalars().all() == ["next"]


async def test_a_transaction_of_two_statements_takes_three_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connections.writer(connections.locate(url_of(tmp_path / "bot.db")))
    async with engine.begin() as tx:
        await tx.execute(text("CREATE TABLE words (word TEXT)"))
    calls: list[str] = []
    execute: Any = aiosqlite.Connection._execute

    async def counted(connection: aiosqlite.Connection, function: Any, *arguments: Any) -> Any:
        calls.append(function.__name__)
        return await execute(connection, partial(function, *arguments))

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    async with engine.begin() as tx:
        await tx.execute(text("INSERT INTO words VALUES ('one'), ('two')"))
        assert len((await tx.execute(text("SELECT word FROM words"))).all()) == 2
    assert calls == ["_run", "_run", "commit"]
    calls.clear()
    async with engine.begin():
        pass
    assert calls == []
    await engine.dispose()
