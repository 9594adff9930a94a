"""Backups that the running bot makes, in a folder beside its database."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bot.errors import StoreError
from bot.storage.backup import back_up, remove_left
from bot.storage.connections import locate
from bot.storage.key_file import path_beside

_NAME = "backups"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup; `files` are the database and, unless it is of an old version, its keys."""

    name: str
    at: datetime
    files: tuple[Path, ...]
    size: int  # bytes, of all files


class BackupFolder:
    """Makes and lists backups, one at a time.  Calls block, and are safe in threads.

    `progress` is the share of the pages that are copied, None while no backup is made.  `revision` rises with
    each one that was made.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        database = locate(url).path
        self._is_file = database is not None
        self.path = (Path("data") if database is None else database.parent) / _NAME
        self.progress: float | None = None
        self.revision = 0
        self._lock = threading.Lock()

    def make(self, now: datetime) -> Backup:
        """Make a backup that is named for the time.

        Raises:
            StoreError: One is being made, or `back_up` cannot.
        """
        if not self._lock.acquire(blocking=False):
            raise StoreError("a backup is being made already: wait for its end")
        try:
            self.progress = 0.0
            try:
                if self._is_file:  # a server has a tool of its own, which `back_up` names
                    self.path.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{self.path} cannot be made ({error.strerror})") from error
            target = self.path / f"bot-{now.astimezone(UTC):%Y%m%d-%H%M%S}.db"
            remove_left(self.path)
            back_up(self._url, target, progress=self._report)
            return _backup(target)
        finally:
            self.progress = None
            self.revision += 1
            self._lock.release()

    def list(self) -> Sequence[Backup]:
        """Return the backups, the newest first; what is being made is not one yet."""
        try:
            found = [_backup(file) for file in self.path.glob("*.db") if file.is_file() and not file.is_symlink()]
        except OSError:
            return []
        return sorted((each for each in found if each.size), key=lambda backup: (backup.at, backup.name), reverse=True)

    def find(self, name: str) -> Path | None:
        """Return the file of a backup by its name, None if it is of none."""
        return next((file for backup in self.list() for file in backup.files if file.name == name), None)

    def _report(self, done: int, total: int) -> None:
        self.progress = done / total if total else 0.0


def _backup(database: Path) -> Backup:
    keys = path_beside(database)
    files = (database, keys) if keys.is_file() else (database,)
    states = [file.stat() for file in files]
    size = sum(state.st_size for state in states) if states[0].st_size else 0
    return Backup(database.name, datetime.fromtimestamp(states[0].st_mtime, UTC), files, size)
