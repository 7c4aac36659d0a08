"""The catalog's tables. Names and digests compare byte by byte in every database."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from outfitter.state.records import FORBID

MAX_PART = 96
MAX_PATH = 2 * MAX_PART + 1
MAX_USAGE_TEXT = 256
MAX_KEY = 16
_BIG_KEY = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself there
_LATEST: dict[str, Any] = {
    "sqlite_where": text("is_latest = 1"),
    "postgresql_where": text("is_latest"),
}


def exact(length: int) -> String:
    """Text whose order is that of its bytes, whatever the language of the database."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class GenerationRow(Base):
    """One row. Whoever changes an answer counts it up first, and so waits for the one before."""

    __tablename__ = "generation"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(BigInteger)


class NameRow(Base):
    """A name that has or had versions. key: its path in lower case. path: as it was published."""

    __tablename__ = "names"
    __table_args__ = (Index(None, "namespace", "key"),)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    namespace: Mapped[str] = mapped_column(exact(MAX_PART))
    path: Mapped[str] = mapped_column(exact(MAX_PATH))
    next_version: Mapped[int] = mapped_column(Integer)


class VersionRow(Base):
    """A version, or the tombstone of one.

    search: what text is looked for in, folded. is_latest: the newest of its name that is not
    deleted.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("key", "number"),
        Index("uq_versions_latest", "key", unique=True, **_LATEST),
        Index("ix_versions_latest_created", "created", "id", **_LATEST),
        Index("ix_versions_latest_downloads", "downloads", "id", **_LATEST),
        Index("ix_versions_latest_size", "size", "id", **_LATEST),
        Index(None, "created", "id"),
        Index(None, "downloads", "id"),
        Index(None, "size", "id"),
    )
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), ForeignKey("names.key"))
    number: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(exact(64), index=True)
    is_latest: Mapped[bool]
    deleted: Mapped[bool] = mapped_column(default=False)
    created: Mapped[int] = mapped_column(BigInteger)
    publisher: Mapped[str | None] = mapped_column(String(512))
    downloads: Mapped[int] = mapped_column(BigInteger, default=0)
    signature: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    base_name: Mapped[str | None] = mapped_column(exact(1024), index=True)
    base_fingerprint: Mapped[str | None] = mapped_column(exact(128), index=True)
    parameters: Mapped[int] = mapped_column(BigInteger)
    nnz: Mapped[int] = mapped_column(BigInteger)
    numel: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str | None] = mapped_column(String(256))
    license: Mapped[str | None] = mapped_column(exact(1024), index=True)
    description: Mapped[str | None] = mapped_column(Text)
    card: Mapped[str | None] = mapped_column(Text)
    search: Mapped[str] = mapped_column(Text)

    name: Mapped[NameRow] = relationship(lazy="raise", viewonly=True)
    labels: Mapped[list["LabelRow"]] = relationship(
        lazy="raise", order_by="LabelRow.position", cascade="all, delete-orphan"
    )
    languages: Mapped[list["LanguageRow"]] = relationship(
        lazy="raise", order_by="LanguageRow.position", cascade="all, delete-orphan"
    )
    tags: Mapped[list["TagRow"]] = relationship(lazy="raise", order_by="TagRow.tag", viewonly=True)


class LabelRow(Base):
    """A label of a version."""

    __tablename__ = "labels"
    version_id: Mapped[int] = mapped_column(
        ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str] = mapped_column(exact(256), index=True)


class LanguageRow(Base):
    """A language of a version."""

    __tablename__ = "languages"
    version_id: Mapped[int] = mapped_column(
        ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str] = mapped_column(exact(64), index=True)


class TagRow(Base):
    """A tag of a name. `latest` is not among them: it is computed."""

    __tablename__ = "tags"
    __table_args__ = (Index(None, "tag"),)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), ForeignKey("names.key"), primary_key=True)
    tag: Mapped[str] = mapped_column(exact(64), primary_key=True)
    version_id: Mapped[int] = mapped_column(
        ForeignKey("versions.id", ondelete="CASCADE"), index=True
    )


class FileRow(Base):
    """A file that was claimed or collected; its row is the lock of its fate.

    claimed: Unix time of the last claim, seconds. collected: dropped, and not claimed since.
    """

    __tablename__ = "files"
    digest: Mapped[str] = mapped_column(exact(64), primary_key=True)
    claimed: Mapped[float] = mapped_column(Double)
    collected: Mapped[bool]


class LoadoutNameRow(Base):
    """A name that has or had saved loadouts. key: its path in lower case."""

    __tablename__ = "loadout_names"
    key: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    path: Mapped[str] = mapped_column(exact(MAX_PATH))
    next_version: Mapped[int] = mapped_column(Integer)


class LoadoutRow(Base):
    """A saved loadout. request, described: JSON. is_latest: what its bare name means.

    base_fingerprint, described: NULL in rows that are older than these columns.
    """

    __tablename__ = "loadouts"
    __table_args__ = (
        UniqueConstraint("key", "number"),
        Index("uq_loadouts_latest", "key", unique=True, **_LATEST),
    )
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), ForeignKey("loadout_names.key"))
    number: Mapped[int] = mapped_column(Integer)
    is_latest: Mapped[bool]
    digest: Mapped[str] = mapped_column(exact(64), index=True)
    canonical: Mapped[str] = mapped_column(Text)
    request: Mapped[str] = mapped_column(Text)
    created: Mapped[int] = mapped_column(BigInteger)
    publisher: Mapped[str | None] = mapped_column(String(512))
    request_vectors: Mapped[str] = mapped_column(String(16), server_default=FORBID)
    description: Mapped[str | None] = mapped_column(Text)
    base_fingerprint: Mapped[str | None] = mapped_column(exact(128))
    described: Mapped[str | None] = mapped_column(Text)

    name: Mapped[LoadoutNameRow] = relationship(lazy="raise", viewonly=True)


class LoadoutVectorRow(Base):
    """A file that a saved loadout refers to."""

    __tablename__ = "loadout_vectors"
    loadout_id: Mapped[int] = mapped_column(
        ForeignKey("loadouts.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(exact(64), primary_key=True, index=True)


class UsageRow(Base):
    """What one key of a tenant used of one model on one day. day: in UTC, `2026-11-27`.

    key: its visible prefix, empty where none was needed. model: a saved loadout or the base, empty
    for requests that were refused before it was known.
    """

    __tablename__ = "usage"
    day: Mapped[str] = mapped_column(exact(10), primary_key=True)
    tenant: Mapped[str] = mapped_column(exact(MAX_USAGE_TEXT), primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_USAGE_TEXT), primary_key=True)
    model: Mapped[str] = mapped_column(exact(MAX_USAGE_TEXT), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)


class UsageWriterRow(Base):
    """A process that writes usage. flushed: its last batch. seen: Unix time of that, seconds."""

    __tablename__ = "usage_writers"
    id: Mapped[str] = mapped_column(exact(32), primary_key=True)
    flushed: Mapped[int] = mapped_column(BigInteger)
    seen: Mapped[int] = mapped_column(BigInteger)


class TenantRow(Base):
    """An organisation. limits: JSON. cache_secret: 32 random bytes in hex, told to nobody."""

    __tablename__ = "tenants"
    name: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True)
    created: Mapped[int] = mapped_column(BigInteger)
    disabled: Mapped[bool]
    limits: Mapped[str] = mapped_column(Text)
    cache_secret: Mapped[str] = mapped_column(exact(64))

    namespaces: Mapped[list["NamespaceRow"]] = relationship(
        lazy="raise", order_by="NamespaceRow.name", viewonly=True
    )


class NamespaceRow(Base):
    """A namespace, in lower case, and whose it is. One without a row is nobody's."""

    __tablename__ = "namespaces"
    name: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)


