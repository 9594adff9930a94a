"""Settings have the author of a text that another person restored."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("settings", sa.Column("text_author", sa.LargeBinary()))
    with op.batch_alter_table("settings", schema=None) as batch_op:
        batch_op.create_index(
            "ix_settings_restored",
            ["id"],
            unique=False,
            sqlite_where=sa.text("text_author IS NOT NULL"),
            postgresql_where=sa.text("text_author IS NOT NULL"),
        )


def downgrade() -> None:
    with op.batch_alter_table("settings", schema=None) as batch_op:
        batch_op.drop_index("ix_settings_restored")
    op.drop_column("settings", "text_author")
