"""Every statement of the store uses an index for what it needs: no cost grows with the database."""

import inspect
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ClauseElement, Engine, event
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from bot.domain import Answer, Attachment, FurtherKind, FurtherMessage, Kind, Picture, Scope, SettingChange, Usage, Vote
from bot.storage.base import Store
from bot.storage.sql import SqlStore
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, MEI, NOON, ROOM, THREAD, message, temporary_store

Statement = tuple[str, Any]

# A scan of the rows that a subquery has found, or of the values of the statement itself.
_OWN_ROWS = re.compile(r"SCAN (\(subquery.*\)|CONSTANT ROW|listed VIRTUAL TABLE INDEX 1:)$")


BESIDE = FurtherMessage("m7", "C1", BEN, "what was said", NOON, FurtherKind.BEFORE)


async def use_all(store: SqlStore, called: set[str]) -> None:
    """Call every method of the store."""

    async def call(method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        called.add(method.__name__)
        return await method(*args, **kwargs)

    quoting = replace(message(2, channel=THREAD), quoted="what was said", quoted_id="1")
    asked = await call(store.enqueue, message(1), Kind.CHAT)
    await call(store.enqueue, quoting, Kind.CHAT, claim=False)
    await call(store.has_history, ROOM)
    await call(store.history, asked, 5)
    await call(store.history, asked, 5, is_own=True)
    await call(store.record_shortening, ROOM)
    await call(store.move, asked, ROOM)
    await call(store.record_part, asked, 0, "m0")
    await call(store.record_part, asked, 1, "m1")
    picture = Attachment("a.png", is_picture=True, picture=Picture("image/png", b"", 1, 1))
    await call(store.record_files, asked, [Attachment("a.txt", text="what it says"), picture])
    await call(store.history, asked, 5, pictures=4)
    said = [replace(BESIDE, id="m7"), replace(BESIDE, id="m8", kind=FurtherKind.LINKED)]
    await call(store.record_context, asked, said)
    await call(store.record_context_told, ROOM)
    await call(store.is_context_told, ROOM)
    asked = await call(store.join, asked, replace(BESIDE, id="m9", kind=FurtherKind.CONTINUATION))
    await call(store.find_continued, ROOM, "m9")
    await call(store.edit_continuation, ROOM, "m9", "again", [])
    asked = await call(store.edit_continuation, ROOM, "m9", "and again", [])
    await call(store.asked_between, ROOM, MEI, NOON, NOON)
    await call(store.replace_quotes, ROOM, "m7", "what was said")
    await call(store.record_answer, asked, Answer("hi", usage=Usage(3, 1)), NOON.date(), 20)
    await call(store.complete, asked)
    await call(store.vote, asked, MEI, Vote.UP, NOON)
    await call(store.vote, asked, MEI, Vote.UP, NOON, "p1")
    await call(store.react, asked, MEI, Vote.UP, NOON, is_added=True)
    await call(store.react, asked, MEI, Vote.UP, NOON, is_added=False)
    await call(store.own_votes, MEI, [asked.id])
    await call(store.record_consent, MEI, NOON)
    await call(store.has_consented, MEI)
    await call(store.record_consent, MEI, None)
    await call(store.find, ROOM, "1")
    await call(store.find_by_reply, ROOM, "m1")
    await call(store.latest, ROOM, MEI)
    await call(store.latest, ROOM)
    await call(store.last_message_ids, "slack")
    await call(store.said_since, "slack", NOON)
    await call(store.said_in, THREAD, 5)
    await call(store.openings, ROOM, 3)
    await call(store.replace_quotes, ROOM, "1", "what was meant")
    again = await call(store.requeue, asked, "again")
    store.release(again)
    called.add("release")
    for exchange in await call(store.claim_owed, "slack"):
        await call(store.fail, exchange, "gone")
    await call(store.claim, asked)
    for text in ("be kind", "be brief"):
        await call(store.record_setting, SettingChange(Scope("channel", str(ROOM)), "persona", None, text, MEI, NOON))
    restored = SettingChange(Scope("thread", str(THREAD)), "persona", None, "be kind", MEI, NOON, BEN.key)
    await call(store.record_setting, restored, message(3))
    await call(store.setting_changes, str(ROOM), 5)
    await call(store.setting_changes, None, 5)
    await call(store.setting_changes, str(ROOM), 2, "persona")
    await call(store.usage, Scope("user", MEI.key), NOON.date())
    called.add("settings")  # asked once, at the start, for every setting there is
    await call(store.clear, ROOM)
    await call(store.clear, THREAD)
    await call(store.clear, ROOM, None, MEI)
    await call(store.clear, THREAD, asked, MEI)
    await call(store.forget, MEI)
    await call(store.erase, asked)
    await call(store.expire, NOON + timedelta(days=1))
    await call(store.delete_messages, ROOM, ["1"])
    await call(store.rename_channel, ROOM, "C2")
    await call(store.end_usage, NOON.date(), NOON.date())
    await call(store.check)


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """Yield the statements that are executed, with their parameters."""
    statements: list[Statement] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *more: Any) -> None:
        is_many = more[-1]
        statements.append((statement, parameters[0] if is_many else parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def called() -> Iterator[set[str]]:
    called: set[str] = set()
    yield called
    methods = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert called == methods, "every method is covered"


async def test_no_statement_is_compiled_at_each_call(tmp_path: Path, called: set[str]) -> None:
    """An element without a cache key would make SQLAlchemy write the SQL again each time."""
    without_key: list[str] = []

    def note(_connection: object, element: Any, *_: object) -> None:
        if isinstance(element, ClauseElement) and element._generate_cache_key() is None:
            without_key.append(str(element.compile(dialect=sqlite_dialect())))

    async with temporary_store(tmp_path) as store:
        event.listen(Engine, "before_execute", note)
        try:
            await use_all(store, called)
        finally:
            event.remove(Engine, "before_execute", note)
    assert without_key == []


async def test_no_statement_scans_a_file(tmp_path: Path, called: set[str]) -> None:
    async with temporary_store(tmp_path) as store:
        with recorded() as statements:
            await use_all(store, called)
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database:
        plans = {
            statement: [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for statement, parameters in statements
            if statement.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE")
        }
    assert len(plans) > 25
    assert [
        (statement, step)
        for statement, steps in plans.items()
        for step in steps
        if ("SCAN" in step and not _OWN_ROWS.match(step)) or "TEMP B-TREE" in step
    ] == []


async def test_a_reply_is_found_without_its_channel(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        with recorded() as statements:
            await store.find_by_reply(ROOM, "m1")
    ((statement, parameters),) = [each for each in statements if each[0].startswith("SELECT")]
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database:
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert steps[0] == "SEARCH parts USING COVERING INDEX ix_parts_message (message=?)"
    assert steps[1] == "SEARCH exchanges USING INTEGER PRIMARY KEY (rowid=?)"


@pytest.fixture
async def store(postgres: PostgresServer) -> AsyncIterator[tuple[SqlStore, str]]:
    with postgres.lent() as name:
        async with SqlStore(postgres.url(name)) as store:
            yield store, name


async def test_no_statement_scans_a_table_of_a_server(
    store: tuple[SqlStore, str], postgres: PostgresServer, called: set[str]
) -> None:
    opened, name = store
    with recorded() as statements:
        await use_all(opened, called)
    plans: dict[str, list[str]] = {}
    with postgres.connected(name) as other:
        other.execute("SET enable_seqscan = off")  # else a table of one row is scanned
        for statement, parameters in statements:
            if statement.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE"):
                assert isinstance(parameters, Mapping)
                plans[statement] = [str(row) for row in other.execute(f"EXPLAIN {statement}".encode(), parameters)]
    assert len(plans) > 25
    assert [(statement, step) for statement, steps in plans.items() for step in steps if "Seq Scan" in step] == []
