"""The tables of experiments, and of who may steer them."""

from sqlalchemy import BigInteger, Double, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from outfitter.state.models import MAX_KEY, MAX_PART, MAX_PATH, Base, exact


class ExperimentRow(Base):
    """An experiment. key: its name in lower case. number, status: of its latest version."""

    __tablename__ = "experiments"
    key: Mapped[str] = mapped_column(exact(MAX_PATH), primary_key=True)
    path: Mapped[str] = mapped_column(exact(MAX_PATH))
    seed: Mapped[str] = mapped_column(exact(MAX_PATH))
    created: Mapped[int] = mapped_column(BigInteger)
    number: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(exact(16), index=True)


class ExperimentVersionRow(Base):
    """An experiment as it was from one change to the next.

    definition, allotment, pins, pending, forbidden, figures: JSON. at, started, stepped: Unix time,
    seconds. tenant, actor: who made the change, and the visible prefix of the key.
    """

    __tablename__ = "experiment_versions"
    key: Mapped[str] = mapped_column(
        exact(MAX_PATH), ForeignKey("experiments.key", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(exact(16))
    step: Mapped[int] = mapped_column(Integer)
    definition: Mapped[str] = mapped_column(Text)
    allotment: Mapped[str | None] = mapped_column(Text)
    pins: Mapped[str] = mapped_column(Text)
    winner: Mapped[str | None] = mapped_column(String(64))
    pending: Mapped[str | None] = mapped_column(Text)
    forbidden: Mapped[str] = mapped_column(Text)
    started: Mapped[int | None] = mapped_column(BigInteger)
    stepped: Mapped[int | None] = mapped_column(BigInteger)
    action: Mapped[str] = mapped_column(String(64))
    at: Mapped[int] = mapped_column(BigInteger)
    tenant: Mapped[str] = mapped_column(exact(MAX_PART))
    actor: Mapped[str | None] = mapped_column(exact(MAX_KEY))
    figures: Mapped[str] = mapped_column(Text)


class ExperimentVectorRow(Base):
    """A file that a variant of an experiment refers to."""

    __tablename__ = "experiment_vectors"
    key: Mapped[str] = mapped_column(
        exact(MAX_PATH), ForeignKey("experiments.key", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(exact(64), primary_key=True, index=True)


class LeaseRow(Base):
    """Who may do something now, and until when, if nothing is heard. until: Unix time, seconds."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(exact(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    until: Mapped[float] = mapped_column(Double)
