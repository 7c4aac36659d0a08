"""Who gets which variant: the same in every replica, without a word between them. Pure."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from outfitter.control.experiments.allotment import Allotment
from outfitter.control.experiments.hashing import bucket_of, is_within

MAX_UNIT = 200
"""Characters of a unit that are kept; longer ones are kept as their sha256."""


class Part(Protocol):
    """A part of all units, `end` excluded; those of one name have one order of units."""

    @property
    def name(self) -> str:
        """Of the layer, or the holdout."""

    @property
    def start(self) -> float:
        """From 0 to 1."""

    @property
    def end(self) -> float:
        """From 0 to 1, greater than `start`."""


class Reason(StrEnum):
    """Why a unit gets its variant."""

    ASSIGNED = "assigned"
    """By its bucket. Only these count."""
    FORCED = "forced"
    """By a tester."""
    NO_UNIT = "no_unit"
    """The request names nobody."""
    NOT_RUNNING = "not_running"
    HOLDOUT = "holdout"
    LAYER = "layer"
    """Another experiment may have it."""
    COVERAGE = "coverage"


@dataclass(frozen=True)
class Split:
    """What decides. seed: fixed when the experiment is made. control: for whoever takes no part."""

    seed: str
    control: str
    allotment: Allotment
    layer: Part | None = None
    holdout: Part | None = None


@dataclass(frozen=True)
class Assignment:
    """The key of the variant that serves, and why."""

    variant: str
    reason: Reason

    @property
    def is_counted(self) -> bool:
        """Whether the request says anything about the experiment."""
        return self.reason is Reason.ASSIGNED


def assign(split: Split, unit: str | None, *, is_running: bool = True) -> Assignment:
    """The variant of a unit; the control for whoever takes no part."""
    if not is_running:
        return Assignment(split.control, Reason.NOT_RUNNING)
    if not unit:
        return Assignment(split.control, Reason.NO_UNIT)
    if split.holdout is not None and _is_in(split.holdout, HOLDOUT, unit):
        return Assignment(split.control, Reason.HOLDOUT)
    if split.layer is not None and not _is_in(split.layer, LAYER, unit):
        return Assignment(split.control, Reason.LAYER)
    variant = split.allotment.variant_of(bucket_of(split.seed, unit))
    if variant is None:
        return Assignment(split.control, Reason.COVERAGE)
    return Assignment(variant, Reason.ASSIGNED)


def mirrored(shares: Mapping[str, float], draws: Sequence[float]) -> Iterator[str]:
    """Shadow variants that get a copy of a request. draws: for each one number, from 0 to 1."""
    for (key, share), draw in zip(shares.items(), draws, strict=True):
        if draw < share:
            yield key


LAYER, HOLDOUT = "layer", "holdout"


def part_seed(kind: str, name: str) -> str:
    """Of the order of units in all layers, or holdouts, of one name."""
    return f"{kind}:{name}"


def kept_unit(unit: str) -> str:
    """A unit as it is written down: itself, or its sha256 where a database could not hold it."""
    if len(unit) <= MAX_UNIT and unit.isprintable():
        return unit
    return "sha256:" + hashlib.sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()


def _is_in(part: Part, kind: str, unit: str) -> bool:
    return is_within(bucket_of(part_seed(kind, part.name), unit), part.start, part.end)
