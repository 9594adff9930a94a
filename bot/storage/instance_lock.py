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
from bot.storage.migrate import create_folder

# Seconds in which the one before may end: a supervisor that replaces a bot starts the new one a little early.
TIMEOUT = 5.0
PAUSE = 0.1

# Two numbers are a key of their own beside the single one that migrations take; the second tells schemas apart.
_TRY_LOCK = "SELECT pg_try_advisory_lock(x'626F74'::int, hashtext(current_schema()))"
# A machine that vanishes says no goodbye: the server shall notice within half a minute, and not within two hours.
_KEEPALIVE = {"idle": 15, "interval": 5, "count": 3}


class _Lock(Protocol):
    """The kernel's or the server's: it goes with the process, however that ends."""

    def acquire(self) -> bool:
        """Whether it is ours now."""
        ...

    def holder(self) -> str:
        """Who has it, as far as that is known: " (process 12 on web-1)"."""
        ...

    def release(self) -> None: ...


class InstanceLock:
    """The right to run on a database, from `with` to its end.

    Its calls block.  What only looks, as a backup, needs none.

    Raises:
        StoreInUse: Another process has it, and kept it for `timeout` seconds.
        StoreError: The database cannot be reached, or its folder not be written.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, sleep: Callable[[float], object] = time.sleep) -> None:
        self._location = locate(url)
        self._lock: _Lock = (
            _FileLock(self._location) if self._location.path is not None else _ServerLock(self._location)
        )
        self._tries = 1 + round(timeout / PAUSE)
        self._sleep = sleep

    def __enter__(self) -> Self:
        try:
            self._acquire(self._tries)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Make sure that it is still ours: a server that was started anew has forgotten it.

        Raises:
            StoreInUse: Another process was faster.
            StoreError: The server is away; worth another try.
        """
        self._acquire(1)

    def _acquire(self, tries: int) -> None:
        for left in reversed(range(tries)):
            if self._lock.acquire():
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
        self._is_held = False

    def acquire(self) -> bool:
        if self._is_held:
            return True
        with map_errors(self._location.name):
            if self._file is None:
                create_folder(self._location)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
                with suppress(OSError):  # it belongs to somebody else, who shares it with us
                    os.fchmod(self._file, self._rights())
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._is_held = True
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

    def release(self) -> None:
        # The file stays: removed, one could hold its lock while another takes that of a new one.
        if self._file is not None:
            os.close(self._file)
            self._file, self._is_held = None, False


class _ServerLock:
    """Held by a session of its own, which the server ends with the connection."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._engine = migrator(location)
        self._session: Connection | None = None

    def acquire(self) -> bool:
        try:
            with map_errors(self._location.name):
                if self._session is not None:
                    self._session.exec_driver_sql("SELECT 1")
                    return True
                session = self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                for name, value in _KEEPALIVE.items():
                    session.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
                is_held = bool(session.exec_driver_sql(_TRY_LOCK).scalar_one())
        except StoreError:
            self.release()  # the next try begins with a new session
            raise
        if not is_held:
            self.release()
        return is_held

    def holder(self) -> str:
        return ""

    def release(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            with suppress(StoreError), map_errors(self._location.name):
                session.close()
