"""`bot check` finds damaged pages of the database, and a run on them ends with one sentence."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bot.storage import migrate
from tests.cli.test_main import bot
from tests.storage import url_of

DAMAGED = "data/bot.db is damaged: restore a backup, or save what can be read with sqlite3's .recover"


def fill(folder: Path) -> Path:
    assert bot(folder, "run", stdin="".join(f"question {number}\n" for number in range(40))).returncode == 0
    return folder / "data" / "bot.db"


def damage(database: Path, name: str) -> None:
    """Overwrite the first page of a table or an index with what a broken disk may return."""
    with closing(sqlite3.connect(database)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x99" * size)


@pytest.mark.parametrize("name", ["exchanges", "ix_exchanges_owed", "channels", "encryption", "alembic_version"])
def test_damaged_pages_are_found_and_end_the_run(tmp_path: Path, name: str) -> None:
    database = fill(tmp_path)
    damage(database, name)
    before = database.read_bytes()
    check = bot(tmp_path, "check")
    assert check.returncode == 1
    assert f"!! database: {DAMAGED}" in check.stdout
    assert database.read_bytes() == before
    run = bot(tmp_path, "run", stdin="hello\n")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"bot: {DAMAGED}"
    assert "Traceback" not in run.stderr
    assert "queued" not in run.stdout


def test_a_damaged_page_that_a_run_does_not_need_is_found_too(tmp_path: Path) -> None:
    database = fill(tmp_path)
    damage(database, "ix_settings_set_at")
    check = bot(tmp_path, "check")
    assert check.returncode == 1
    assert f"!! database: {DAMAGED}" in check.stdout


def test_a_file_that_is_no_database_any_more_ends_the_run(tmp_path: Path) -> None:
    database = fill(tmp_path)
    with database.open("r+b") as file:
        file.write(bytes(4096))
    for command in ("check", "run"):
        ran = bot(tmp_path, command)
        assert ran.returncode == 1
        assert "data/bot.db is not a SQLite database" in ran.stdout + ran.stderr


def test_the_check_of_a_large_file_ends_early(tmp_path: Path) -> None:
    url = url_of(fill(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "_CHECK_STEPS", 1)
        assert not migrate.check_pages(url, seconds=0.0)
    assert migrate.check_pages(url)
