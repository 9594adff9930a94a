"""One bot at a time on a database: a second one is told so, and ends before it says anything anywhere."""

import fcntl
import os
import platform
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy import Connection

from bot.errors import StoreError, StoreInUse
from bot.storage.connections import Location, locate, migrator
from bot.storage.errors import map_errors
from bot.storage.migrate import make_folder

# Seconds in which the one before may end: a supervisor that replaces a bot starts the new one a little early.
PATIENCE = 5.0
PAUSE = 0.1

# Two numbers are a key of their own beside the single one that migrations take; the second tells schemas apart.
_TAKE = "SELECT pg_try_advisory_lock(x'626F74'::int, hashtext(current_schema()))"
# A machine that vanishes says no goodbye: the server shall notice within half a minute, and not within two hours.
_KEPT_ALIVE = {"idle": 15, "interval": 5, "count": 3}


class _Lock(Protocol):
    """The kernel's or the server's: it goes with the process, however that ends."""

    def take(self) -> bool:
        """Whether it is ours now."""
        ...

    def holder(self) -> str:
        """Who has it, as far as that is known: " (process 12 on web-1)"."""
        ...

    def leave(self) -> None: ...


class InstanceLock:
    """The right to run on a database, from `with` to its end.

    Its calls block.  What only looks, as a backup, needs none.

    Raises:
        StoreInUse: Another process has it, and kept it for `patience` seconds.
        StoreError: The database cannot be reached, or its folder not be written.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE, sleep: Callable[[float], object] = time.sleep) -> None:
        self._location = locate(url)
        self._lock: _Lock = (
            _FileLock(self._location) if self._location.path is not None else _ServerLock(self._location)
        )
        self._tries = 1 + round(patience / PAUSE)
        self._sleep = sleep

    def __enter__(self) -> Self:
        try:
            self._take(self._tries)
        except BaseException:
            self._lock.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.leave()

    def renew(self) -> None:
        """Make sure that it is still ours: a server that was started anew has forgotten it.

        Raises:
            StoreInUse: Another process was faster.
            StoreError: The server is away; worth another try.
        """
        self._take(1)

    def _take(self, tries: int) -> None:
        for left in reversed(range(tries)):
            if self._lock.take():
                return
            if left:
                self._sleep(PAUSE)
        raise StoreInUse(
            f"{self._location.name} is in use by another bot{self._lock.holder()}: stop that one, or name another "
            "database in storage.url"
        )


class _FileLock:
    """On a file beside the database: closing one of SQLite's own would let go of SQLite's locks."""

    def __init__(self, location: Location) -> None:
        self._location = location
        assert location.path is not None
        # What is one file under two names has one lock.
        self._database = location.path.resolve()
        self._path = self._database.with_name(f"{self._database.name}.lock")
        self._file: int | None = None
        self._is_ours = False

    def take(self) -> bool:
        if self._is_ours:
            return True
        with map_errors(self._location.name):
            if self._file is None:
                make_folder(self._location)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
                with suppress(OSError):  # it belongs to somebody else, who shares it with us
                    os.fchmod(self._file, self._rights())
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._is_ours = True
            with suppress(OSError):  # a full disk: opening the database says so better
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            if who := self._path.read_text(encoding="utf-8").strip():
                return f" ({who})"
        return ""

    def _rights(self) -> int:
        """Those of the database: who may open the file may take its lock too, and keep the bot out."""
        try:
            return 0o600 | stat.S_IMODE(self._database.stat().st_mode) & 0o666
        except FileNotFoundError:
            return 0o600

    def leave(self) -> None:
        # The file stays: removed, one could hold its lock while another takes that of a new one.
        if self._file is not None:
            os.close(self._file)
            self._file, self._is_ours = None, False


class _ServerLock:
    """Held by a session of its own, which the server ends with the connection."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._engine = migrator(location)
        self._session: Connection | None = None

    def take(self) -> bool:
        try:
            with map_errors(self._location.name):
                if self._session is not None:
                    self._session.exec_driver_sql("SELECT 1")
                    return True
                session = self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                for name, value in _KEPT_ALIVE.items():
                    session.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
                is_ours = bool(session.exec_driver_sql(_TAKE).scalar_one())
        except StoreError:
            self.leave()  # the next try begins with a new session
            raise
        if not is_ours:
            self.leave()
        return is_ours

    def holder(self) -> str:
        return ""

    def leave(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            with suppress(StoreError), map_errors(self._location.name):
                session.close()
