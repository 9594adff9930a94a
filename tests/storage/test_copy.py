"""Copy a database: every row is identical, or nothing is stored."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bot.domain import Answer, Exchange, FinishReason, FurtherKind, FurtherMessage, Kind, Scope, Usage, UsageSum
from bot.errors import StoreError, StoreInUse
from bot.storage import copy, migrate
from bot.storage.connections import locate, migrator
from bot.storage.instance_lock import InstanceLock
from bot.storage.master_key import MasterKeys
from bot.storage.schema import exchanges
from bot.storage.sql import SqlStore
from bot.storage.usage_export import UsageReport, aligned, csv_lines, export_usage, report_usage
from tests.harness.fakes.clock import JumpingClock
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, MEI, NOON, ROOM, THREAD, decrypted_rows, message, url_of

Place = Callable[[], str]


@pytest.fixture
def on_file(tmp_path: Path) -> Place:
    numbers = iter(range(100))
    return lambda: url_of(tmp_path / f"{next(numbers)}" / "bot.db")


@pytest.fixture
def on_server(postgres: PostgresServer) -> Place:
    return lambda: postgres.url(postgres.database())


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "BATCH", 3)


async def filled(url: str) -> str:
    """Return a database with exchanges of every status, more than one batch of them."""
    async with SqlStore(url, JumpingClock()) as store:
        stored = []
        for number in range(8):
            exchange = await store.enqueue(
                message(number, f"“{number}” \0 你好 🙂", THREAD if number % 2 else ROOM), Kind.CHAT
            )
            assert exchange is not None
            stored.append(exchange)
            await store.record_part(exchange, 0, f"p{number}")
            if number < 5:
                await store.record_answer(exchange, Answer("yes", "so", FinishReason.LENGTH, Usage(7, 3)))
            if number < 3:
                await store.complete(exchange)
        await store.fail(stored[7], "gone")
        await store.erase(stored[0])
    return url


def rows(url: str) -> list[dict[str, object]]:
    return decrypted_rows(url, exchanges)


async def next_id(url: str) -> int:
    async with SqlStore(url, JumpingClock()) as store:
        exchange: Exchange | None = await store.enqueue(message("new"), Kind.CHAT)
    assert exchange is not None
    return exchange.id


@pytest.mark.parametrize(
    ("origin", "goal"), [("on_file", "on_server"), ("on_server", "on_file"), ("on_file", "on_file")]
)
async def test_every_row_is_copied_and_new_rows_get_higher_ids(
    origin: str, goal: str, request: pytest.FixtureRequest
) -> None:
    source = await filled(request.getfixturevalue(origin)())
    target = request.getfixturevalue(goal)()
    before = rows(source)
    assert copy.copy_database(source, target) == 8
    assert rows(target) == rows(source) == before
    assert await next_id(target) == 9


@pytest.mark.parametrize(("origin", "goal"), [("on_file", "on_server"), ("on_server", "on_file")])
async def test_ids_of_deleted_rows_are_not_reused_in_the_copy(
    origin: str, goal: str, request: pytest.FixtureRequest
) -> None:
    source = await filled(request.getfixturevalue(origin)())
    with migrator(locate(source)).begin() as connection:
        connection.execute(exchanges.delete().where(exchanges.c.id > 2))
    target = request.getfixturevalue(goal)()
    assert copy.copy_database(source, target) == 2
    assert await next_id(target) == 9


@pytest.mark.parametrize(("origin", "goal"), [("on_file", "on_server"), ("on_server", "on_file")])
async def test_an_empty_database_is_copied_too(origin: str, goal: str, request: pytest.FixtureRequest) -> None:
    source, target = request.getfixturevalue(origin)(), request.getfixturevalue(goal)()
    migrate.upgrade(source)
    assert copy.copy_database(source, target) == 0
    assert await next_id(target) == 1


@pytest.mark.parametrize("goal", ["on_server", "on_file"])
async def test_a_target_that_is_not_empty_is_left_unchanged(
    goal: str, request: pytest.FixtureRequest, on_file: Place
) -> None:
    source, target = await filled(on_file()), request.getfixturevalue(goal)()
    await next_id(target)
    before = rows(target)
    with pytest.raises(StoreError, match="is not empty: copy into an empty database"):
        copy.copy_database(source, target)
    assert rows(target) == before


@pytest.mark.parametrize("goal", ["on_server", "on_file"])
async def test_a_copy_that_fails_half_way_is_rolled_back(
    goal: str, request: pytest.FixtureRequest, on_file: Place
) -> None:
    source, target = await filled(on_file()), request.getfixturevalue(goal)()
    migrate.upgrade(target)
    refusal = (
        "ALTER TABLE exchanges ADD CHECK (id <> 7)"
        if goal == "on_server"
        else "CREATE TRIGGER refusal BEFORE INSERT ON exchanges WHEN new.id = 7 BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with migrator(locate(target)).begin() as connection:
        connection.exec_driver_sql(refusal)
    with pytest.raises(StoreError, match="cannot be used"):
        copy.copy_database(source, target)
    assert rows(target) == []


async def test_a_copy_whose_rows_differ_is_rolled_back(on_file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = await filled(on_file()), on_file()
    migrate.upgrade(target)
    file = locate(target).path
    assert file is not None
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "CREATE TRIGGER meddler AFTER INSERT ON exchanges WHEN new.id = 5 "
            "BEGIN UPDATE exchanges SET text = 'other' WHERE id = 5; END"
        )
    with pytest.raises(StoreError, match=r"verification failed: rows in .* differ, nothing was stored"):
        copy.copy_database(source, target)
    assert rows(target) == []


async def test_a_copy_is_refused_while_a_bot_runs_on_either_database(on_file: Place) -> None:
    source, target = await filled(on_file()), on_file()
    for busy in (source, target):
        with InstanceLock(busy), pytest.raises(StoreInUse, match="stop that one"):
            copy.copy_database(source, target, timeout=0)


async def test_a_database_is_not_copied_to_itself(on_file: Place) -> None:
    source = await filled(on_file())
    with pytest.raises(StoreError, match="source and target are both"):
        copy.copy_database(source, source)


def test_a_missing_source_is_reported_and_no_target_is_created(on_file: Place) -> None:
    target = on_file()
    with pytest.raises(StoreError, match=r"no database .*bot\.db: nothing is stored yet"):
        copy.copy_database(on_file(), target)
    path = locate(target).path
    assert path is not None
    assert not path.exists()


@pytest.mark.parametrize(("origin", "goal"), [("on_file", "on_server"), ("on_server", "on_file")])
async def test_what_a_person_has_used_is_found_in_the_copy(
    origin: str, goal: str, request: pytest.FixtureRequest
) -> None:
    source, target = request.getfixturevalue(origin)(), request.getfixturevalue(goal)()
    mei, ben = Scope("user", MEI.key), Scope("user", BEN.key)
    async with SqlStore(source, JumpingClock()) as store:
        for number, author in enumerate((MEI, BEN)):
            exchange = await store.enqueue(message(number, author=author), Kind.CHAT)
            assert exchange is not None
            await store.record_answer(exchange, Answer("yes", usage=Usage(7, 3)), NOON.date(), 1500)
        await store.forget(BEN)
    lines = list(export_usage(source))
    assert lines[0] == ("day", "level", "id", "answers", "prompt_tokens", "completion_tokens", "seconds")
    assert "2026-01-02,channel,slack:C1,2,14,6,3.0" in csv_lines(lines)
    assert "2026-01-02  channel   slack:C1        2             14                  6      3.0" in aligned(lines)
    assert sorted(line for line in csv_lines(lines) if ",user," in line) == [
        "2026-01-02,user,,1,7,3,1.5",
        "2026-01-02,user,slack:U1,1,7,3,1.5",
    ]
    both = UsageSum(2, 14, 6, 3000)
    report = UsageReport(
        {NOON.date(): both}, [(Scope("channel", "slack:C1"), both), (Scope("platform", "slack"), both)]
    )
    assert report_usage(source, NOON.date()) == report
    assert report_usage(source, NOON.date() + timedelta(days=1)) == UsageReport({}, [])
    copy.copy_database(source, target)
    assert sorted(export_usage(target)) == sorted(lines)
    async with SqlStore(target, JumpingClock()) as store:
        assert await store.usage(mei, NOON.date()) == {NOON.date(): UsageSum(1, 7, 3, 1500)}
        assert await store.usage(ben, NOON.date()) == {NOON.date(): UsageSum(1, 7, 3, 1500)}, "as in the source"


@pytest.mark.parametrize(
    ("origin", "goal"), [("on_file", "on_server"), ("on_server", "on_file"), ("on_file", "on_file")]
)
async def test_messages_before_forget_me_stay_unread_in_the_copy(
    origin: str, goal: str, request: pytest.FixtureRequest
) -> None:
    source, target = request.getfixturevalue(origin)(), request.getfixturevalue(goal)()
    master = MasterKeys("m" * 32)
    async with SqlStore(source, JumpingClock(), master=master) as store:
        await store.enqueue(message(1, "mine"), Kind.CHAT)
        asked = replace(message(2, "/forget me"), sent_at=NOON + timedelta(hours=1))
        forget = await store.enqueue(asked, Kind.COMMAND)
        assert forget is not None
        await store.forget(MEI, forget)
        await store.erase(forget)
    async with SqlStore(target, JumpingClock(), master=master):
        pass  # a target may have keys, as long as it has no rows
    copy.copy_database(source, target, master=master)
    for url in (source, target):
        async with SqlStore(url, JumpingClock(), master=master) as store:
            question = await store.enqueue(replace(message(9, author=BEN), sent_at=NOON + timedelta(days=1)), Kind.CHAT)
            assert question is not None
            said = FurtherMessage("3", ROOM.channel, MEI, "before", NOON, FurtherKind.BEFORE)
            await store.record_context(question, [said, replace(said, id="4", sent_at=NOON + timedelta(hours=2))])
            assert (found := await store.find(ROOM, "9")) is not None
            assert [each.id for each in found.message.further] == ["4"]