class KeyRow(Base):
    """An API key without its secret. hash: sha256 of the secret. Times: Unix, seconds.

    scopes: their names, with spaces between. last_used: to the minute.
    """

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(exact(MAX_KEY), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    hash: Mapped[str] = mapped_column(exact(64))
    scopes: Mapped[str] = mapped_column(exact(128))
    created: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[int | None] = mapped_column(BigInteger)
    revoked: Mapped[int | None] = mapped_column(BigInteger)
    last_used: Mapped[int | None] = mapped_column(BigInteger)


class GrantRow(Base):
    """What was said of a name's visibility. kind: of the name, `task_vector` or `loadout`."""

    __tablename__ = "grants"
    kind: Mapped[str] = mapped_column(exact(16), primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    visibility: Mapped[str] = mapped_column(exact(16))


class ShareRow(Base):
    """A name is shared with a tenant, which need not exist: nobody shall find out who does."""

    __tablename__ = "shares"
    kind: Mapped[str] = mapped_column(exact(16), primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True, index=True)


class AuditRow(Base):
    """A change, and who made it. at: Unix time, seconds. detail: JSON."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "tenant", "id"), Index(None, "key", "id"))
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger, index=True)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART))
    key: Mapped[str | None] = mapped_column(exact(MAX_KEY))
    action: Mapped[str] = mapped_column(exact(64))
    subject: Mapped[str] = mapped_column(String(512))
    request_id: Mapped[str | None] = mapped_column(String(128))
    detail: Mapped[str] = mapped_column(Text)


class LoadoutUseRow(Base):
    """How often a key used a loadout in one hour.

    hour: Unix time of its begin. key: empty where none was needed. loadout: as in the header,
    `base` or `sha256:…`. first, last: Unix time, seconds.
    """

    __tablename__ = "loadout_use"
    __table_args__ = (Index(None, "loadout", "hour"), Index(None, "tenant", "hour"))
    hour: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True)
    key: Mapped[str] = mapped_column(exact(MAX_KEY), primary_key=True)
    loadout: Mapped[str] = mapped_column(exact(80), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    first: Mapped[int] = mapped_column(BigInteger)
    last: Mapped[int] = mapped_column(BigInteger)
