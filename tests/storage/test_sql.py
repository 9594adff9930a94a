"""The store on a SQLite file: settings, errors, cancellation."""

import asyncio
import gc
import os
import resource
import sqlite3
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from structlog.testing import capture_logs

from bot.domain import Answer, ChannelKey, Kind, Usage
from bot.errors import StoreDamaged, StoreError, StoreLost
from bot.storage import connections
from bot.storage.errors import describe, map_errors
from bot.storage.opened import rows_of
from bot.storage.schema import exchanges
from bot.storage.sql import SqlStore
from bot.storage.transactions import FairLock
from tests.harness.fakes.clock import JumpingClock
from tests.harness.platform import TIMEOUT
from tests.storage import MEI, NOON, ROOM, message, temporary_store, url_of


@contextmanager
def on_connect(statement: str) -> Iterator[None]:
    """Run a statement on every new connection."""

    def run(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    event.listen(Pool, "connect", run)
    try:
        yield
    finally:
        event.remove(Pool, "connect", run)


@asynccontextmanager
async def store_with_room(folder: Path, pages: int) -> AsyncIterator[SqlStore]:
    """Open a new store whose database can grow by this many pages of 4 KiB."""
    async with temporary_store(folder):
        pass
    with closing(sqlite3.connect(folder / "bot.db")) as database:
        [empty] = database.execute("PRAGMA page_count").fetchone()
    with on_connect(f"PRAGMA max_page_count={empty + pages}"):
        async with temporary_store(folder) as store:
            yield store


@contextmanager
def write_locked(path: Path) -> Iterator[None]:
    """Hold the database's write lock, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """Limit the size of this process's files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Settings.


async def test_the_connections_have_the_intended_settings(tmp_path: Path) -> None:
    async with temporary_store(tmp_path):
        location = connections.locate(url_of(tmp_path / "bot.db"))
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "secure_delete": 1,
        "temp_store": 2,
        "journal_size_limit": 67108864,
        "cache_size": -512,
    }
    for engine, query_only in [(connections.writer(location), 0), (connections.reader(location), 1)]:
        async with engine.connect() as connection:
            for pragma, value in {**wanted, "query_only": query_only}.items():
                assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value, pragma
        await engine.dispose()


async def test_no_query_scans_the_whole_table(tmp_path: Path) -> None:
    asked: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    async with temporary_store(tmp_path) as store:
        exchange = await store.enqueue(message(1), Kind.CHAT)
        assert exchange is not None
        event.listen(Engine, "before_cursor_execute", note)
        try:
            await store.history(exchange, 5)
            await store.find(ROOM, "1")
            await store.latest(ROOM, MEI)
            await store.claim_owed("slack")
            await store.last_message_ids("slack")
            await store.record_part(exchange, 0, "m")
            await store.record_answer(exchange, Answer("hi"))
            await store.clear(ROOM)
            await store.forget(MEI)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    with closing(sqlite3.connect(tmp_path / "bot.db")) as other:
        plans = [
            (statement, step[-1])
            for statement, parameters in asked
            if statement.startswith(("SELECT", "UPDATE"))
            for step in other.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]  # a driver's own tuple
        ]
    assert len(plans) >= 9
    assert [plan for plan in plans if plan[1].startswith(f"SCAN {exchanges.name}")] == []


# Errors: one sentence each, and the file is unchanged.


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("no url", "not a database URL"),
        ("sqlite+aiosqlite://", "must name a plain file"),
        ("sqlite+aiosqlite:///:memory:", "must name a plain file"),
        ("sqlite+aiosqlite:///file:x?mode=ro&uri=true", "must name a plain file"),
        ("sqlite:///bot.db", r"unsupported database in storage.url: sqlite; write sqlite\+aiosqlite"),
        ("mysql://bot:secret@db/bot", "unsupported database in storage.url: mysql"),
    ],
)
def test_a_url_that_names_no_usable_database_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_postgresql_is_named_without_its_password() -> None:
    for url in (
        "postgresql+psycopg://bot:secret@db.example/bot",
        "postgresql://bot:secret@db.example/bot",
        "postgres://bot@db.example/bot?password=secret",
    ):
        location = connections.locate(url)
        assert location.name == "postgresql://bot@db.example/bot"
        assert location.url.drivername == "postgresql+psycopg"
        assert location.path is None


@pytest.mark.parametrize("password", ["open@sesame:secret/x", "p@secret1"])
def test_an_unescaped_password_does_not_appear_in_the_error(password: str) -> None:
    with pytest.raises(StoreError, match="in a password, @ is written %40") as refused:
        connections.locate(f"postgresql://bot:{password}@db.example/bot")
    assert "secret" not in "".join(traceback.format_exception(refused.value))


