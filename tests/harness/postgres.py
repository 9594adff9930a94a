"""A PostgreSQL server for the tests: in a temporary folder, on a free loopback port."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from bot.storage import migrate
from bot.storage.schema import metadata
from bot.storage.sql import SqlStore
from tests.harness.fakes.clock import JumpingClock
from tests.harness.ports import reserved_port
from tests.storage import memory_folder

USER, PASSWORD = "bot", "open sesame/@:%?#"
TEMPLATE = "migrated"
TIMEOUT = 600  # seconds for a start or a stop on a busy machine
ROOM = 1 << 30  # bytes for the data folder of a whole run

MISSING = (
    "PostgreSQL's server is not installed, its tests are skipped: "
    "apt-get install postgresql (Debian, Ubuntu) or brew install postgresql"
)


def programs() -> Path | None:
    """Return the folder of initdb and postgres, of the newest version; None if not installed."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    # Debian does not put them on the path.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    """A server with a migrated template database; a context manager that starts and stops it."""

    def __init__(self, folder: Path) -> None:
        self._programs = folder
        self._names = (f"test_{number}" for number in count(1))
        self._spare: list[str] = []

    def __enter__(self) -> Self:
        self._held = ExitStack()
        self.port = self._held.enter_context(reserved_port())
        # Not pytest's folder, which the server's user cannot enter.  A short path, because of the socket.
        self.folder = Path(tempfile.mkdtemp(prefix="bot-pg-", dir=memory_folder(ROOM)))
        try:
            self._initialise()
            self.start()
            self.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
            migrate.upgrade(self.url(TEMPLATE))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)  # without a last checkpoint
        self._held.close()
        shutil.rmtree(self.folder)

    def url(self, database: str, *, user: str = USER, password: str | None = PASSWORD) -> str:
        """Return a storage.url for a database of this server."""
        escaped = "" if password is None else ":" + "".join(f"%{byte:02X}" for byte in password.encode())
        return f"postgresql+psycopg://{user}{escaped}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Create a migrated database from the template; return its name."""
        name = next(self._names)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self.run(create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        return name

    @contextmanager
    def lent(self) -> Iterator[str]:
        """Lend a database for a test that changes rows only: its tables are truncated for the next one."""
        name = self._spare.pop() if self._spare else self.database()
        yield name
        self.run(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY", name)
        self._spare.append(name)

    @asynccontextmanager
    async def store(self, database: str) -> AsyncIterator[SqlStore]:
        async with SqlStore(self.url(database), JumpingClock()) as store:
            yield store

    @contextmanager
    def connected(self, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Open a connection beside the store's, in autocommit mode."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            yield connection

    def run(self, statement: str | sql.Composed, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement; return its rows."""
        query = statement.encode() if isinstance(statement, str) else statement
        with self.connected(database) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def end_sessions(self, database: str) -> None:
        """End all connections to the database, as a server does that restarts."""
        self.run(
            sql.SQL("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = {}").format(database)
        )

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_as_user(),
            )
        waiting = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        for _ in range(TIMEOUT * 20):
            if subprocess.run(waiting, check=False).returncode == 0:
                return
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise RuntimeError((self.folder / "log").read_text(errors="replace"))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT aborts running statements, SIGQUIT is a crash."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.send_signal(how)
            process.wait(TIMEOUT)
            self._process = None

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialise(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        if (user := _server_user()) is not None:
            for path in (self.folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        subprocess.run(
            [
                self._programs / "initdb",
                *("--pgdata", self._data, "--username", USER, "--pwfile", password),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **_as_user(),
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 40,
            # No data outlives the tests.
            "fsync": "off",
            "full_page_writes": "off",
            # Not UTC, and with historical changes: timestamps must not depend on it.
            "timezone": "Asia/Shanghai",
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


def _server_user() -> pwd.struct_passwd | None:
    """Return the user for the server if this process is root, as which it refuses to run."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _as_user() -> dict[str, Any]:
    user = _server_user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
