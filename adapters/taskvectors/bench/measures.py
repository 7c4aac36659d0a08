"""Figures and their statistics: medians, quartiles, ratios within a round. Pure.

The machine may be noisy, so nothing is compared but what was measured within one round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """The median of `count` values, and their quartiles."""

    median: float
    lower: float
    upper: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        assert values
        lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, lower, upper, len(values))


@dataclass(frozen=True)
class Figure:
    """One measured thing.

    key: `scenario/…`, what goals refer to. unit: of the samples. seconds: medians of the times that
    were compared, by engine or way. error: standard error of the median, where it was asked for.
    """

    key: str
    label: str
    unit: str
    samples: tuple[float, ...]
    seconds: Mapping[str, float]
    error: float | None = None

    @property
    def spread(self) -> Spread:
        """Of the samples."""
        return Spread.of(self.samples)

    @property
    def scenario(self) -> str:
        """The first part of the key."""
        return self.key.partition("/")[0]

    def to_json(self) -> dict[str, object]:
        """All of it, with the spread."""
        spread = self.spread
        return {
            "key": self.key,
            "label": self.label,
            "unit": self.unit,
            "median": spread.median,
            "quartiles": [spread.lower, spread.upper],
            "error_of_median": self.error,
            "seconds": dict(self.seconds),
            "samples": list(self.samples),
        }


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Of each round's pair: above / below."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def differences(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    """Of each round's pair: left - right."""
    return tuple(a - b for a, b in zip(left, right, strict=True))


def error_of_median(values: Sequence[float], seed: int) -> float:
    """Standard error of the median, by a bootstrap."""
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
    return float(np.std(np.median(drawn, axis=1)))