async def test_an_unreachable_server_is_reported() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="is its server running"):
        async with SqlStore("postgresql+psycopg://bot:secret@127.0.0.1:1/bot"):  # nothing listens there
            pass


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "find_spec", lambda _name: None)
    with pytest.raises(StoreError, match=r"pip install 'psycopg\[binary\]"):
        connections.locate("postgresql+psycopg://db.example/bot")


async def test_a_missing_folder_is_created(tmp_path: Path) -> None:
    async with temporary_store(tmp_path / "data" / "deep"):
        assert (tmp_path / "data" / "deep" / "bot.db").is_file()


async def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreError, match=r"the database\'s folder .*data cannot be created \(.*\): create it"):
        async with temporary_store(tmp_path / "data"):
            pass


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bot.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened: it must be a file"):
        async with temporary_store(tmp_path):
            pass


@pytest.mark.parametrize("garbage", [b"This is a diary.\n" * 1000, b"x", b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_not_a_database_is_left_unchanged(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "bot.db").write_bytes(garbage)
    with pytest.raises(StoreError, match="is not a SQLite database"):
        async with temporary_store(tmp_path):
            pass
    assert (tmp_path / "bot.db").read_bytes() == garbage


async def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1, "x" * 50_000), Kind.CHAT)
    content = bytearray((tmp_path / "bot.db").read_bytes())
    content[4096:] = b"\x99" * (len(content) - 4096)
    (tmp_path / "bot.db").write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: restore a backup"):
        async with temporary_store(tmp_path) as store:
            pass


async def test_damage_under_a_running_bot_ends_it_once_no_message_can_be_stored(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)
        with closing(sqlite3.connect(tmp_path / "bot.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            content = bytearray((tmp_path / "bot.db").read_bytes())
            content[4096:] = b"\x99" * (len(content) - 4096)
            with (tmp_path / "bot.db").open("r+b") as file:
                file.write(content)
            other.execute("PRAGMA user_version=1")  # no connection trusts the pages that it has read any more
        store.check_files()
        with pytest.raises(StoreDamaged, match="is damaged: restore a backup"):
            await store.enqueue(message(2), Kind.CHAT)
        with pytest.raises(StoreDamaged, match="is damaged: restore a backup"):
            store.check_files()


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder whose mode applies to this process, even if tests run as root."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # the parents of pytest's folder are private
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


@contextmanager
def as_another_user() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o755])
async def test_a_read_only_database_is_left_unchanged(guarded: Path, mode: int) -> None:
    async with temporary_store(guarded) as store:
        await store.enqueue(message(1), Kind.CHAT)
    file = guarded / "bot.db"
    before = file.read_bytes()
    set_mode(file, 0o444)
    set_mode(guarded, mode)
    with as_another_user(), pytest.raises(StoreError, match=r"is not writable|cannot be opened"):
        async with temporary_store(guarded):
            pass
    assert file.read_bytes() == before


async def test_a_folder_without_permission_is_reported(guarded: Path) -> None:
    (guarded / "data").mkdir()
    set_mode(guarded / "data", 0)
    with (
        as_another_user(),
        pytest.raises(StoreError, match=r"cannot be opened: .* needs .* permission .*\(Permission denied\)"),
    ):
        async with temporary_store(guarded / "data"):
            pass
    set_mode(guarded / "data", 0o755)


async def test_a_locked_database_is_reported_and_recovers(tmp_path: Path) -> None:
    url = url_of(tmp_path / "bot.db")
    async with SqlStore(url, busy_timeout=0.01) as store:
        with write_locked(tmp_path / "bot.db"):
            with pytest.raises(StoreError, match="is locked by another program: close that"):
                await store.enqueue(message(1), Kind.CHAT)
            assert await store.find(ROOM, "1") is None  # reading goes on
            with pytest.raises(StoreError, match="is locked"):
                async with SqlStore(url, busy_timeout=0.01):
                    pass
        assert await store.enqueue(message(1), Kind.CHAT) is not None


async def test_a_full_disk_is_reported_and_the_store_recovers_by_itself(tmp_path: Path) -> None:
    async with store_with_room(tmp_path, pages=25) as store:
        first = await store.enqueue(message(1, "x" * 50_000), Kind.CHAT)
        assert first is not None
        with pytest.raises(StoreError, match="cannot grow, the disk is full: free some space; a running bot"):
            await store.enqueue(message(2, "y" * 200_000), Kind.CHAT)
        assert await store.find(ROOM, "2") is None
        assert await store.record_answer(first, Answer("short"))
        await store.clear(ROOM)
        assert await store.enqueue(message(2, "y" * 50_000), Kind.CHAT) is not None


