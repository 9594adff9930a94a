"""Votes on answers."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exchanges", sa.Column("model", sa.Text()))
    op.add_column("exchanges", sa.Column("persona", sa.Text()))
    op.create_table(
        "feedback",
        sa.Column("exchange", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("voter", sa.Text(), nullable=False),
        sa.Column("vote", sa.Text(), nullable=False),
        sa.Column("voted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("exchange", "voter", name=op.f("pk_feedback")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("feedback", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_feedback_voter"), ["voter"], unique=False)
    op.create_table(
        "consents",
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("agreed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("person", name=op.f("pk_consents")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("consents")
    with op.batch_alter_table("feedback", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_feedback_voter"))
    op.drop_table("feedback")
    op.drop_column("exchanges", "persona")
    op.drop_column("exchanges", "model")
