"""Experiments, every version of each, and the files that they need."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PATH = 193


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _key() -> sa.Column[str]:
    return sa.Column("key", _exact(_PATH), nullable=False)


def _of(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_key"
    return sa.ForeignKeyConstraint(["key"], ["experiments.key"], name=name, ondelete="CASCADE")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "experiments",
        _key(),
        sa.Column("path", _exact(_PATH), nullable=False),
        sa.Column("seed", _exact(_PATH), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", _exact(16), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_experiments"),
    )
    op.create_index("ix_experiments_status", "experiments", ["status"])
    op.create_table(
        "experiment_versions",
        _key(),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", _exact(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("allotment", sa.Text(), nullable=True),
        sa.Column("pins", sa.Text(), nullable=False),
        sa.Column("winner", sa.String(64), nullable=True),
        sa.Column("pending", sa.Text(), nullable=True),
        sa.Column("forbidden", sa.Text(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=True),
        sa.Column("stepped", sa.BigInteger(), nullable=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.Column("actor", _exact(16), nullable=True),
        sa.Column("figures", sa.Text(), nullable=False),
        _of("experiment_versions"),
        sa.PrimaryKeyConstraint("key", "number", name="pk_experiment_versions"),
    )
    op.create_table(
        "experiment_vectors",
        _key(),
        sa.Column("digest", _exact(64), nullable=False),
        _of("experiment_vectors"),
        sa.PrimaryKeyConstraint("key", "digest", name="pk_experiment_vectors"),
    )
    op.create_index("ix_experiment_vectors_digest", "experiment_vectors", ["digest"])