async def test_a_full_disk_with_little_space_for_the_log_is_enough(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        failed = 0
        with no_file_grows_beyond(512 * 1024):
            for number in range(100):
                try:
                    await store.enqueue(message(f"{number}", f"question {number}"), Kind.CHAT)
                except StoreError:
                    failed += 1
                    await store.enqueue(message(f"{number}", f"question {number}"), Kind.CHAT)
        assert failed > 0, "the log had grown to the limit"


async def test_a_disk_too_full_for_the_shared_memory_file_is_reported(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(message(1), Kind.CHAT)
    # SQLite keeps its index of the log (-shm) in a file of 32 KiB at least.
    with no_file_grows_beyond(16 * 1024), pytest.raises(StoreError, match=r"disk is full: free some space"):
        async with temporary_store(tmp_path):
            pass
    async with temporary_store(tmp_path) as store:
        assert await store.find(ROOM, "1") is not None


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("DELETE FROM alembic_version", "table exchanges already exists"),
        ("DROP TABLE exchanges", "no such table: exchanges"),
    ],
)
async def test_a_database_with_missing_tables_is_reported(tmp_path: Path, damage: str, complaint: str) -> None:
    async with temporary_store(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute(damage)
    with pytest.raises(StoreError, match=rf"cannot be used \({complaint}\): restore a backup, or name another"):
        async with temporary_store(tmp_path) as store:
            await store.claim_owed("slack")


async def test_an_error_contains_no_text_of_people(tmp_path: Path) -> None:
    long = "sesame " * 10_000
    async with store_with_room(tmp_path, pages=10) as store:
        with pytest.raises(StoreError) as failed:
            await store.enqueue(message(1, long), Kind.CHAT)
    assert "sesame" not in "".join(traceback.format_exception(failed.value))


def test_an_exhausted_pool_is_reported() -> None:
    with (
        pytest.raises(StoreError, match=r"bot\.db is overloaded, no connection was free in time"),
        map_errors("bot.db"),
    ):
        raise PoolTimeout("QueuePool limit reached")


def test_unknown_errors_name_the_database() -> None:
    advice = "restore a backup, or name another database in storage.url"
    assert describe("bot.db", sqlite3.OperationalError("odd")) == f"bot.db cannot be used (odd): {advice}"
    assert describe("db.example", OSError("text of a user")) == f"db.example cannot be used (OSError): {advice}"
    for error in sqlite3.OperationalError("broken"), InvalidRequestError("broken"):
        with pytest.raises(StoreError, match=rf"^bot\.db cannot be used \(broken\): {advice}$"), map_errors("bot.db"):
            raise error


# Cancellation, and long transactions.


async def test_the_failure_of_a_cancelled_call_is_logged(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), busy_timeout=0.05) as store:
        with capture_logs() as logs, write_locked(tmp_path / "bot.db"):
            call = asyncio.create_task(store.enqueue(message(1), Kind.CHAT))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await store.__aexit__(None, None, None)
    [line] = logs
    assert (line["log_level"], line["event"], line["call"]) == ("error", "a cancelled call has failed", "enqueue")


async def test_a_cancelled_open_leaves_no_connection_open(tmp_path: Path) -> None:
    async def open_and_close() -> None:
        async with temporary_store(tmp_path):
            pass

    opening = asyncio.create_task(open_and_close())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert names_in(tmp_path) == ["bot.db", "bot.db.keys"]  # the last connection to close deletes the log


async def test_a_cancelled_close_is_finished_first(tmp_path: Path) -> None:
    store = await SqlStore(url_of(tmp_path / "bot.db"), JumpingClock()).__aenter__()
    begin = asyncio.create_task(store.enqueue(message(1), Kind.CHAT))
    await asyncio.sleep(0)
    closing_it = asyncio.create_task(store.__aexit__(None, None, None))
    await asyncio.sleep(0)
    closing_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_it
    assert begin.done()
    assert names_in(tmp_path) == ["bot.db", "bot.db.keys"]


async def test_a_transaction_that_stays_open_is_logged(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), slow_after=0) as store:
        with capture_logs() as logs:
            await store.enqueue(message(1), Kind.CHAT)
    assert {
        "event": "transaction still open",
        "log_level": "warning",
        "transaction": "enqueue",
        "seconds": 0,
    } in logs


# The writer's lock.


