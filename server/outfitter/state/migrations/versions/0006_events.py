"""What experiments saw: requests, units and feedback."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    exact = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
    return sa.Column(name, exact, nullable=nullable)


def _numbers(kind: sa.types.TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=True) for name in names]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "experiment_requests",
        _text("experiment", 193),
        _text("request_id", 128),
        _text("tenant", 96),
        _text("variant", 64),
        sa.Column("version", sa.Integer(), nullable=False),
        _text("unit", 200),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("is_counted", sa.Boolean(), nullable=False),
        sa.Column("is_shadow", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error", sa.Integer(), nullable=False),
        *_numbers(sa.Double(), "latency_s", "first_token_s", "inter_token_s"),
        *_numbers(_COUNT, "prompt_tokens", "completion_tokens", "cached_tokens"),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("finish_reason", sa.String(64), nullable=True),
        sa.Column(
            "grades", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True
        ),
        sa.PrimaryKeyConstraint(
            "experiment", "request_id", "tenant", "variant", name="pk_experiment_requests"
        ),
    )
    op.create_table(
        "experiment_units",
        _text("experiment", 193),
        _text("unit", 200),
        _text("variant", 64),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("experiment", "unit", name="pk_experiment_units"),
    )
    op.create_index("ix_experiment_units_experiment_at", "experiment_units", ["experiment", "at"])
    op.create_table(
        "feedback",
        _text("tenant", 96),
        _text("request_id", 128),
        _text("metric", 64),
        _text("id", 64),
        sa.Column("value", sa.Double(), nullable=True),
        _text("label", 256, nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id", "metric", "id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_at", "feedback", ["at"])
