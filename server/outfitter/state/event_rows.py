"""The tables of what experiments saw."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Index, Integer, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from outfitter.state.models import MAX_PART, MAX_PATH, Base, exact

MAX_UNIT = 200
MAX_REQUEST = 128
MAX_VARIANT = MAX_METRIC = MAX_FEEDBACK_ID = 64
MAX_LABEL = 256
_COUNT = BigInteger().with_variant(Integer, "sqlite")
_GRADES = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class RequestRow(Base):
    """A request that a variant served. at: Unix time of its end, seconds.

    variant is part of its key because a mirrored request has the id of its original.
    error: 1 if it failed. cost: in the currency of the gateway's prices. grades: by grader's name.
    Numbers are NULL where there is nothing to measure: the time to the first token of an answer
    that was no stream, the latency of one that failed.
    """

    __tablename__ = "experiment_requests"
    experiment: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    request_id: Mapped[str] = mapped_column(exact(MAX_REQUEST), primary_key=True)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True)
    variant: Mapped[str] = mapped_column(exact(MAX_VARIANT), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    unit: Mapped[str] = mapped_column(exact(MAX_UNIT))
    at: Mapped[float] = mapped_column(Double)
    is_counted: Mapped[bool]
    is_shadow: Mapped[bool]
    status: Mapped[int] = mapped_column(Integer)
    error: Mapped[int] = mapped_column(Integer)
    latency_s: Mapped[float | None] = mapped_column(Double)
    first_token_s: Mapped[float | None] = mapped_column(Double)
    inter_token_s: Mapped[float | None] = mapped_column(Double)
    prompt_tokens: Mapped[int | None] = mapped_column(_COUNT)
    completion_tokens: Mapped[int | None] = mapped_column(_COUNT)
    cached_tokens: Mapped[int | None] = mapped_column(_COUNT)
    cost: Mapped[float] = mapped_column(Double)
    finish_reason: Mapped[str | None] = mapped_column(String(64))
    grades: Mapped[dict[str, Any] | None] = mapped_column(_GRADES)


class UnitRow(Base):
    """A unit, and the variant that it was first exposed to. at: Unix time of that, seconds."""

    __tablename__ = "experiment_units"
    __table_args__ = (Index(None, "experiment", "at"),)
    experiment: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    unit: Mapped[str] = mapped_column(exact(MAX_UNIT), primary_key=True)
    variant: Mapped[str] = mapped_column(exact(MAX_VARIANT))
    at: Mapped[float] = mapped_column(Double)


class FeedbackRow(Base):
    """What a tenant said of one of its requests, which may not be known yet. at: Unix time.

    id: told apart by it; empty where none was given. Either value or label is there.
    """

    __tablename__ = "feedback"
    __table_args__ = (Index(None, "at"),)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART), primary_key=True)
    request_id: Mapped[str] = mapped_column(exact(MAX_REQUEST), primary_key=True)
    metric: Mapped[str] = mapped_column(exact(MAX_METRIC), primary_key=True)
    id: Mapped[str] = mapped_column(exact(MAX_FEEDBACK_ID), primary_key=True)
    value: Mapped[float | None] = mapped_column(Double)
    label: Mapped[str | None] = mapped_column(exact(MAX_LABEL))
    at: Mapped[float] = mapped_column(Double)
