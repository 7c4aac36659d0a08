"""What each key used, by day and model."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEYS = (("day", 10), ("tenant", 256), ("key", 256), ("model", 256))
_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "errors")


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "usage",
        *(sa.Column(name, _exact(length), nullable=False) for name, length in _KEYS),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.PrimaryKeyConstraint(*(name for name, _ in _KEYS), name="pk_usage"),
    )
    op.create_table(
        "usage_writers",
        sa.Column("id", _exact(32), nullable=False),
        sa.Column("flushed", sa.BigInteger(), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_writers"),
    )
