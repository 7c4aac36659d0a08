"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LATEST: dict[str, Any] = {
    "sqlite_where": sa.text("is_latest = 1"),
    "postgresql_where": sa.text("is_latest"),
}


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "files",
        sa.Column("digest", _exact(64), nullable=False),
        sa.Column("claimed", sa.Double(), nullable=False),
        sa.Column("collected", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_files"),
    )
    op.create_table(
        "generation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generation"),
    )
    op.create_table(
        "loadout_names",
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("path", _exact(193), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_loadout_names"),
    )
    op.create_table(
        "names",
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("namespace", _exact(96), nullable=False),
        sa.Column("path", _exact(193), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_names"),
    )
    op.create_index("ix_names_namespace_key", "names", ["namespace", "key"])
    op.create_table(
        "loadouts",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("is_latest", sa.Boolean(), nullable=False),
        sa.Column("digest", _exact(64), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("publisher", sa.String(length=512), nullable=True),
        sa.ForeignKeyConstraint(["key"], ["loadout_names.key"], name="fk_loadouts_key"),
        sa.PrimaryKeyConstraint("id", name="pk_loadouts"),
        sa.UniqueConstraint("key", "number", name="uq_loadouts_key_number"),
    )
    op.create_index("ix_loadouts_digest", "loadouts", ["digest"])
    op.create_index("uq_loadouts_latest", "loadouts", ["key"], unique=True, **_LATEST)
    op.create_table(
        "versions",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", _exact(64), nullable=False),
        sa.Column("is_latest", sa.Boolean(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("publisher", sa.String(length=512), nullable=True),
        sa.Column("downloads", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("base_name", _exact(1024), nullable=True),
        sa.Column("base_fingerprint", _exact(128), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("nnz", sa.BigInteger(), nullable=False),
        sa.Column("numel", sa.BigInteger(), nullable=False),
        sa.Column("method", sa.String(length=256), nullable=True),
        sa.Column("license", _exact(1024), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("card", sa.Text(), nullable=True),
        sa.Column("search", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["names.key"], name="fk_versions_key"),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("key", "number", name="uq_versions_key_number"),
    )
    op.create_index("ix_versions_base_fingerprint", "versions", ["base_fingerprint"])
    op.create_index("ix_versions_base_name", "versions", ["base_name"])
    op.create_index("ix_versions_created_id", "versions", ["created", "id"])
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_index("ix_versions_downloads_id", "versions", ["downloads", "id"])
    op.create_index("ix_versions_latest_created", "versions", ["created", "id"], **_LATEST)
    op.create_index("ix_versions_latest_downloads", "versions", ["downloads", "id"], **_LATEST)
    op.create_index("ix_versions_latest_size", "versions", ["size", "id"], **_LATEST)
    op.create_index("ix_versions_license", "versions", ["license"])
    op.create_index("ix_versions_size_id", "versions", ["size", "id"])
    op.create_index("uq_versions_latest", "versions", ["key"], unique=True, **_LATEST)
    op.create_table(
        "labels",
        sa.Column("version_id", _KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", _exact(256), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name="fk_labels_version_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_labels"),
    )
    op.create_index("ix_labels_text", "labels", ["text"])
    op.create_table(
        "languages",
        sa.Column("version_id", _KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", _exact(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name="fk_languages_version_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_languages"),
    )
    op.create_index("ix_languages_text", "languages", ["text"])
    op.create_table(
        "loadout_vectors",
        sa.Column("loadout_id", _KEY, nullable=False),
        sa.Column("digest", _exact(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["loadout_id"],
            ["loadouts.id"],
            name="fk_loadout_vectors_loadout_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("loadout_id", "digest", name="pk_loadout_vectors"),
    )
    op.create_index("ix_loadout_vectors_digest", "loadout_vectors", ["digest"])
    op.create_table(
        "tags",
        sa.Column("key", _exact(193), nullable=False),
        sa.Column("tag", _exact(64), nullable=False),
        sa.Column("version_id", _KEY, nullable=False),
        sa.ForeignKeyConstraint(["key"], ["names.key"], name="fk_tags_key"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name="fk_tags_version_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", "tag", name="pk_tags"),
    )
    op.create_index("ix_tags_tag", "tags", ["tag"])
    op.create_index("ix_tags_version_id", "tags", ["version_id"])
    op.execute("INSERT INTO generation (id, value) VALUES (1, 0)")
