"""What is special about the Store on a PostgreSQL server: races, faults, restarts, migrations."""

import asyncio
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from bot.domain import Answer, Exchange, Kind, Status
from bot.errors import StoreError
from bot.storage import connections, errors, migrate
from bot.storage.schema import metadata
from bot.storage.sql import SqlStore
from tests.cli.test_main import bot, environment
from tests.harness.postgres import PASSWORD, PostgresServer
from tests.storage import BEN, MEI, ROOM, message


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.database()


@pytest.fixture
async def store(postgres: PostgresServer, database: str) -> AsyncIterator[SqlStore]:
    async with postgres.store(database) as store:
        yield store


async def begun(store: SqlStore, number: int | str = 1) -> Exchange:
    exchange = await store.enqueue(message(number), Kind.CHAT)
    assert exchange is not None
    return exchange


async def waiting(postgres: PostgresServer, database: str, count: int = 1) -> None:
    """Return once so many sessions wait for a lock."""
    question = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30):
        while await asyncio.to_thread(postgres.run, question) != [(count,)]:
            pass


# Settings.


async def test_only_one_connection_writes_and_the_others_see_one_moment(
    postgres: PostgresServer, database: str
) -> None:
    location = connections.locate(postgres.url(database))
    wanted = {
        "lock_timeout": "5s",
        "statement_timeout": "1min",
        "idle_in_transaction_session_timeout": "1min",
        "TimeZone": "UTC",
        "client_encoding": "UTF8",
        "application_name": "chatglm-bot",
    }
    for engine, mode in (
        (connections.writer(location), {"transaction_isolation": "read committed", "transaction_read_only": "off"}),
        (connections.reader(location), {"transaction_isolation": "repeatable read", "transaction_read_only": "on"}),
    ):
        async with engine.connect() as connection:
            for name, value in (wanted | mode).items():
                assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == value, name
        await engine.dispose()


async def test_what_the_url_says_itself_comes_first(postgres: PostgresServer, database: str) -> None:
    url = f"{postgres.url(database)}?application_name=bot-2&options=-c%20lock_timeout%3D7s&connect_timeout=3"
    engine = connections.writer(connections.locate(url))
    async with engine.connect() as connection:
        for name, value in {"application_name": "bot-2", "lock_timeout": "7s", "TimeZone": "UTC"}.items():
            assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == value, name
    await engine.dispose()


async def test_a_server_on_a_socket_is_reached_through_its_folder(postgres: PostgresServer, database: str) -> None:
    url = f"postgres://bot@/{database}?host={postgres.folder}&port={postgres.port}&password=open+sesame/@:%25?%23"
    async with SqlStore(url) as store:
        assert await store.owed("slack") == []


async def test_no_question_reads_the_whole_table(store: SqlStore, postgres: PostgresServer, database: str) -> None:
    asked: list[tuple[str, Mapping[str, object]]] = []

    def note(
        _connection: object, _cursor: object, statement: str, parameters: Mapping[str, object], *_: object
    ) -> None:
        asked.append((statement, parameters))

    exchange = await begun(store)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        await store.history(exchange, 5)
        await store.find(ROOM, "1")
        await store.latest(ROOM, MEI)
        await store.owed("slack")
        await store.last_message_ids("slack")
        await store.record_part(exchange.id, 0, "m")
        await store.record_answer(exchange.id, Answer("hi"))
        await store.clear(ROOM)
        await store.forget(MEI)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    with postgres.connected(database) as other:
        other.execute("SET enable_seqscan = off")  # else a table of one row is read whole, rightly
        plans = [
            str(step)
            for statement, parameters in asked
            for step in other.execute(f"EXPLAIN {statement}".encode(), parameters)
        ]
    assert len(asked) >= 9
    assert [step for step in plans if "Seq Scan" in step] == []


# Several processes on one database.


