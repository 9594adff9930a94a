"""Copy all rows from one database into another: SQLite to PostgreSQL, or back."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from bot.domain import Status
from bot.errors import StoreError
from bot.storage import migrate
from bot.storage.connections import locate, migrator
from bot.storage.encryption import DamagedRow, key_columns, pseudonyms
from bot.storage.errors import map_errors
from bot.storage.export import BATCH, open_snapshot, reading_vault
from bot.storage.instance_lock import TIMEOUT, InstanceLock
from bot.storage.keys import keys_of
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.rows import BLANK, UNANSWERED
from bot.storage.schema import (
    encryption,
    exchanges,
    further_messages,
    key_deletions,
    metadata,
    settings,
    text_keys,
)
from bot.storage.settings import without_texts
from bot.storage.vault import AnyRow, KeyChanges, Vault

# Keys and what belongs to them are of one database.
_TABLES = [each for each in metadata.sorted_tables if each not in (encryption, text_keys, key_deletions)]


def copy_database(
    source: str,
    target: str,
    timeout: float = TIMEOUT,
    *,
    master: MasterKeys = NO_MASTER_KEY,
    target_setting: str = "--to",
) -> int:
    """Copy every row with its id into an empty database; return the number of exchanges.

    Texts get keys of the target's own.  People keep their pseudonyms: those without a stored text have nothing else.

    One transaction, which reads each row back and compares it before it commits.  The
    source is unchanged.  New rows of the target get higher ids than any of the source.
    A row that cannot be decrypted is copied as a failed one.

    Raises:
        StoreError: A bot runs on one of the two, the source is not up to date, the target is not
            empty, or one of them cannot be used.
    """
    here = locate(source)
    with _naming(target_setting):
        there = locate(target)
    if here.name == there.name:
        raise StoreError(f"source and target are both {there.name}: name another target")
    with (
        _naming(target_setting, here.name),
        InstanceLock(source, timeout=timeout),
        open_snapshot(source) as origin,
        reading_vault(source, origin, master) as old,
        InstanceLock(target, timeout=timeout),
        closing(keys_of(there, master)) as keys,
    ):
        migrate.upgrade(target)
        with map_errors(there.name), migrator(there).begin() as goal:
            if any(_count(goal, table) for table in _TABLES):
                raise StoreError(f"{there.name} is not empty: copy into an empty database")
            new = Vault(keys)
            changes = KeyChanges(goal, new)
            new.open(changes, old.pseudonym_key)
            for table in _TABLES:
                for rows in _batches(origin, table, old, here.name):
                    goal.execute(insert(table), [_encrypted(table, row, new, changes) for row in rows])
                pairs = zip_longest(_batches(origin, table, old, here.name), _batches(goal, table, new, there.name))
                if any(before != after for before, after in pairs):
                    raise StoreError(
                        f"verification failed: rows in {there.name} differ, nothing was stored: try another target"
                    )
            _set_last_id(goal, _last_id(origin))
            changes.prepare()
            return _count(goal, exchanges)


@contextmanager
def _naming(setting: str, source: str | None = None) -> Iterator[None]:
    """Let errors about the target name its setting in place of storage.url."""
    try:
        yield
    except StoreError as error:
        if source is not None and str(error).startswith(f"{source} "):
            raise
        raise type(error)(re.sub(r"storage\.url|BOT_STORAGE__URL", setting, str(error))) from error


def _batches(connection: Connection, table: Table, vault: Vault, name: str) -> Iterator[list[dict[str, Any]]]:
    """Yield rows as they read in any database: without keys, which are of one database, and what follows from ids."""
    query = select(table).order_by(*table.primary_key).execution_options(yield_per=BATCH)
    with map_errors(name):
        for rows in connection.execute(query).partitions():
            decrypted = zip(rows, vault.decrypt(connection, table, rows), strict=True)
            yield [_comparable(table, row, texts) for row, texts in decrypted]


def _comparable(table: Table, row: AnyRow, texts: dict[str, Any] | DamagedRow) -> dict[str, Any]:
    if isinstance(texts, DamagedRow):
        texts = _without_texts(table, row)
    for column, person in pseudonyms(table).items():
        texts[person] = texts[column] or None if texts[person] is None else texts[person]
    return {name: value for name, value in texts.items() if name not in key_columns(table) | pseudonyms(table)}


def _without_texts(table: Table, row: AnyRow) -> dict[str, Any]:
    """Return a row that cannot be decrypted: an exchange has failed then, a setting has lost its author."""
    if table is settings:
        return without_texts(row)
    if table is further_messages:
        nothing = {"author_id": "", "author_name": "", "text": "", "files": None, "pictures": None}
        return row._asdict() | nothing
    assert table is exchanges, "another table with texts"
    nothing = {"author_name": "", "author_roles": "", "text": "", "status": Status.FAILED}
    return row._asdict() | BLANK | UNANSWERED | nothing


def _encrypted(table: Table, row: dict[str, Any], vault: Vault, changes: KeyChanges) -> dict[str, Any]:
    values = dict(row)
    for key_column, columns in key_columns(table).items():
        values |= changes.encrypt(table, key_column, {column.name: row[column.name] for column in columns})
    for column, person in pseudonyms(table).items():
        values[column] = vault.pseudonym(row["author_platform"], row[person] or "")
    return values


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
