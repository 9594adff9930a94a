"""Damage rows of a SQLite database, as a broken disk or another program would."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import JSON, Boolean, DateTime, Integer

from bot.storage.schema import SafeText, UtcDateTime, exchanges

# SQL expressions; a file may hold any of them in any column.
_ANYTHING = ["0", "-1", "9223372036854775807", "-9223372036854775808", "1e308", "''", "'\x07\u202e'", "x'ff00fe'"]
_TEXTS = [
    "CAST(x'ff61c0' AS TEXT)",
    "CAST(x'eda080' AS TEXT)",
    "'a' || char(0) || 'b'",
    "printf('%.*c', 10000000, 'x')",
]
_LISTS = [
    "'[1, null, {}]'",
    "'{\"a\": 1}'",
    "'[\"torn'",
    "'nonsense'",
    "'null'",
    "printf('%.*c', 200000, '[')",
    "'\"m1\"'",
]
_TIMES = ["'yesterday'", "'9999-12-31 23:59:59.999999'", "'0001-01-01 00:00:00.000000'", "'2026-99-99 25:61:61'"]
_NUMBERS = ["'many'", "0.5", "9223372036854775807"]


def damage_rows(database: Path, seed: int, share: float = 0.5) -> set[int]:
    """Write hostile values into about this share of the rows; return their ids.  No bot may run."""
    dice = random.Random(seed)
    columns = [column for column in exchanges.columns if not column.primary_key]
    damaged = set()
    with closing(sqlite3.connect(database)) as connection:
        for (row,) in connection.execute("SELECT id FROM exchanges ORDER BY id").fetchall():
            if dice.random() >= share:
                continue
            damaged.add(row)
            for column in dice.sample(columns, dice.randint(1, 3)):
                value = dice.choice(_ANYTHING + _values_for(column.type))
                connection.execute(f"UPDATE OR IGNORE exchanges SET {column.name} = {value} WHERE id = ?", (row,))
        connection.commit()
    return damaged


def _values_for(kind: object) -> list[str]:
    match kind:
        case JSON():
            return _LISTS * 3
        case UtcDateTime() | DateTime():
            return _TIMES * 3
        case SafeText():
            return _TEXTS * 3
        case Integer() | Boolean():
            return _NUMBERS * 3
        case _:
            return []
