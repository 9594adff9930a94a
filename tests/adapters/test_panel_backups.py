"""Backups in the panel: made, listed and downloaded."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.adapters.test_panel import HOSTILE, Served, first, panel_of
from tests.harness.fakes import ScriptedEngine
from tests.harness.messages import a_message


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with panel_of(tmp_path, ScriptedEngine()) as served:
        yield served


async def test_a_backup_is_made_listed_and_downloaded_as_it_was(served: Served, tmp_path: Path) -> None:
    assert "There is no backup yet." in (await served.panel.until(first)).shown["backups"]
    await served.harness.ask(a_message("hello"))
    said = await served.panel.post("backup")
    assert "integrity check passed" in said
    shown = (await served.panel.until(first)).shown
    assert "download>keys</a>" in shown["backups"]
    assert shown["backup-progress"] == ""
    database, keys = sorted((tmp_path / "backups").iterdir())
    for file in (database, keys):
        assert file.stat().st_mode & 0o777 == 0o600
        async with served.panel.http.get(f"/admin/backups/{file.name}") as response:
            assert response.headers["Content-Disposition"] == f'attachment; filename="{file.name}"'
            assert response.headers["Cache-Control"] == "no-store"
            assert await response.read() == file.read_bytes()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM exchanges").fetchone() == (1,)


async def test_a_second_backup_at_the_same_moment_is_refused_with_its_sentence(served: Served) -> None:
    await served.panel.post("backup")
    assert "already exists" in await served.panel.post("backup", 503)


@pytest.mark.parametrize("name", ["bot.db", "..%2Fbot.db", "web.secret", "nothing.db"])
async def test_no_other_file_is_downloaded(served: Served, tmp_path: Path, name: str) -> None:
    await served.panel.post("backup")
    (tmp_path / "backups" / "web.secret").write_text("a secret", encoding="utf-8")
    (tmp_path / "backups" / "nothing.db").symlink_to(tmp_path / "bot.db")
    async with served.panel.http.get(f"/admin/backups/{name}") as response:
        assert response.status == 404


async def test_another_page_downloads_nothing(served: Served) -> None:
    await served.panel.post("backup")
    async with served.panel.http.get("/admin/backups/bot.db", headers={"Sec-Fetch-Site": "cross-site"}) as response:
        assert response.status == 403


async def test_hostile_file_names_are_text(served: Served, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "|") + '".db'
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / name).write_bytes(b"x")
    shown = (await served.panel.until(first)).shown["backups"]
    assert "<script" not in shown
    assert "/admin/backups/%3Cscript%3E" in shown
