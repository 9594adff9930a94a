"""Quotations: the id of the quoted message, and whether it is one of the bot's own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exchanges", sa.Column("quoted_id", sa.Text(), nullable=True))
    op.add_column("exchanges", sa.Column("quotes_bot", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("exchanges", "quotes_bot")
    op.drop_column("exchanges", "quoted_id")
