"""The store on a PostgreSQL server: races, errors, restarts, migrations."""

import asyncio
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bot.domain import Answer, Exchange, Kind, Status
from bot.errors import StoreError
from bot.storage import connections, errors, migrate
from bot.storage.schema import metadata
from bot.storage.sql import SqlStore
from tests.cli.test_main import bot, environment
from tests.harness.platform import TIMEOUT
from tests.harness.postgres import PASSWORD, PostgresServer
from tests.storage import BEN, MEI, ROOM, message


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """A database in which a test changes rows only."""
    with postgres.lent() as name:
        yield name


@pytest.fixture
async def store(postgres: PostgresServer, database: str) -> AsyncIterator[SqlStore]:
    async with postgres.store(database) as store:
        yield store


async def enqueue(store: SqlStore, number: int | str = 1) -> Exchange:
    exchange = await store.enqueue(message(number), Kind.CHAT)
    assert exchange is not None
    return exchange


async def until_waiting(postgres: PostgresServer, database: str, count: int = 1) -> None:
    """Return once `count` sessions wait for a lock."""
    question = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    async with asyncio.timeout(TIMEOUT):
        while await asyncio.to_thread(postgres.run, question) != [(count,)]:
            pass


# Settings.


async def test_the_writer_and_the_readers_have_the_intended_settings(postgres: PostgresServer, database: str) -> None:
    location = connections.locate(postgres.url(database))
    wanted = {
        "lock_timeout": "5s",
        "statement_timeout": "1min",
        "idle_in_transaction_session_timeout": "10s",
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


async def test_settings_in_the_url_take_precedence(postgres: PostgresServer, database: str) -> None:
    url = f"{postgres.url(database)}?application_name=bot-2&options=-c%20lock_timeout%3D7s&connect_timeout=3"
    engine = connections.writer(connections.locate(url))
    async with engine.connect() as connection:
        for name, value in {"application_name": "bot-2", "lock_timeout": "7s", "TimeZone": "UTC"}.items():
            assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == value, name
    await engine.dispose()


async def test_a_server_on_a_unix_socket_is_reached_through_its_folder(postgres: PostgresServer, database: str) -> None:
    url = f"postgres://bot@/{database}?host={postgres.folder}&port={postgres.port}&password=open+sesame/@:%25?%23"
    async with SqlStore(url) as store:
        assert await store.claim_owed("slack") == []


# Several processes on one database.


COPY: LiteralString = """
    INSERT INTO exchanges (platform, channel, message, kind, status, seed, author_platform, author, author_name,
        author_roles, author_is_bot, text, sent_at, is_direct, author_id, question_key)
    SELECT platform, channel, 'copied', kind, status, seed, author_platform, author, author_name,
        author_roles, author_is_bot, text, sent_at, is_direct, author_id, question_key FROM exchanges WHERE message = '1'
"""


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_message_that_two_processes_enqueue_is_one_row_with_one_claim(
    store: SqlStore, postgres: PostgresServer, database: str, is_kept: bool
) -> None:
    await enqueue(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute(COPY)
        here = asyncio.create_task(store.enqueue(message("copied"), Kind.CHAT))
        await until_waiting(postgres, database)
        other.execute("COMMIT" if is_kept else "ROLLBACK")
    exchange = await here
    assert exchange is not None
    assert exchange.fence == 1
    assert await store.claim(exchange) is None
    assert postgres.run("SELECT count(*) FROM exchanges WHERE message = 'copied'", database) == [(1,)]


async def test_an_exchange_that_another_process_clears_is_neither_answered_nor_requeued(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await enqueue(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("UPDATE exchanges SET status = 'cleared', text = ''")
        answered = asyncio.create_task(store.record_answer(exchange, Answer("too late")))
        await until_waiting(postgres, database)
        other.execute("COMMIT")
    assert not await answered
    assert await store.requeue(exchange, "too late") is None
    assert "too late" not in str(postgres.run("SELECT exchanges::text FROM exchanges", database))


async def test_a_part_that_two_processes_record_is_one_row(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await enqueue(store)
    await store.record_part(exchange, 0, "gone")
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("UPDATE parts SET message = 'm0'")
        first = asyncio.create_task(store.record_part(exchange, 0, "m1"))
        await until_waiting(postgres, database)
        other.execute("COMMIT")
    assert await first
    assert postgres.run("SELECT number, message FROM parts", database) == [(0, "m1")]


async def test_a_locked_row_is_reported_after_the_busy_timeout(postgres: PostgresServer, database: str) -> None:
    async with SqlStore(postgres.url(database), busy_timeout=0.05) as store:
        exchange = await enqueue(store)
        with postgres.connected(database) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM exchanges FOR UPDATE")
            assert await store.find(ROOM, "1") == exchange  # readers do not wait
            with pytest.raises(StoreError, match="is locked by another program: end that"):
                await store.record_answer(exchange, Answer("hi"))
        assert await store.record_answer(exchange, Answer("hi"))


async def test_a_write_that_waits_too_long_for_the_lock_is_reported(postgres: PostgresServer, database: str) -> None:
    async with SqlStore(postgres.url(database), queue_timeout=0.05) as store:
        exchange = await enqueue(store)
        with postgres.connected(database) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM exchanges FOR UPDATE")
            first = asyncio.create_task(store.record_answer(exchange, Answer("hi")))
            await until_waiting(postgres, database)
            with pytest.raises(StoreError, match="is overloaded, no connection was free in time"):
                await store.enqueue(message(2), Kind.CHAT)
        assert await first


async def test_cancelled_calls_leave_no_transaction_open(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    first = await enqueue(store, "the first")
    calls: list[asyncio.Task[object]] = [
        *(asyncio.create_task(store.enqueue(message(number), Kind.CHAT)) for number in range(50)),
        asyncio.create_task(store.clear(ROOM)),
        asyncio.create_task(store.erase(first)),
    ]
    await enqueue(store, "some calls have started")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await enqueue(store, "all calls have ended")
    states = postgres.run(f"SELECT DISTINCT state FROM pg_stat_activity WHERE datname = '{database}'")
    assert states == [("idle",)]


# Server restarts.


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_the_store_reconnects_after_a_server_restart(
    store: SqlStore, postgres: PostgresServer, how: signal.Signals
) -> None:
    exchange = await enqueue(store)
    postgres.stop(how)
    try:
        for _ in range(2):
            with pytest.raises(
                StoreError, match=r"cannot be reached: is its server running.*running bot recovers by itself"
            ):
                await store.record_answer(exchange, Answer("hi"))
            with pytest.raises(StoreError, match="cannot be reached"):
                await store.claim_owed("slack")
    finally:
        postgres.start()
    assert await store.claim_owed("slack") == []
    assert await store.record_answer(exchange, Answer("hi"))


async def test_a_broken_connection_fails_only_the_current_call(
    store: SqlStore, postgres: PostgresServer, database: str
) -> None:
    exchange = await enqueue(store)
    with postgres.connected(database) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM exchanges FOR UPDATE")
        call = asyncio.create_task(store.record_answer(exchange, Answer("hi")))
        await until_waiting(postgres, database)
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND wait_event_type = 'Lock'"
        )
        with pytest.raises(StoreError, match="closed the connection: a running bot recovers by itself"):
            await call
    assert await store.record_answer(exchange, Answer("hi"))


async def test_the_store_closes_while_the_server_is_away(postgres: PostgresServer, database: str) -> None:
    try:
        async with postgres.store(database) as store:
            await enqueue(store)
            postgres.stop()
    finally:
        postgres.start()


# Errors at the start: one sentence each, without the password.


@pytest.mark.parametrize(
    ("user", "password", "name", "complaint"),
    [
        ("bot", "wrong-secret", None, "rejects this user and password: correct them in BOT_STORAGE__URL"),
        ("nobody", "wrong-secret", None, "rejects this user and password"),
        ("bot", None, None, "requires a password: write postgresql://user:password@host/database"),
        ("bot", PASSWORD, "absent", 'does not exist: create it with createdb .*database "absent" does not exist'),
        ("guest", "wrong-secret", "closed", "denies this user access: GRANT CONNECT"),
        ("guest", "wrong-secret", None, "denies the bot's user permission"),
    ],
)
async def test_a_refused_connection_is_one_sentence_without_the_password(
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
    shown = "".join(traceback.format_exception(refused.value))
    assert "\n" not in str(refused.value)
    assert all(secret not in shown for secret in ("wrong-secret", PASSWORD, "%77"))


@pytest.mark.parametrize(
    ("refusal", "complaint"),
    [
        (
            'FATAL:  role "bot" does not exist',
            'has no such user: create it with CREATE ROLE .*role "bot" does not exist',
        ),
        ('FATAL:  role "bot" is not permitted to log in', "denies this user access: GRANT CONNECT"),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1"',
            "denies this user access from this host: add an entry to pg_hba.conf",
        ),
        (
            'FATAL:  Peer authentication failed for user "bot"',
            "denies this user access: check the authentication method",
        ),
        ("FATAL:  sorry, too many clients already", "has no connection left"),
        ("FATAL:  remaining connection slots are reserved", "has no connection left"),
        ("FATAL:  the database system is starting up", "is not ready"),
        ("server does not support SSL, but SSL was required", "failed TLS negotiation: check sslmode"),
        ('FATAL:  数据库 "bot" 不存在', 'cannot be reached: .*数据库 "bot" 不存在'),
    ],
)
def test_the_message_for_a_refused_connection_says_what_to_do(refusal: str, complaint: str) -> None:
    first = 'connection failed: connection to server at "db", port 5432 failed: '
    error = psycopg.OperationalError(f"{first}{refusal}\n{first}{refusal}\n")
    with pytest.raises(StoreError, match=f"^db.example {complaint}"), errors.map_errors("db.example"):
        raise DBAPIError.instance("", {}, error, psycopg.Error)


@pytest.mark.parametrize("state", errors.POSTGRES_MESSAGES)
def test_each_message_belongs_to_an_error_of_the_driver(state: str) -> None:
    error = psycopg.errors.lookup(state)("text of a user")
    assert errors.describe("db.example", error) == f"db.example {errors.POSTGRES_MESSAGES[state]}"


def test_an_unknown_error_is_reported_by_its_class_and_code() -> None:
    message = errors.describe("db.example", psycopg.errors.NotNullViolation("Failing row contains (sesame)"))
    assert message.startswith("db.example cannot be used (NotNullViolation, SQLSTATE 23502): restore a backup")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("sslmode=odd", "rejects a connection option: .* invalid sslmode value"),
        ("password=x&passwd=hush", r'rejects a connection option: .*\(invalid connection option "passwd"\)'),
        ("options=-c%20nonsense%3D1", "rejects a connection option"),
        ("sslmode=require", "failed TLS negotiation"),
    ],
)
async def test_invalid_connection_options_are_one_sentence(
    postgres: PostgresServer, database: str, options: str, complaint: str
) -> None:
    with pytest.raises(StoreError, match=complaint) as refused:
        async with SqlStore(f"{postgres.url(database)}?{options}"):
            pass
    assert "hush" not in "".join(traceback.format_exception(refused.value))


async def test_a_read_only_database_is_refused_at_the_start(postgres: PostgresServer) -> None:
    database = postgres.database()
    postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match=r"is read-only \(a standby\?\)"):
        async with postgres.store(database):
            pass


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_without_utf8_is_refused(postgres: PostgresServer, encoding: str) -> None:
    postgres.run(f"CREATE DATABASE {encoding.lower()} ENCODING {encoding} TEMPLATE template0")
    with pytest.raises(StoreError, match=f"has encoding {encoding}, not UTF8: .*createdb --encoding=UTF8"):
        migrate.upgrade(postgres.url(encoding.lower()))


# Deleting.


async def test_deleted_text_is_in_no_row(store: SqlStore, postgres: PostgresServer, database: str) -> None:
    for number, author in enumerate([MEI, BEN, MEI]):
        exchange = await store.enqueue(message(number, "a secret question", author=author), Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange, Answer("a secret answer", "a secret notice"))
    rows = "SELECT exchanges::text FROM exchanges"
    keys = "SELECT count(*) FROM text_keys"
    assert postgres.run(keys, database) == [(7,)], "one for each text, and that of pseudonyms"
    await store.forget(MEI)
    assert MEI.id not in str(postgres.run(rows, database))
    await store.clear(ROOM)
    assert "secret" not in str(postgres.run(rows, database))
    assert postgres.run(keys, database) == [(1,)]
    assert {status for (status,) in postgres.run("SELECT status FROM exchanges", database)} == {Status.CLEARED}


# Migrations.


@pytest.fixture
def empty(postgres: PostgresServer) -> str:
    """The URL of a database without tables."""
    name = postgres.database()
    postgres.run(f"DROP TABLE alembic_version, {', '.join(metadata.tables)}", name)
    return postgres.url(name)


def test_a_new_database_is_at_the_newest_revision(empty: str) -> None:
    assert migrate.current_revision(empty) is None
    migrate.upgrade(empty)
    assert migrate.current_revision(empty) == migrate.head_revision()
    migrate.upgrade(empty)


def test_the_migrations_create_the_schema_and_go_up_and_down(empty: str) -> None:
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


def test_bots_that_start_together_migrate_one_after_the_other(
    empty: str, postgres: PostgresServer, tmp_path: Path
) -> None:
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
    assert [(bot.communicate(timeout=600)[0], bot.returncode) for bot in bots] == [
        ("The database is up to date.\n", 0)
    ] * 2
    assert migrate.current_revision(empty) == migrate.head_revision()


async def test_a_migration_waits_for_a_running_one_without_a_time_limit(empty: str, postgres: PostgresServer) -> None:
    database = empty.rpartition("/")[2]
    with postgres.connected(database) as other:
        other.execute("SELECT pg_advisory_lock(x'626F74'::int)")
        upgrade = threading.Thread(target=migrate.upgrade, args=[empty, 0.01])
        upgrade.start()
        await until_waiting(postgres, database)
        other.execute("SELECT pg_advisory_unlock_all()")
    upgrade.join(30)
    assert migrate.current_revision(empty) == migrate.head_revision()


def test_a_database_of_an_unknown_revision_is_refused(postgres: PostgresServer) -> None:
    database = postgres.database()
    postgres.run("UPDATE alembic_version SET version_num = '9999'", database)
    with pytest.raises(StoreError, match=r"has revision 9999, which is unknown"):
        migrate.upgrade(postgres.url(database))


def test_a_table_of_another_program_with_the_same_name_is_reported(empty: str, postgres: PostgresServer) -> None:
    postgres.run("CREATE TABLE exchanges (rate numeric)", empty.rpartition("/")[2])
    with pytest.raises(StoreError, match=r"DuplicateTable, SQLSTATE 42P07.*name another database in storage.url"):
        migrate.upgrade(empty)
    assert migrate.current_revision(empty) is None


# The whole program.


def test_the_bot_runs_on_a_server_from_the_first_start_to_a_clear(
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


def test_an_unreachable_server_is_one_sentence_on_the_command_line(postgres: PostgresServer, tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", stdin="hello\n", BOT_STORAGE__URL="postgresql://bot:hush@127.0.0.1:1/bot")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("bot: postgresql://bot@127.0.0.1:1/bot cannot be reached: is its server running")
    assert ran.stderr.count("\n") == 1
    checked = bot(tmp_path, "check", BOT_STORAGE__URL="postgresql://bot:hush@127.0.0.1:1/bot")
    assert "* url = (set)" in checked.stdout
    assert "hush" not in checked.stdout
