"""Lock a database, so that only one bot runs on it, or each of its platforms, so that only one bot serves it."""

import fcntl
import os
import platform
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from bot import __version__
from bot.errors import StoreError, StoreInUse
from bot.storage.connections import Location, locate, migrator
from bot.storage.errors import map_errors
from bot.storage.migrate import create_folder

# In seconds.  A supervisor may start the next bot shortly before the previous one has ended.
TIMEOUT = 5.0
INTERVAL = 0.1

# Two numbers are another key than the single one of migrations: what is locked, and its name.
OF_DATABASE, OF_PLATFORM = 0x626F74, 0x626F75
_KEY = "%(kind)s::int, hashtext(%(name)s)"
_TRY_LOCK = f"SELECT pg_try_advisory_lock({_KEY})"
_TRY_SHARED = f"SELECT pg_try_advisory_lock_shared({_KEY})"
# The notice tells processes that wait that nothing of this one is left to wait for.
_CHANNEL = "chatglm_bot_lock"
_UNLOCK = f"SELECT pg_advisory_unlock({_KEY}), pg_notify('{_CHANNEL}', %(name)s)"
_UNLOCK_SHARED = f"SELECT pg_advisory_unlock_shared({_KEY}), pg_notify('{_CHANNEL}', %(name)s)"
# How pg_stat_activity calls a session whose process checks it every second (bot/storage/standby.py); the version,
# the host and the process follow.
LOCK_SESSION = "chatglm-bot lock"
_END_UNCHECKED = """
    SELECT pg_terminate_backend(activity.pid)
    FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND activity.datname = current_database()
        AND classid = %(kind)s::int::oid AND objid = (hashtext(%(name)s)::bigint & 4294967295)::oid
        AND starts_with(activity.application_name, %(checked)s)
        AND activity.state_change < clock_timestamp() - make_interval(secs => %(lease)s)
"""
# The server drops the session of a machine without power after 12 seconds, not after two hours.
_KEEPALIVE = {"idle": 6, "interval": 2, "count": 3}


def _session_name() -> str:
    # PostgreSQL keeps 63 bytes.
    head, tail = f"{LOCK_SESSION} {__version__} ", f":{os.getpid()}"
    host = platform.node().encode("ascii", "replace").decode()
    return f"{head}{host[: 63 - len(head) - len(tail)]}{tail}"


class InstanceLock:
    """Exclusive right to run a bot on a database; a context manager.

    Its calls block.  A process that only reads, as a backup, needs no lock.  With a `lease`, in seconds, it
    ends the session of another process with a lease that has not checked it for so long: a server keeps the
    session of a process that is stopped.

    Bots that share a server's database have the lock of the database together (`is_shared`), and of each
    `platform` one of them has the lock.

    Raises:
        StoreInUse: Another process had the lock for `timeout` seconds.
        StoreError: The database cannot be reached, or its folder is not writable.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        sleep: Callable[[float], object] = time.sleep,
        lease: float | None = None,
        platform: str = "",
        is_shared: bool = False,
    ) -> None:
        self._location = locate(url)
        self._platform = platform
        # The kernel or the server releases it when the process ends.
        self._lock: _FileLock | _ServerLock
        if self._location.path is None:
            self._lock = _ServerLock(self._location, lease, platform, is_shared=is_shared)
        else:
            is_whole = not platform and not is_shared
            assert is_whole, "a file has one bot"
            self._lock = _FileLock(self._location)
        self._tries = 1 + round(timeout / INTERVAL)
        self._sleep = sleep

    @property
    def is_handed_over(self) -> bool:
        """Whether the process that had the lock is known to have ended, when this one acquired it."""
        return self._lock.is_handed_over

    def try_acquire(self) -> bool:
        """Try once; return True if this process has the lock.

        Raises:
            StoreError: The database cannot be reached, or its folder is not writable.
        """
        return self._lock.acquire()

    def wait(self, seconds: float) -> None:
        """Wait until another process may have released the lock, at most this long."""
        self._lock.wait(seconds)

    def release(self) -> None:
        """Release the lock, if this process has it."""
        self._lock.release()

    def __enter__(self) -> Self:
        try:
            self._acquire(self._tries)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def renew(self) -> None:
        """Check the lock, and acquire it again if a server has restarted.

        Raises:
            StoreInUse: Another process has acquired it.
            StoreError: The server cannot be reached; try again.
        """
        self._acquire(1)

    def _acquire(self, tries: int) -> None:
        for left in reversed(range(tries)):
            if self._lock.acquire():
                return
            if left:
                self._sleep(INTERVAL)
        if self._platform:
            raise StoreInUse(f"another bot on {self._location.name} serves {self._platform}")
        raise StoreInUse(
            f"{self._location.name} is in use by another bot{self._lock.holder()}: stop that one, name another "
            "database in storage.url, or let this one wait for it with cluster.enabled = true in both"
        )


def is_in_use(url: str) -> bool:
    """Return whether a bot runs on the database; creates no file.

    Raises:
        StoreError: The database cannot be reached.
    """
    location = locate(url)
    if location.path is not None and not _lock_file(location.path).exists():
        return False
    try:
        with InstanceLock(url, timeout=0):
            return False
    except StoreInUse:
        return True


def _lock_file(database: Path) -> Path:
    # Resolved, so that one file has one lock under all its names.
    database = database.resolve()
    return database.with_name(f"{database.name}.lock")


class _FileLock:
    """flock on a file beside the database: closing the database itself would release SQLite's locks."""

    is_handed_over = True  # the kernel releases it once the process has ended

    def __init__(self, location: Location) -> None:
        self._location = location
        assert location.path is not None
        self._database = location.path.resolve()
        self._path = _lock_file(location.path)
        self._file: int | None = None
        self._is_held = False

    def acquire(self) -> bool:
        """Try once; return True if this process has the lock."""
        if self._is_held:
            return True
        with map_errors(self._location.name):
            self._check_names()
            if self._file is None:
                create_folder(self._location)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
                with suppress(OSError):  # another user owns it, and shares it
                    os.fchmod(self._file, self._mode())
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._is_held = True
            with suppress(OSError):  # disk full: opening the database has the better message
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        return True

    def _check_names(self) -> None:
        # Under another name the file has another lock, and SQLite another log.
        with suppress(FileNotFoundError):
            if (names := self._database.stat().st_nlink) > 1:
                file = self._location.name
                mount = next(each for each in self._database.parents if each.is_mount())
                raise StoreError(
                    f"{file} has {names} names (hard links), and programs that use two of them damage it: find them with "
                    f"find {mount} -xdev -samefile {file}, delete all but {file}, and for a backup run bot backup FILE"
                )

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def holder(self) -> str:
        """Return the process that has the lock, if known: " (process 12 on web-1)"."""
        with suppress(OSError, UnicodeDecodeError):
            if process := self._path.read_text(encoding="utf-8").strip():
                return f" ({process})"
        return ""

    def _mode(self) -> int:
        # The database's mode: any user who can open the lock file can keep the bot out.
        try:
            return 0o600 | stat.S_IMODE(self._database.stat().st_mode) & 0o666
        except FileNotFoundError:
            return 0o600

    def release(self) -> None:
        # The file is not deleted: one process could hold its lock, and another that of a new file.
        if self._file is not None:
            os.close(self._file)
            self._file, self._is_held = None, False


