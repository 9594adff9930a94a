"""Deletions of keys have numbers."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("encryption", sa.Column("deletions", sa.BigInteger()))
    op.add_column("encryption", sa.Column("began", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("encryption", "began")
    op.drop_column("encryption", "deletions")
