"""Notice that a file of an open SQLite database was deleted, replaced or overwritten."""

import os
from collections.abc import Callable
from pathlib import Path

from bot.errors import StoreLost
from bot.storage.key_file import Marks

# The change counter of a file that nothing has written since `bot backup` made it.
_OF_BACKUP = 1


class OpenFiles:
    """The files of a database while they are open; `check` is safe in threads.

    Compared are only marks which every program with SQLite leaves as they are, or raises: another one may write and
    checkpoint, too.
    """

    def __init__(self, marks: dict[Path, Callable[[], Marks]] | None = None) -> None:
        self._files = [_OpenFile(path, read) for path, read in (marks or {}).items()]

    def check(self) -> None:
        """Raise StoreLost if one was deleted, or has the name or the content of another."""
        for file in self._files:
            file.check()


class _OpenFile:
    def __init__(self, path: Path, read: Callable[[], Marks]) -> None:
        self._path = path
        self._identity = _identity(path)
        self._read = read
        self._marks = read()

    def check(self) -> None:
        # What is read beside a write may be half of it, but not twice.
        if _identity(self._path) != self._identity or not (self._is_same() or self._is_same()):
            raise StoreLost(
                f"{self._path} was deleted or replaced while the bot was running, so the bot ends: put the file back or "
                "restore a backup, then start it"
            )

    def _is_same(self) -> bool:
        fixed, least = self._marks  # before the file is read: another thread may read it later, and know more
        try:
            marks = self._read()
        except OSError:
            return True  # a faulty disk, of which the next statement says more
        if marks[0] != fixed or any(now < before for now, before in zip(marks[1], least, strict=True)):
            return False
        self._marks = marks
        return True


class DatabaseHeader:
    """The header of a SQLite file; close it once no connection is open, because that releases SQLite's locks."""

    def __init__(self, database: Path) -> None:
        self._file = os.open(database, os.O_RDONLY)

    def marks(self) -> Marks:
        """Return what tells that the file was overwritten with another.

        Each change of the schema and each VACUUM raise the schema's cookie, and the first write of the first page by
        a connection raises the change counter.  In a backup both begin at 1.
        """
        header = os.pread(self._file, 100, 0)
        return header[:16], (int.from_bytes(header[40:44]), int.from_bytes(header[24:28]))

    @property
    def is_of_backup(self) -> bool:
        """Return whether its marks are those of any backup, until the first page is written."""
        return self.marks()[1][-1] <= _OF_BACKUP

    def close(self) -> None:
        os.close(self._file)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
