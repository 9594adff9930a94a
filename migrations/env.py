"""Run the migrations on the connection of bot/storage/migrate.py."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator

from bot.storage.schema import metadata

ADVISORY_LOCK = 0x626F74  # "bot"; the number is valid in one database only


def plain_types(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Render SQLAlchemy's types instead of ours: a migration must not change with the code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


connection: Connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Of several bots that start together one migrates; the others wait without a time limit, and
    # find nothing left to do.
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
    # A migration that waits for a table lock blocks every later query on the table.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_item=plain_types,
    # SQLite cannot alter a column: Alembic copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
