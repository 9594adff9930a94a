"""The snippets on the page about tables work: schema and migration agree, methods store and delete."""

import shutil
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Table, create_engine, delete

from bot.domain import Author, ChannelKey
from bot.storage import connections, migrate, schema, sql
from bot.storage.encryption import DamagedRow
from bot.storage.key_file import path_beside
from bot.storage.sql import SqlStore
from tests import storage
from tests.harness.fakes.clock import JumpingClock
from tests.project.snippets import execute_in, names_in, snippets
from tests.storage import MEI, ROOM, test_personal_data, url_of
from tests.storage.forensics import KeptFiles
from tests.storage.test_lost_keys import comparison

OTHER_ROOM = ChannelKey("slack", "C77")
PAGE = "ADDING_A_TABLE.md"
_IMPORTS = {"Author": Author, "DamagedRow": DamagedRow, "SqlStore": SqlStore, "delete": delete, "partial": partial}
SCHEMA, MIGRATION, METHODS, DELETION, CONTRACT, PERSONAL, BYTES = snippets(PAGE)


@pytest.fixture
def notes() -> Iterator[Table]:
    """Add the page's table to the schema for one test."""
    table: Table = execute_in(schema, SCHEMA, PAGE)["notes"]
    yield table
    schema.metadata.remove(table)


@pytest.fixture
def open_store(tmp_path: Path, notes: Table) -> Callable[[], SqlStore]:
    """Return what makes a store with the page's table and methods."""
    file = tmp_path / "bot.db"
    migrate.upgrade(url_of(file))
    engine = create_engine(f"sqlite:///{file}")
    notes.create(engine)
    engine.dispose()
    methods = "class NoteStore(SqlStore):\n" + textwrap.indent(METHODS + DELETION, "    ")
    added = execute_in(sql, methods, PAGE, notes=notes, **_IMPORTS)
    return lambda: added["NoteStore"](url_of(file), JumpingClock())


@pytest.fixture
async def store(open_store: Callable[[], SqlStore]) -> AsyncIterator[SqlStore]:
    async with open_store() as store:
        yield store


def test_the_migration_makes_the_table_of_the_schema_and_takes_it_away(tmp_path: Path, notes: Table) -> None:
    url = url_of(tmp_path / "bot.db")
    migrate.upgrade(url)
    with connections.migrator(connections.locate(url)).begin() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) != []
        steps: dict[str, Any] = {"op": Operations(context), "sa": sqlalchemy}
        exec(MIGRATION, steps)

        steps["upgrade"]()
        assert compare_metadata(context, schema.metadata) == []
        steps["downgrade"]()
        assert compare_metadata(context, schema.metadata) != []


@pytest.mark.usefixtures("notes")
def test_the_migration_is_the_one_that_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(migrate.__file__).parents[2] / "migrations", tmp_path / "migrations")
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "migrate.py"))
    written = migrate.create_migration("channels have a note").read_text(encoding="utf-8")
    _, _, generated = written.partition("def upgrade")
    _, _, shown = MIGRATION.partition("def upgrade")
    assert plain(shown) == plain(generated)


@pytest.mark.parametrize("name", names_in(CONTRACT))
async def test_the_methods_pass_their_test(name: str, store: SqlStore) -> None:
    await execute_in(storage, CONTRACT, PAGE)[name](store)


@pytest.mark.parametrize("name", names_in(BYTES))
async def test_deletion_passes_its_test(name: str, store: SqlStore, tmp_path: Path) -> None:
    await execute_in(storage, BYTES, PAGE, SqlStore=SqlStore, KeptFiles=KeptFiles)[name](store, tmp_path / "bot.db")


async def test_the_entries_for_personal_data_cover_the_table(
    store: SqlStore, notes: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEYS", "ENQUEUE", "DELETIONS"):
        monkeypatch.setattr(test_personal_data, name, dict(getattr(test_personal_data, name)))
    execute_in(test_personal_data, PERSONAL, PAGE)
    test_personal_data.test_every_text_column_is_personal_or_a_key(notes)
    for delete_row in test_personal_data.DELETIONS["notes"].values():
        await test_personal_data.ENQUEUE["notes"](store)
        stored = test_personal_data.read(tmp_path / "bot.db", notes)
        assert {name for name, value in stored.items() if "personal" in value} == test_personal_data.personal(notes)
        await delete_row(store)
        assert test_personal_data.read(tmp_path / "bot.db", notes) == {}


async def test_a_note_can_be_read_after_older_keys_were_restored(open_store: Callable[[], Any], tmp_path: Path) -> None:
    keys = path_beside(tmp_path / "bot.db")
    async with open_store() as store:
        await store.set_note(ROOM, MEI, "tea at five")
        await store.set_note(OTHER_ROOM, MEI, "to be deleted")
        older = keys.read_bytes()
        await store.delete_notes(channel=OTHER_ROOM)
        await store.set_note(OTHER_ROOM, MEI, "of later")
        await store.delete_notes(channel=OTHER_ROOM)
    keys.write_bytes(older)
    async with open_store() as store:
        assert await comparison(store)
        assert await store.find_note(ROOM) == "tea at five"


def plain(code: str) -> str:
    """Drop comments, layout and the kind of quotes, which the formatter decides."""
    lines = (line.partition("#")[0] for line in code.splitlines())
    return "".join("".join(lines).replace("'", '"').replace(",)", ")").split()).replace(",)", ")")
