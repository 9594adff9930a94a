"""SQLite's driver for SQLAlchemy with one call to the connection's thread per statement.

SQLAlchemy's own adapter for aiosqlite makes four: to create a cursor, execute, fetch and close.  Each wakes
that thread and then the event loop, which costs more CPU time than most statements of the store.
"""

import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import aiosqlite
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
)
from sqlalchemy.util import EMPTY_DICT


class OneCallCursor(AsyncAdapt_aiosqlite_cursor):
    """Cursor that is opened, executed, read to its end and closed in one call."""

    __slots__ = ()

    _adapt_connection: "OneCallConnection"
    _awaitable_cursor_close = False

    def __init__(self, adapt_connection: Any) -> None:
        self._adapt_connection = adapt_connection
        self._connection = adapt_connection._connection
        self._soft_closed_memoized = EMPTY_DICT
        self._rows = deque()

    async def _execute_async(self, operation: str, parameters: Any) -> None:
        await self._run(sqlite3.Connection.execute, operation, parameters or ())

    async def _executemany_async(self, operation: str, seq_of_parameters: Any) -> None:
        await self._run(sqlite3.Connection.executemany, operation, seq_of_parameters)

    async def _run(self, *statement: Any) -> None:
        connection = self._adapt_connection
        async with connection._execute_mutex:
            begin, connection.begin = connection.begin, None
            connection.has_begun |= begin is not None
            self._cursor, self._rows = await self._connection._execute(_run, self._connection._conn, begin, *statement)

    def close(self) -> None:
        self._rows.clear()


def _run(
    connection: sqlite3.Connection, begin: str | None, execute: Any, operation: str, parameters: Sequence[Any]
) -> tuple[sqlite3.Cursor, deque[Any]]:
    """Execute a statement; return its rows, and its cursor, closed, for its description and counts."""
    if begin is not None:
        connection.execute(begin)
    with closing(execute(connection, operation, parameters)) as cursor:
        return cursor, deque(cursor.fetchall() if cursor.description else ())


class OneCallConnection(AsyncAdapt_aiosqlite_connection):
    """Connection that executes `begin` in the call of the next statement, and ends only what has begun."""

    __slots__ = ("begin", "has_begun")

    _cursor_cls = OneCallCursor

    def __init__(self, dbapi: Any, connection: Any) -> None:
        super().__init__(dbapi, connection)
        self.begin: str | None = None
        self.has_begun = False

    def commit(self) -> None:
        if self.has_begun:
            super().commit()
        self._reset()

    def rollback(self) -> None:
        # The pool asks for it whenever a connection comes back, also after a commit.
        if self.has_begun:
            super().rollback()
        self._reset()

    def _reset(self) -> None:
        self.begin = None
        self.has_begun = False


class Driver(AsyncAdapt_aiosqlite_dbapi):
    """Module of the driver, as `create_async_engine` takes it."""

    def __init__(self) -> None:
        super().__init__(aiosqlite, sqlite3)

    def connect(self, *arg: Any, **kw: Any) -> OneCallConnection:
        return OneCallConnection(self, super().connect(*arg, **kw)._connection)