COPY: LiteralString = """
    INSERT INTO exchanges (platform, channel, message, kind, status, seed, author_platform, author, author_name,
        author_roles, author_is_bot, text, sent_at, is_direct, parts)
    SELECT platform, channel, 'copied', kind, status, seed, author_platform, author, author_name,
        author_roles, author_is_bot, text, sent_at, is_direct, parts FROM exchanges WHERE message = '1'
"""


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_message_that_another_process_is_keeping_begins_here_only_if_that_fails(
    store: SqlStore, postgres: PostgresServer, database: str, is_kept: bool
) -> None:
    await begun(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute(COPY)
        here = asyncio.create_task(store.enqueue(message("copied"), Kind.CHAT))
        await waiting(postgres, database)
        other.execute("COMMIT" if is_kept else "ROLLBACK")
    assert (await here is None) is is_kept
    assert await store.find(ROOM, "copied") is not None


async def test_what_another_process_is_clearing_is_neither_answered_nor_reopened(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await begun(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("UPDATE exchanges SET status = 'cleared', text = ''")
        answered = asyncio.create_task(store.record_answer(exchange.id, Answer("too late")))
        await waiting(postgres, database)
        other.execute("COMMIT")
    assert not await answered
    assert await store.requeue(exchange.id, "too late") is None
    assert "too late" not in str(postgres.run("SELECT exchanges::text FROM exchanges", database))


async def test_parts_that_two_processes_place_are_both_kept(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await begun(store)
    await store.record_part(exchange.id, 0, "gone")
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("""UPDATE exchanges SET parts = '["m0"]'""")
        second = asyncio.create_task(store.record_part(exchange.id, 1, "m1"))
        await waiting(postgres, database)
        other.execute("COMMIT")
    await second
    assert postgres.run("SELECT parts FROM exchanges", database) == [(["m0", "m1"],)]


async def test_a_row_that_another_program_holds_is_not_waited_for_long(postgres: PostgresServer, database: str) -> None:
    async with SqlStore(postgres.url(database), busy_timeout=0.05) as store:
        exchange = await begun(store)
        with postgres.connected(database) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM exchanges FOR UPDATE")
            assert await store.find(ROOM, "1") == exchange  # who only reads need not wait
            with pytest.raises(StoreError, match="is locked by another program: end that"):
                await store.record_answer(exchange.id, Answer("hi"))
        assert await store.record_answer(exchange.id, Answer("hi"))


async def test_a_turn_that_does_not_come_is_reported(postgres: PostgresServer, database: str) -> None:
    async with SqlStore(postgres.url(database), queue_timeout=0.05) as store:
        exchange = await begun(store)
        with postgres.connected(database) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM exchanges FOR UPDATE")
            first = asyncio.create_task(store.record_answer(exchange.id, Answer("hi")))
            await waiting(postgres, database)
            with pytest.raises(StoreError, match="did not come free in time"):
                await store.enqueue(message(2), Kind.CHAT)
        assert await first


async def test_calls_that_are_cancelled_leave_no_transaction_open(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    calls: list[asyncio.Task[object]] = [
        *(asyncio.create_task(store.enqueue(message(number), Kind.CHAT)) for number in range(50)),
        asyncio.create_task(store.clear(ROOM)),
        asyncio.create_task(store.erase(1)),
    ]
    await begun(store, "so that some have begun")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await begun(store, "so that all have ended")
    states = postgres.run(f"SELECT DISTINCT state FROM pg_stat_activity WHERE datname = '{database}'")
    assert states == [("idle",)]


# A server that goes and comes back.


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_was_away_is_used_again_without_a_restart(
    store: SqlStore, postgres: PostgresServer, how: signal.Signals
) -> None:
    exchange = await begun(store)
    postgres.stop(how)
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match=r"cannot be reached: is its server running.*goes on by itself"):
                await store.record_answer(exchange.id, Answer("hi"))
            with pytest.raises(StoreError, match="cannot be reached"):
                await store.owed("slack")
    finally:
        postgres.start()
    assert await store.owed("slack") == [exchange]
    assert await store.record_answer(exchange.id, Answer("hi"))


async def test_a_connection_that_breaks_under_a_call_fails_that_call_only(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await begun(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM exchanges FOR UPDATE")
        call = asyncio.create_task(store.record_answer(exchange.id, Answer("hi")))
        await waiting(postgres, database)
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND wait_event_type = 'Lock'"
        )
        with pytest.raises(StoreError, match="has broken off the connection: a bot that runs goes on by itself"):
            await call
    assert await store.record_answer(exchange.id, Answer("hi"))


async def test_a_store_closes_in_good_order_though_the_server_is_away(postgres: PostgresServer, database: str) -> None:
    try:
        async with postgres.store(database) as store:
            await begun(store)
            postgres.stop()
    finally:
        postgres.start()


# Faults at the start: one sentence each, and never the password.


@pytest.mark.parametrize(
    ("user", "password", "name", "complaint"),
    [
        ("bot", "wrong-secret", None, "refuses this user with this password: set both right in BOT_STORAGE__URL"),
        ("nobody", "wrong-secret", None, "refuses this user with this password"),
        ("bot", None, None, "wants a password: write postgresql://user:password@host/database"),
        ("bot", PASSWORD, "absent", 'does not exist: createdb .*database "absent" does not exist'),
        ("guest", "wrong-secret", "closed", "does not let this user in: GRANT CONNECT"),
        ("guest", "wrong-secret", None, "does not give the bot's user the rights it needs"),
    ],
)
async def test_a_database_that_lets_us_not_in_is_one_sentence(
    postgres: PostgresServer, user: str, password: str | None, name: str | None, complaint: str
) -> None:
    if user == "guest":
        postgres.run("DROP ROLE IF EXISTS guest")
        postgres.run("CREATE ROLE guest LOGIN PASSWORD 'wrong-secret'")
        postgres.run("DROP DATABASE IF EXISTS closed")
        postgres.run("CREATE DATABASE closed")
        postgres.run("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    database = name or postgres.database()
    with pytest.raises(StoreError, match=rf"^postgresql://{user}@127\.0\.0\.1:\d+/{database} {complaint}") as refused:
        async with SqlStore(postgres.url(database, user=user, password=password)):
            pass
    told = "".join(traceback.format_exception(refused.value))
    assert "\n" not in str(refused.value)
    assert all(secret not in told for secret in ("wrong-secret", PASSWORD, "%77"))


@pytest.mark.parametrize(
    ("refusal", "complaint"),
    [
        ('FATAL:  role "bot" does not exist', 'has no such user: CREATE ROLE .*role "bot" does not exist'),
        ('FATAL:  role "bot" is not permitted to log in', "does not let this user in: GRANT CONNECT"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', "does not let this user in from here: pg_hba.conf"),
        ('FATAL:  Peer authentication failed for user "bot"', ".*how one proves who one is"),
        ("FATAL:  sorry, too many clients already", "has no connection left"),
        ("FATAL:  remaining connection slots are reserved", "has no connection left"),
        ("FATAL:  the database system is starting up", "is not ready"),
        ("server does not support SSL, but SSL was required", "and the bot do not agree on encryption"),
        ('FATAL:  数据库 "bot" 不存在', 'cannot be reached: .*数据库 "bot" 不存在'),
    ],
)
def test_a_refused_connection_is_told_with_what_to_do(refusal: str, complaint: str) -> None:
    first = 'connection failed: connection to server at "db", port 5432 failed: '
    error = psycopg.OperationalError(f"{first}{refusal}\n{first}{refusal}\n")
    with pytest.raises(StoreError, match=f"^db.example {complaint}"), errors.map_errors("db.example"):
        raise DBAPIError.instance("", {}, error, psycopg.Error)


@pytest.mark.parametrize("state", errors.POSTGRES_MESSAGES)
def test_each_sentence_belongs_to_a_fault_that_the_driver_knows(state: str) -> None:
    error = psycopg.errors.lookup(state)("somebody wrote this")
    assert errors.describe("db.example", error) == f"db.example {errors.POSTGRES_MESSAGES[state]}"


def test_another_fault_is_told_by_its_name_and_number_only() -> None:
    told = errors.describe("db.example", psycopg.errors.NotNullViolation("Failing row contains (sesame)"))
    assert told.startswith("db.example cannot be used (NotNullViolation, SQLSTATE 23502): put a backup")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("sslmode=odd", "cannot be opened with these options: .* invalid sslmode value"),
        ("password=x&passwd=hush", r'cannot be opened with these options: .*\(invalid connection option "passwd"\)'),
        ("options=-c%20nonsense%3D1", "cannot be opened with these options"),
        ("sslmode=require", "do not agree on encryption"),
    ],
)
async def test_options_that_do_not_work_are_one_sentence(
    postgres: PostgresServer, database: str, options: str, complaint: str
) -> None:
    with pytest.raises(StoreError, match=complaint) as refused:
        async with SqlStore(f"{postgres.url(database)}?{options}"):
            pass
    assert "hush" not in "".join(traceback.format_exception(refused.value))


async def test_a_database_that_takes_no_changes_is_noticed_at_the_start(
    postgres: PostgresServer, database: str
) -> None:
    postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match=r"takes no changes, it is read-only \(a standby\?\)"):
        async with postgres.store(database):
            pass


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_character_is_refused(postgres: PostgresServer, encoding: str) -> None:
    postgres.run(f"CREATE DATABASE {encoding.lower()} ENCODING {encoding} TEMPLATE template0")
    with pytest.raises(StoreError, match=f"keeps text as {encoding}.*createdb --encoding=UTF8"):
        migrate.upgrade(postgres.url(encoding.lower()))


# Deleting.


async def test_what_was_deleted_is_in_no_row(store: SqlStore, postgres: PostgresServer, database: str) -> None:
    for number, author in enumerate([MEI, BEN, MEI]):
        exchange = await store.enqueue(message(number, "a secret question", author=author), Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange.id, Answer("a secret answer", "a secret notice"))
    rows = "SELECT exchanges::text FROM exchanges"
    assert "secret" in str(postgres.run(rows, database))
    await store.forget(MEI)
    assert MEI.id not in str(postgres.run(rows, database))
    await store.clear(ROOM)
    assert "secret" not in str(postgres.run(rows, database))
    assert {status for (status,) in postgres.run("SELECT status FROM exchanges", database)} == {Status.CLEARED}


# Migrations.


@pytest.fixture
def empty(postgres: PostgresServer) -> str:
    """The URL of a database without tables."""
    name = postgres.database()
    postgres.run("DROP TABLE exchanges, alembic_version", name)
    return postgres.url(name)


def test_a_new_database_is_at_the_newest_revision(empty: str) -> None:
    assert migrate.current_revision(empty) is None
    migrate.upgrade(empty)
    assert migrate.current_revision(empty) == migrate.head_revision()
    migrate.upgrade(empty)


def test_the_migrations_make_the_schema_and_go_up_and_down(empty: str) -> None:
    config = migrate._config()
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    engine = connections.migrator(connections.locate(empty))

    def run(step: str, revision: str) -> None:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            (command.upgrade if step == "up" else command.downgrade)(config, revision)

    for revision in revisions:
        run("up", revision)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    for revision in ["base", *revisions][-2::-1]:
        run("down", revision)
    with engine.connect() as connection:
        left = connection.execute(text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"))
        assert set(left.scalars()) == {"alembic_version", "alembic_version_pkc"}


def test_bots_that_start_at_once_do_not_migrate_at_once(empty: str, postgres: PostgresServer, tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "bot", "migrate"],
            cwd=tmp_path,
            env=environment(BOT_STORAGE__URL=empty),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    bots = [start() for _ in range(2)]
    assert [(bot.communicate(timeout=60)[0], bot.returncode) for bot in bots] == [
        ("The database is up to date.\n", 0)
    ] * 2
    assert migrate.current_revision(empty) == migrate.head_revision()


async def test_a_migration_waits_for_another_one_however_long(empty: str, postgres: PostgresServer) -> None:
    database = empty.rpartition("/")[2]
    with postgres.connected(database) as other:
        other.execute("SELECT pg_advisory_lock(x'626F74'::int)")
        upgrade = threading.Thread(target=migrate.upgrade, args=[empty, 0.01])
        upgrade.start()
        await waiting(postgres, database)
        other.execute("SELECT pg_advisory_unlock_all()")
    upgrade.join(30)
    assert migrate.current_revision(empty) == migrate.head_revision()


def test_a_database_from_the_future_is_left_alone(postgres: PostgresServer, database: str) -> None:
    postgres.run("UPDATE alembic_version SET version_num = '9999'", database)
    with pytest.raises(StoreError, match=r"newer version of this program \(revision 9999"):
        migrate.upgrade(postgres.url(database))


def test_a_table_of_another_program_in_our_place_wants_another_database(empty: str, postgres: PostgresServer) -> None:
    postgres.run("CREATE TABLE exchanges (rate numeric)", empty.rpartition("/")[2])
    with pytest.raises(StoreError, match=r"DuplicateTable, SQLSTATE 42P07.*name another database in storage.url"):
        migrate.upgrade(empty)
    assert migrate.current_revision(empty) is None


# The whole program.


def test_the_bot_runs_on_it_from_the_first_start_to_a_clear(
    empty: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    url = {"BOT_STORAGE__URL": empty.replace("postgresql+psycopg", "postgresql")}
    asked = bot(tmp_path, "run", stdin="remember this\n", BOT_LOGS__LEVEL="debug", **url)
    assert asked.stdout == "remember this\n", asked.stderr
    assert PASSWORD not in asked.stderr
    again = bot(tmp_path, "run", stdin="/retry\n", **url)
    assert again.stdout == "remember this\n", again.stderr
    assert "(1)" in bot(tmp_path, "run", stdin="/clear\n", **url).stdout
    rows = str(postgres.run("SELECT exchanges::text FROM exchanges", empty.rpartition("/")[2]))
    assert "remember this" not in rows
    assert not (tmp_path / "data").exists()


def test_a_server_that_is_away_is_one_sentence_on_the_command_line(postgres: PostgresServer, tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", stdin="hello\n", BOT_STORAGE__URL="postgresql://bot:hush@127.0.0.1:1/bot")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("bot: postgresql://bot@127.0.0.1:1/bot cannot be reached: is its server running")
    assert ran.stderr.count("\n") == 1
    checked = bot(tmp_path, "check", BOT_STORAGE__URL="postgresql://bot:hush@127.0.0.1:1/bot")
    assert "* url = (set)" in checked.stdout
    assert "hush" not in checked.stdout
