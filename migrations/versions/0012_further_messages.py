"""Messages that belong to a question beside its own."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("channels", sa.Column("is_context_told", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "further_messages",
        sa.Column("exchange", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("author_platform", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("author_id", sa.LargeBinary(), nullable=False),
        sa.Column("author_name", sa.LargeBinary(), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("files", sa.LargeBinary()),
        sa.Column("pictures", sa.LargeBinary()),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("text_key", sa.BigInteger()),
        sa.PrimaryKeyConstraint("exchange", "channel", "message", name=op.f("pk_further_messages")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "readable_since",
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("level", "place", name=op.f("pk_readable_since")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("further_messages", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_further_messages_platform_channel_message"), ["platform", "channel", "message"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_further_messages_author_platform_author"), ["author_platform", "author"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_further_messages_sent_at"), ["sent_at"], unique=False)


def downgrade() -> None:
    op.drop_table("readable_since")
    with op.batch_alter_table("further_messages", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_further_messages_sent_at"))
        batch_op.drop_index(batch_op.f("ix_further_messages_author_platform_author"))
        batch_op.drop_index(batch_op.f("ix_further_messages_platform_channel_message"))
    op.drop_table("further_messages")
    op.drop_column("channels", "is_context_told")
