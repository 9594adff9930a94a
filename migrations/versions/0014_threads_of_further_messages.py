"""The threads where further messages were said."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_INDEX = "ix_further_messages_platform_channel_thread"


def upgrade() -> None:
    op.add_column("further_messages", sa.Column("thread", sa.Text()))
    where = sa.text("thread IS NOT NULL")
    columns = ["platform", "channel", "thread"]
    op.create_index(_INDEX, "further_messages", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index(_INDEX, table_name="further_messages")
    op.drop_column("further_messages", "thread")
