"""Questions have pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exchanges", sa.Column("pictures", sa.LargeBinary()))
    op.add_column("exchanges", sa.Column("quoted_pictures", sa.LargeBinary()))


def downgrade() -> None:
    op.drop_column("exchanges", "quoted_pictures")
    op.drop_column("exchanges", "pictures")
