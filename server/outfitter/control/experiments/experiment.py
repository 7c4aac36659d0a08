"""An experiment as it stands: its definition, and what was made of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from outfitter.control.experiments.allotment import Allotment, deal
from outfitter.control.experiments.assign import Split
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.status import Status
from outfitter.control.resolve import Plan
from taskvectors.spec import Loadout

PREFIX = "exp:"
"""Of the model's name."""


@dataclass(frozen=True)
class Pin:
    """What a variant was resolved to when the experiment started.

    model: the base or a saved loadout with its version; None for a mix of its own. canonical:
    `Loadout.canonical`. described: the `task_vectors` object of answers; None for the base.
    base_fingerprint: of the base that it was resolved for.
    """

    model: str | None
    canonical: str
    described: Mapping[str, object] | None
    base_fingerprint: str

    @cached_property
    def plan(self) -> Plan:
        """How a request is served by it."""
        described = None if self.described is None else dict(self.described)
        return Plan(Loadout.from_canonical(self.canonical), described)

    def to_json(self) -> dict[str, Any]:
        """What the constructor takes."""
        names = ("model", "canonical", "described", "base_fingerprint")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Pending:
    """An automatic act that was decided, and waits. due: Unix time, seconds. figures: its cause."""

    act: str
    due: float
    figures: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What the constructor takes."""
        own = {"act": self.act, "due": self.due, "variant": self.variant}
        return {**own, "figures": dict(self.figures)}


@dataclass(frozen=True)
class Made:
    """Who made a version, when, and why. at: Unix time, seconds.

    action: as in the trail, such as `start`. tenant: `automatic` where nobody did. figures: what
    caused it.
    """

    action: str = "create"
    at: int = 0
    tenant: str = ""
    key: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A version of an experiment. Times: Unix, seconds.

    seed: of the hash, fixed when it was made. step: of the ramp, counted from 0. allotment, pins:
    None and empty until it starts. winner: the variant that was shipped. forbidden: automatic acts
    that somebody has forbidden for good. started: for the first time. stepped: when the step began.
    """

    definition: Definition
    seed: str
    version: int = 1
    status: Status = Status.DRAFT
    step: int = 0
    allotment: Allotment | None = None
    pins: Mapping[str, Pin] = field(default_factory=dict)
    winner: str | None = None
    pending: Pending | None = None
    forbidden: tuple[str, ...] = ()
    created: int = 0
    started: int | None = None
    stepped: int | None = None
    made: Made = field(default_factory=Made)

    @property
    def name(self) -> str:
        """`tone` or `acme/tone`."""
        return self.definition.name

    @property
    def id(self) -> str:
        """`acme/tone@3`."""
        return f"{self.name}@{self.version}"

    @property
    def is_running(self) -> bool:
        """Whether units are assigned and counted."""
        return self.status is Status.RUNNING

    @property
    def fallback(self) -> str:
        """The key of the variant for whoever takes no part: the control, or what was shipped."""
        return self.winner or self.definition.control

    @property
    def coverage(self) -> float:
        """The share of units that take part at this step."""
        return self.definition.coverage_at(self.step)

    @cached_property
    def split(self) -> Split:
        """What decides who gets what; only of one that was started."""
        assert self.allotment is not None
        own = self.definition
        return Split(self.seed, self.fallback, self.allotment, own.layer, own.holdout)

    def dealt(self, before: Self | None) -> Self:
        """With its buckets dealt, so that as few as can be change hands. before: it, until now."""
        if self.status is Status.DRAFT:
            return replace(self, allotment=None)
        shares, known = self.definition.shares, None if before is None else before.allotment
        if known is not None and before is not None:
            same = before.definition.shares == shares and before.coverage == self.coverage
            if same:
                return replace(self, allotment=known)
        return replace(self, allotment=deal(shares, self.coverage, known))
