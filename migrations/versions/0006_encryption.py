"""Encrypt texts; the bot does so with older rows while it serves."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_QUOTING = sa.text("quoted IS NOT NULL OR quoted_id IS NOT NULL")
_TEXTS = ["author_name", "text", "quoted", "locale", "answer", "notice"]
_KEYS = ["question_key", "quotation_key", "answer_key"]
_SETTINGS_INDEXES = [["place", "id"], ["set_at"]]


def upgrade() -> None:
    is_server = op.get_bind().dialect.name == "postgresql"
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for table in ("exchanges", "settings"):
        op.add_column(table, sa.Column("author_id", sa.LargeBinary() if is_server else sa.Text()))
    op.add_column("settings", sa.Column("text_key", sa.BigInteger()))
    for name in _KEYS:
        op.add_column("exchanges", sa.Column(name, sa.BigInteger()))
    op.create_table(
        "encryption",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("database", sa.LargeBinary(), nullable=False),
        sa.Column("pseudonym_key", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("encrypted_to", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_encryption"),
    )
    op.create_table(
        "text_keys",
        sa.Column("number", number, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_text_keys"),
    )
    op.create_table(
        "key_deletions",
        sa.Column("number", number, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_key_deletions"),
    )
    op.drop_index("ix_exchanges_quoting", "exchanges")
    _create_index(["platform", "channel", "quoted_id"])
    for indexed in _SETTINGS_INDEXES:
        op.create_index(f"ix_settings_{'_'.join(indexed)}", "settings", indexed)
    if is_server:  # a column of SQLite may hold anything
        for name in ("text", "author_name"):
            op.execute(f"ALTER TABLE settings ALTER COLUMN {name} TYPE bytea USING convert_to({name}, 'UTF8')")
        columns = ", ".join(
            f"ALTER COLUMN {name} TYPE bytea USING convert_to({name}::text, 'UTF8')"
            for name in [*_TEXTS, "author_roles"]
        )
        op.execute(f"ALTER TABLE exchanges {columns}")


def downgrade() -> None:
    if op.get_bind().execute(sa.text("SELECT id FROM encryption")).first() is not None:
        raise RuntimeError("texts are encrypted: this version's export reads them, no older version does")
    if op.get_bind().dialect.name == "postgresql":
        columns = [f"ALTER COLUMN {name} TYPE text USING convert_from({name}, 'UTF8')" for name in _TEXTS]
        columns.append("ALTER COLUMN author_roles TYPE json USING convert_from(author_roles, 'UTF8')::json")
        op.execute(f"ALTER TABLE exchanges {', '.join(columns)}")
    op.drop_index("ix_exchanges_quoting", "exchanges")
    _create_index(["platform", "channel"])
    for indexed in _SETTINGS_INDEXES:
        op.drop_index(f"ix_settings_{'_'.join(indexed)}", "settings")
    for table in ("key_deletions", "text_keys", "encryption"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for name in ("text", "author_name"):
            op.execute(f"ALTER TABLE settings ALTER COLUMN {name} TYPE text USING convert_from({name}, 'UTF8')")
    for name in ("author_id", "text_key"):
        op.drop_column("settings", name)
    for name in ("author_id", *_KEYS):
        op.drop_column("exchanges", name)


def _create_index(columns: list[str]) -> None:
    op.create_index("ix_exchanges_quoting", "exchanges", columns, sqlite_where=_QUOTING, postgresql_where=_QUOTING)
