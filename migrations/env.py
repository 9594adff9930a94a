"""Runs the migrations on the connection that bot/storage/migrate.py hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator

from bot.storage.schema import metadata

MIGRATING = 0x626F74  # an advisory lock's number, which is only ours in a database of ours: "bot"


def plain_types(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write SQLAlchemy's types, not ours: a migration must mean the same in a year."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


connection: Connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Of several bots that start at once one migrates; the others wait, however long that
    # takes, and find nothing left to do.
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATING})")
    # A table that somebody else holds would keep waiting all who come after us.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_item=plain_types,
    # SQLite cannot alter a column: its tables are copied.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