class _ServerLock:
    """Advisory lock of a separate session; the server releases it with the connection."""

    def __init__(self, location: Location, lease: float | None, platform: str, *, is_shared: bool) -> None:
        self._location = location
        self._lease = lease
        self._platform = platform
        self._try, self._unlock = (_TRY_SHARED, _UNLOCK_SHARED) if is_shared else (_TRY_LOCK, _UNLOCK)
        self._engine = migrator(location)
        self._session: Connection | None = None
        self._key: dict[str, object] = {}
        self._is_held = False
        # A session also ends with the server, or by an operator's command: its process may still run.
        self.is_handed_over = False

    def acquire(self) -> bool:
        try:
            with map_errors(self._location.name):
                session = self._session or self._open()
                if self._is_held:
                    session.exec_driver_sql("SELECT 1")
                else:
                    self._is_held = bool(session.exec_driver_sql(self._try, self._key).scalar_one())
                    self.is_handed_over = self.is_handed_over and self._is_held  # else a third process was faster
                    if not self._is_held and self._lease is not None:
                        about = {"checked": LOCK_SESSION, "lease": self._lease}
                        session.exec_driver_sql(_END_UNCHECKED, self._key | about)
        except StoreError:
            self._close()  # the next try opens a new session
            raise
        return self._is_held

    def _open(self) -> Connection:
        session = self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for name, value in _KEEPALIVE.items():
            session.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
        session.exec_driver_sql(f"LISTEN {_CHANNEL}")
        if self._lease is not None:
            session.exec_driver_sql("SELECT set_config('application_name', %(name)s, false)", {"name": _session_name()})
        schema: str = session.exec_driver_sql("SELECT current_schema()").scalar_one()
        if self._platform:
            self._key = {"kind": OF_PLATFORM, "name": f"{schema} {self._platform}"}
        else:
            self._key = {"kind": OF_DATABASE, "name": schema}
        return session

    def wait(self, seconds: float) -> None:
        import psycopg  # only where storage.url names a server

        assert self._session is not None, "the lock was tried before"
        driver = self._session.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        with suppress(psycopg.Error):  # the next try names the reason
            for notice in driver.notifies(timeout=seconds, stop_after=1):
                self.is_handed_over = self.is_handed_over or notice.payload == self._key["name"]

    def holder(self) -> str:
        return ""

    def release(self) -> None:
        if self._session is not None and self._is_held:
            with suppress(StoreError), map_errors(self._location.name):
                self._session.exec_driver_sql(self._unlock, self._key)
        self._close()

    def _close(self) -> None:
        self._is_held = False
        if self._session is not None:
            session, self._session = self._session, None
            with suppress(StoreError), map_errors(self._location.name):
                session.close()
