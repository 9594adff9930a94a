"""Parts and channels as tables, and indexes of the rows that a query needs."""

from typing import Literal

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A damaged list has no parts.
_FILL_PARTS = {
    "sqlite": """
        INSERT INTO parts (exchange, number, message)
        SELECT exchanges.id, part.key, part.value
        FROM exchanges, json_each(CASE WHEN json_valid(exchanges.parts) THEN exchanges.parts ELSE '[]' END) AS part
        WHERE part.type = 'text'
        """,
    "postgresql": """
        INSERT INTO parts (exchange, number, message)
        SELECT exchanges.id, part.number - 1, part.message
        FROM exchanges, json_array_elements_text(
            CASE WHEN json_typeof(exchanges.parts) = 'array' THEN exchanges.parts ELSE '[]' END
        ) WITH ORDINALITY AS part (message, number)
        WHERE part.message IS NOT NULL
        """,
}
_FILL_CHANNELS = """
    INSERT INTO channels (platform, channel, thread, last_exchange, last_message)
    SELECT platform, channel, coalesce(thread, ''), id, message
    FROM exchanges
    WHERE id IN (
        SELECT max(id) FROM exchanges WHERE author_platform <> '' GROUP BY platform, channel, coalesce(thread, '')
    )
    """
_LIST_PARTS = {
    "sqlite": """
        UPDATE exchanges SET parts = (
            SELECT json_group_array(message)
            FROM (SELECT message FROM parts WHERE exchange = exchanges.id ORDER BY number)
        )
        """,
    "postgresql": """
        UPDATE exchanges SET parts = (
            SELECT coalesce(json_agg(message ORDER BY number), '[]') FROM parts WHERE exchange = exchanges.id
        )
        """,
}

_KEPT, _OWED = "status != 'cleared'", "status IN ('open', 'answered')"
_QUOTING = "quoted IS NOT NULL OR quoted_id IS NOT NULL"
_INDEXES = {
    "kept": (_KEPT, ["platform", "channel", "thread", "id"]),
    "said": (_KEPT, ["platform", "sent_at"]),
    "aged": (_KEPT, ["sent_at"]),
    "owed": (_OWED, ["platform", "id"]),
    "quoting": (_QUOTING, ["platform", "channel"]),
}
_OLD_INDEXES = {
    "ix_exchanges_platform_channel_thread_id": ["platform", "channel", "thread", "id"],
    "ix_exchanges_platform_status": ["platform", "status"],
}


def upgrade() -> None:
    op.create_table(
        "parts",
        sa.Column("exchange", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("exchange", "number", name="pk_parts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "channels",
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("thread", sa.Text(), nullable=False),
        sa.Column("last_exchange", sa.BigInteger(), nullable=False),
        sa.Column("last_message", sa.Text(), nullable=False),
        sa.Column("is_shortening_told", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("platform", "channel", "thread", name="pk_channels"),
        sqlite_with_rowid=False,
    )
    op.execute(_FILL_PARTS[op.get_bind().dialect.name])
    op.execute(_FILL_CHANNELS)
    op.create_index("ix_parts_message", "parts", ["message"])
    for name in _OLD_INDEXES:
        op.drop_index(name, "exchanges")
    op.drop_column("exchanges", "parts")
    for name, (condition, columns) in _INDEXES.items():
        where = sa.text(condition)
        op.create_index(f"ix_exchanges_{name}", "exchanges", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(f"ix_exchanges_{name}", "exchanges")
    dialect = op.get_bind().dialect.name
    # SQLite's table is copied, so that the column has its old place again.
    recreate: Literal["always", "never"] = "always" if dialect == "sqlite" else "never"
    with op.batch_alter_table("exchanges", recreate=recreate, table_kwargs={"sqlite_autoincrement": True}) as table:
        parts = sa.Column("parts", sa.JSON(), nullable=False, server_default="[]")
        table.add_column(parts, insert_after="completion_tokens" if recreate == "always" else None)
    op.execute(_LIST_PARTS[dialect])
    with op.batch_alter_table("exchanges", recreate=recreate, table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("parts", server_default=None)
    for name, columns in _OLD_INDEXES.items():
        op.create_index(name, "exchanges", columns)
    op.drop_table("channels")
    op.drop_table("parts")
