"""Claims: the process that works on an exchange, and the number of claims so far."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exchanges", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("exchanges", sa.Column("fence", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("exchanges", sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("exchanges", "claimed_until")
    op.drop_column("exchanges", "fence")
    op.drop_column("exchanges", "owner")
