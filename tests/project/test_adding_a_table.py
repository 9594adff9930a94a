"""The snippets on the page about tables work: schema and migration agree, methods store and delete."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Table

from bot.storage import migrate, schema
from tests.project.snippets import checkout, execute_in, names_in, snippets

PAGE = "ADDING_A_TABLE.md"
SCHEMA, MIGRATION, METHODS, DELETION, RENAMING, EXPORT, CONTRACT, PERSONAL, BYTES = snippets(PAGE)

PERSONAL_TESTS = (
    "test_every_text_column_is_personal_or_a_key[notes]",
    "test_every_deletion_covers_every_personal_column[notes-clear]",
    "test_every_deletion_covers_every_personal_column[notes-clear one's own]",
    "test_every_deletion_covers_every_personal_column[notes-forget]",
    "test_every_personal_column_can_be_read_after_older_keys_were_restored[notes]",
    "test_export_backup_and_copy_contain_every_personal_column[notes]",
)


@pytest.fixture
def notes() -> Iterator[Table]:
    """Add the page's table to the schema for one test."""
    table: Table = execute_in(schema, SCHEMA)["notes"]
    yield table
    schema.metadata.remove(table)


@pytest.mark.usefixtures("notes")
def test_the_snippets_work_in_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with checkout() as copy:
        monkeypatch.setattr(migrate, "__file__", str(copy.folder / "bot" / "storage" / "migrate.py"))
        migration = migrate.create_migration("channels have a note")
        _, _, generated = migration.read_text(encoding="utf-8").partition("def upgrade")
        _, _, shown = MIGRATION.partition("def upgrade")
        assert plain(shown) == plain(generated)

        for snippet in (SCHEMA, METHODS, DELETION, RENAMING, EXPORT, CONTRACT, PERSONAL, BYTES):
            copy.write(snippet)
        last = "            await rename_use(tx, self._add_use, channel, to)\n"
        copy.replace("bot/storage/sql.py", last, f"{last}            await self._move_note(tx, channel, to)\n")
        written = (copy.folder / "docs" / PAGE).read_text(encoding="utf-8").partition("Its last line becomes\n  ``")[2]
        copy.replace("bot/storage/export.py", 'yield "]}\\n"', written.partition("``")[0])
        copy.run_tests(
            *(f"{name}[sqlite]" for name in names_in(CONTRACT)),
            *names_in(BYTES),
            *(f"tests/storage/test_personal_data.py::{name}" for name in PERSONAL_TESTS),
            "tests/storage/test_migrate.py::test_the_migrations_create_the_schema",
            "tests/storage/test_migrate.py::test_every_migration_goes_up_and_down",
        )


def plain(code: str) -> str:
    """Drop comments, layout and the kind of quotes, which the formatter decides."""
    lines = (line.partition("#")[0] for line in code.splitlines())
    return "".join("".join(lines).replace("'", '"').replace(",)", ")").split()).replace(",)", ")")
