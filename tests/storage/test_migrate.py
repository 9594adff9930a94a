"""Migrations: up and down, equal to schema.py, from a checkout and from a wheel."""

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from bot.domain import Answer, Kind, Vote, VoteResult
from bot.errors import StoreError
from bot.storage import connections, migrate
from bot.storage.schema import metadata
from tests.harness.messages import a_message
from tests.storage import MEI, NOON, temporary_store, url_of

MIGRATIONS = Path(migrate.__file__).parents[2] / "migrations"


@contextmanager
def alembic_on(path: Path) -> Iterator[tuple[Config, Connection]]:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = connections.migrator(connections.locate(url_of(path)))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        yield config, connection


def tables(path: Path) -> dict[str, str]:
    """Return the SQL of every table and index, without Alembic's."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {
            name: " ".join(sql.replace('"', "").split())
            for name, sql in rows
            if name not in {"alembic_version", "sqlite_sequence"}
        }


@pytest.fixture(autouse=True)
def _migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores run the migrations here, too."""
    monkeypatch.setattr("bot.storage.opened.migrate", migrate)


def test_a_new_database_is_at_the_newest_revision(tmp_path: Path) -> None:
    url = url_of(tmp_path / "data" / "bot.db")
    assert migrate.current_revision(url) is None
    assert not (tmp_path / "data").exists()  # reading creates nothing
    migrate.upgrade(url)
    assert migrate.current_revision(url) == migrate.head_revision()


async def test_the_database_and_its_log_are_private_to_their_owner(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await store.enqueue(a_message("a secret"), Kind.CHAT)
        modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir() if "lock" not in file.name}
        assert len(modes) >= 2, "the log is beside it"
        assert set(modes.values()) == {0}, modes


def test_an_empty_file_counts_as_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "bot.db").touch()
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert migrate.current_revision(url_of(tmp_path / "bot.db")) == migrate.head_revision()


def test_a_database_without_tables_counts_as_new(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("DROP TABLE recipes")
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert migrate.current_revision(url_of(tmp_path / "bot.db")) == migrate.head_revision()


def test_reading_the_revision_creates_no_file(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert migrate.current_revision(url_of(tmp_path / "bot.db")) == migrate.head_revision()
    assert [path.name for path in tmp_path.iterdir()] == ["bot.db"]


def test_reading_the_revision_includes_the_write_ahead_log(tmp_path: Path) -> None:
    url = url_of(tmp_path / "bot.db")
    migrate.upgrade(url)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as running:
        running.execute("UPDATE alembic_version SET version_num = '9999'")
        assert migrate.current_revision(url) == "9999"


def test_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    before = (tmp_path / "bot.db").read_bytes()
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert (tmp_path / "bot.db").read_bytes() == before


def test_the_migrations_create_the_schema(tmp_path: Path) -> None:
    migrate.upgrade(url_of(tmp_path / "migrated.db"))
    with alembic_on(tmp_path / "migrated.db") as (_, connection):
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine = create_engine(f"sqlite:///{tmp_path / 'created.db'}")
    metadata.create_all(engine)
    engine.dispose()
    assert tables(tmp_path / "migrated.db") == tables(tmp_path / "created.db")


def test_every_migration_goes_up_and_down(tmp_path: Path) -> None:
    file = tmp_path / "bot.db"
    with alembic_on(file) as (config, _):
        revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    assert migrate.head_revision() == revisions[-1], "the files are numbered in their order"
    states = [tables(file)]
    for revision in revisions:
        with alembic_on(file) as (config, _):
            command.upgrade(config, revision)
        states.append(tables(file))
    for revision, before in zip(["base", *revisions][-2::-1], states[-2::-1], strict=False):
        with alembic_on(file) as (config, _):
            command.downgrade(config, revision)
        assert tables(file) == before
    assert tables(file) == {}


async def test_answers_from_before_the_votes_are_kept_and_may_be_voted_on(tmp_path: Path) -> None:
    file, old = tmp_path / "bot.db", Answer("hi", "so")
    async with temporary_store(tmp_path) as store:
        exchange = await store.enqueue(a_message(id="1"), Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange, old)
        await store.complete(exchange)
    with alembic_on(file) as (config, _):
        command.downgrade(config, "0009")
    assert "feedback" not in tables(file)
    async with temporary_store(tmp_path) as store:
        found = await store.find(exchange.message.channel, "1")
        assert found is not None
        assert found.answer == old
        assert await store.vote(found, MEI, Vote.UP, NOON) is VoteResult.UP


def test_many_threads_may_upgrade_concurrently(tmp_path: Path) -> None:
    urls = [url_of(tmp_path / f"{number % 3}.db") for number in range(9)]
    threads = [threading.Thread(target=migrate.upgrade, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {migrate.current_revision(url) for url in urls} == {migrate.head_revision()}


def test_a_database_of_an_unknown_revision_is_left_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "bot.db"
    migrate.upgrade(url_of(file))
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(
        StoreError, match=r"has revision 9999, which is unknown: this version supports up to \d+\. Update the program"
    ):
        migrate.upgrade(url_of(file))
    assert file.read_bytes() == before


def test_a_database_of_another_program_is_left_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "bot.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match="belongs to another program: name another file"):
        migrate.upgrade(url_of(file))
    assert file.read_bytes() == before


def test_upgrading_prints_nothing_and_does_not_change_logging(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("alembic").level)
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert (root.level, list(root.handlers), logging.getLogger("alembic").level) == before
    assert capfd.readouterr() == ("", "")


def test_migrations_in_a_wheel_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site packages 100%" / "bot" / "storage"
    shutil.copytree(MIGRATIONS, installed / "migrations")
    monkeypatch.setattr(migrate, "__file__", str(installed / "migrate.py"))
    migrate.upgrade(url_of(tmp_path / "bot.db"))
    assert migrate.current_revision(url_of(tmp_path / "bot.db")) == migrate.head_revision()


# The next migration.


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "migrate.py"))
    return tmp_path / "migrations"


def test_the_next_migration_contains_the_difference_to_the_schema(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = copied / "versions" / "0001_exchanges.py"
    first.write_text(first.read_text().replace('        sa.Column("failure", sa.Text(), nullable=True),\n', ""))
    assert migrate.main(["exchanges have a failure"]) == 0
    number = len(list((copied / "versions").glob("*.py")))
    made = copied / "versions" / f"{number:04}_exchanges_have_a_failure.py"
    assert capsys.readouterr().out == f"{made}\n"
    assert "sa.Column('failure', sa.Text(), nullable=True)" in made.read_text()
    assert "bot." not in made.read_text()


@pytest.mark.parametrize("arguments", [[], [" "], ["one", "two"]])
def test_a_migration_needs_one_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate.main(arguments) == 2
    assert "usage" in capsys.readouterr().err
