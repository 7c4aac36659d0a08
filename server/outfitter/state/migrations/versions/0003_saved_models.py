"""Saved loadouts are models: on what terms they are served."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    forbid = sa.Column("request_vectors", sa.String(16), nullable=False, server_default="forbid")
    op.add_column("loadouts", forbid)
    op.add_column("loadouts", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("loadouts", sa.Column("base_fingerprint", _exact(128), nullable=True))
    op.add_column("loadouts", sa.Column("described", sa.Text(), nullable=True))
