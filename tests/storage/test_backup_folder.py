"""Backups of a running bot: their progress, and one at a time."""

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


def test_a_database_server_is_backed_up_by_its_own_tool() -> None:
    folder = BackupFolder("postgresql://bot:secret@host/bot")
    with pytest.raises(StoreError, match="pg_dump") as error:
        folder.make(NOON)
    assert "secret" not in str(error.value)
