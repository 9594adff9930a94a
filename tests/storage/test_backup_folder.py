"""Backups of a running bot: their progress, and one at a time."""

from datetime import timedelta
from pathlib import Path

import pytest

from bot.errors import StoreError
from bot.storage import backup
from bot.storage.backup_folder import BackupFolder
from bot.storage.sql import SqlStore
from bot.util.clock import MonotonicClock
from tests.harness.messages import NOON


async def test_the_progress_rises_to_the_end_and_another_is_refused_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}"
    monkeypatch.setattr(backup, "_STEP", 1)
    shares: list[float] = []

    class Watched(BackupFolder):
        def _report(self, done: int, total: int) -> None:
            super()._report(done, total)
            shares.append(self.progress or 0.0)
            if len(shares) == 1:
                with pytest.raises(StoreError, match="being made already"):
                    self.make(NOON)

    async with SqlStore(url, MonotonicClock()):
        folder = Watched(url)
        made = folder.make(NOON)
    assert made.name == "bot-20261120-120000.db"
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert shares[-1] == 1.0
    assert folder.progress is None
    assert [each.name for each in folder.list()] == [made.name]


async def test_what_killed_backups_left_is_deleted_before_the_next(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}"
    async with SqlStore(url, MonotonicClock()):
        folder = BackupFolder(url)
        whole = folder.make(NOON)
        for name in ("a.db", "b.db", "c.db"):
            (folder.path / name).touch()
        for name in ("a.db.partial", "a.db.keys.partial", "b.db.partial", "b.db.keys", "d.db.partial"):
            (folder.path / name).write_bytes(b"half of it")
        (folder.path / "c.db.keys").write_bytes(b"another's keys")  # no killed backup leaves such
        with backup._Files(folder.path / "e.db").reserved():
            (folder.path / "e.db.partial").write_bytes(b"another process writes it")
            made = folder.make(NOON + timedelta(hours=1))
            left = {file.name for file in folder.path.iterdir()}
    assert left == {
        *(name for each in (whole, made) for name in (each.name, f"{each.name}.keys")),
        *("c.db", "c.db.keys", "e.db", "e.db.partial"),
    }


def test_a_database_server_is_backed_up_by_its_own_tool() -> None:
    folder = BackupFolder("postgresql://bot:secret@host/bot")
    with pytest.raises(StoreError, match="pg_dump") as error:
        folder.make(NOON)
    assert "secret" not in str(error.value)
