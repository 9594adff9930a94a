"""Copy all rows from one database into another: SQLite to PostgreSQL, or back."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Row, Table, func, insert, select

from bot.errors import StoreError
from bot.storage import migrate
from bot.storage.connections import locate, migrator
from bot.storage.errors import map_errors
from bot.storage.export import BATCH, open_snapshot
from bot.storage.instance_lock import TIMEOUT, InstanceLock
from bot.storage.schema import exchanges, metadata


def copy_database(source: str, target: str, timeout: float = TIMEOUT) -> int:
    """Copy every row with its id into an empty database; return the number of exchanges.

    One transaction, which reads each row back and compares it before it commits.  The
    source is unchanged.  New rows of the target get higher ids than any of the source.

    Raises:
        StoreError: A bot runs on one of the two, the source is not up to date, the target is not
            empty, or one of them cannot be used.
    """
    here, there = locate(source), locate(target)
    if here.name == there.name:
        raise StoreError(f"source and target are both {there.name}: name another target")
    with InstanceLock(source, timeout=timeout), open_snapshot(source) as origin, InstanceLock(target, timeout=timeout):
        migrate.upgrade(target)
        with map_errors(there.name), migrator(there).begin() as goal:
            if any(_count(goal, table) for table in metadata.sorted_tables):
                raise StoreError(f"{there.name} is not empty: copy into an empty database")
            for table in metadata.sorted_tables:
                for rows in _batches(origin, table, here.name):
                    goal.execute(insert(table), [dict(row._mapping) for row in rows])
                pairs = zip_longest(_batches(origin, table, here.name), _batches(goal, table, there.name))
                if any(before != after for before, after in pairs):
                    raise StoreError(
                        f"verification failed: rows in {there.name} differ, nothing was stored: try another target"
                    )
            _set_last_id(goal, _last_id(origin))
            return _count(goal, exchanges)


def _batches(connection: Connection, table: Table, name: str) -> Iterator[Sequence[Row[Any]]]:
    query = select(table).order_by(*table.primary_key).execution_options(yield_per=BATCH)
    with map_errors(name):
        yield from connection.execute(query).partitions()


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _last_id(connection: Connection) -> int:
    """Return the highest id ever assigned, also to deleted rows."""
    if connection.dialect.name == "sqlite":
        sequence = connection.exec_driver_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = 'exchanges'")
    else:
        sequence = connection.exec_driver_sql(
            "SELECT last_value FROM pg_sequences WHERE pg_get_serial_sequence('exchanges', 'id') = "
            "quote_ident(schemaname) || '.' || quote_ident(sequencename)"
        )
    highest = connection.execute(select(func.max(exchanges.c.id))).scalar()
    return max(sequence.scalar() or 0, highest or 0)


def _set_last_id(connection: Connection, last: int) -> None:
    if last == 0:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'exchanges'")
        connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('exchanges', ?)", (last,))
    else:
        connection.execute(select(func.setval(func.pg_get_serial_sequence("exchanges", "id"), last)))