async def test_a_part_is_recorded_before_all_waiting_writes(tmp_path: Path) -> None:
    committed: list[str] = []
    async with temporary_store(tmp_path) as store:
        exchange = await store.enqueue(message(0), Kind.CHAT)
        assert exchange is not None

        async def write(name: str, writing: Awaitable[object]) -> None:
            await writing
            committed.append(name)

        await asyncio.gather(
            *[write(f"check {number}", store.check()) for number in range(1, 20)],
            write("placed", store.record_part(exchange, 0, "m0")),
        )
        assert committed.index("placed") <= 1  # one may have been in flight
        assert [name for name in committed if name != "placed"] == [f"check {number}" for number in range(1, 20)]


async def test_a_part_is_recorded_in_one_statement(tmp_path: Path) -> None:
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement.split()[0])

    async with temporary_store(tmp_path) as store:
        exchange = await store.enqueue(message(0), Kind.CHAT)
        assert exchange is not None
        event.listen(Engine, "before_cursor_execute", note)
        try:
            await store.record_part(exchange, 0, "m0")
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert said == ["INSERT"]


async def test_a_cancelled_waiter_does_not_block_the_lock() -> None:
    lock, held = FairLock(), list[str]()

    async def hold(name: str, *, urgent: bool = False) -> None:
        async with lock.acquire(urgent=urgent):
            held.append(name)
            await asyncio.sleep(0)

    waiting = [asyncio.create_task(hold(name, urgent=name == "c")) for name in "abcd"]
    await asyncio.sleep(0)
    assert held == ["a"]
    waiting[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held == ["a", "c"]
    await asyncio.gather(*waiting, return_exceptions=True)
    async with lock.acquire():
        waiting = [asyncio.create_task(hold(name)) for name in "ef"]
        await asyncio.sleep(0)
    waiting[0].cancel()  # the lock was handed over to it, and it has not run yet
    await asyncio.gather(*waiting, return_exceptions=True)
    assert held == ["a", "c", "d", "f"]
    async with asyncio.timeout(TIMEOUT), lock.acquire():
        pass


async def test_waiting_for_the_lock_times_out() -> None:
    lock = FairLock()
    async with lock.acquire():
        with pytest.raises(TimeoutError):
            async with lock.acquire(max_wait=0.01):
                pass
    async with lock.acquire():
        pass


async def test_nothing_is_stored_in_a_deleted_file(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        (tmp_path / "bot.db").unlink()
        with pytest.raises(StoreLost, match=r"bot\.db was deleted or replaced"):
            await store.enqueue(message(1), Kind.CHAT)
        with pytest.raises(StoreLost):  # as /readyz asks
            await store.check()


async def test_an_answered_message_leaves_no_garbage_to_the_collector(tmp_path: Path) -> None:
    """A full collection stops the event loop, so what it has to free must not grow with the messages."""

    async def answer(store: SqlStore, number: int) -> None:
        exchange = await store.enqueue(message(number), Kind.CHAT)
        assert exchange is not None
        await store.history(exchange, 20)
        await store.record_part(exchange, 0, f"reply {number}")
        await store.record_answer(exchange, Answer("hi", usage=Usage(3, 2)), NOON.date())
        await store.complete(exchange)

    rounds = 20
    async with temporary_store(tmp_path) as store:
        for number in range(rounds):  # fills SQLAlchemy's caches
            await answer(store, number)
        gc.collect()
        gc.disable()
        try:
            for number in range(rounds, 2 * rounds):
                await answer(store, number)
            assert gc.collect() < rounds
        finally:
            gc.enable()


async def test_many_rows_are_converted_in_many_steps_of_the_event_loop() -> None:
    turns, rows = 0, 300

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < :rows) SELECT x FROM n"
        result = connection.execute(text(numbers), {"rows": rows})
        counting = asyncio.create_task(count())
        assert [row.x for row in await rows_of(result)] == list(range(1, rows + 1))
        counting.cancel()
    engine.dispose()
    assert turns >= rows // 25


async def test_the_threads_of_a_year_are_read_in_many_steps_of_the_event_loop(tmp_path: Path) -> None:
    turns, threads = 0, 400
    async with temporary_store(tmp_path):
        pass
    columns = "platform, channel, thread, last_exchange, last_message, is_shortening_told, is_context_told"
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database, database:
        rows = (("slack", "C", str(number), number, f"m{number}", False, False) for number in range(threads))
        database.executemany(f"INSERT INTO channels ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with temporary_store(tmp_path) as store:
        counting = asyncio.create_task(count())
        newest = await store.last_message_ids("slack")
        counting.cancel()
    assert newest == {ChannelKey("slack", "C", str(number)): f"m{number}" for number in range(threads)}
    assert turns >= threads // 25
