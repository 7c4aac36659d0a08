"""Tenants, their namespaces and keys, rights, and who did what."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "tenants",
        sa.Column("name", _exact(96), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("cache_secret", _exact(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "namespaces",
        sa.Column("name", _exact(96), nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_namespaces_tenant"),
        sa.PrimaryKeyConstraint("name", name="pk_namespaces"),
    )
    op.create_index("ix_namespaces_tenant", "namespaces", ["tenant"])
    op.create_table(
        "keys",
        sa.Column("id", _exact(16), nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("hash", _exact(64), nullable=False),
        sa.Column("scopes", _exact(128), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.Column("last_used", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_keys_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])
    _rights()
    _trail()


def _rights() -> None:
    op.create_table(
        "grants",
        sa.Column("kind", _exact(16), nullable=False),
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("visibility", _exact(16), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", name="pk_grants"),
    )
    op.create_table(
        "shares",
        sa.Column("kind", _exact(16), nullable=False),
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", "tenant", name="pk_shares"),
    )
    op.create_index("ix_shares_tenant", "shares", ["tenant"])


def _trail() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.Column("key", _exact(16), nullable=True),
        sa.Column("action", _exact(64), nullable=False),
        sa.Column("subject", sa.String(512), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_key_id", "audit", ["key", "id"])
    op.create_index("ix_audit_tenant_id", "audit", ["tenant", "id"])
    op.create_table(
        "loadout_use",
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", _exact(96), nullable=False),
        sa.Column("key", _exact(16), nullable=False),
        sa.Column("loadout", _exact(80), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "tenant", "key", "loadout", name="pk_loadout_use"),
    )
    op.create_index("ix_loadout_use_loadout_hour", "loadout_use", ["loadout", "hour"])
    op.create_index("ix_loadout_use_tenant_hour", "loadout_use", ["tenant", "hour"])
