"""Intervals of scores and of differences between two loadouts on the same prompts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bounds."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Rounded to what is worth reading."""
        return {name: round(value, 5) for name, value in vars(self).items()}


def mean_of(scores: Sequence[float], seed: int) -> Interval:
    """Of a mean score: Wilson's for scores of 0 and 1 (1927), else the bootstrap's percentiles."""
    values = np.asarray(scores, dtype=float)
    if set(values.tolist()) <= {0.0, 1.0}:
        return _wilson(float(values.sum()), len(values))
    return _bootstrap(values, seed)


def difference(scores: Sequence[float], others: Sequence[float], seed: int) -> Interval:
    """Of the mean of `scores − others`, by the paired bootstrap (Efron & Tibshirani 1993, §13.3).

    Prompts are drawn, with both of their scores. Both: [number of prompts], in the same order.
    """
    return _bootstrap(np.asarray(scores, dtype=float) - np.asarray(others, dtype=float), seed)


def _bootstrap(values: np.ndarray, seed: int) -> Interval:
    rng, n = np.random.default_rng(seed), len(values)
    means = [
        values[rng.integers(0, n, (_CHUNK, n))].mean(axis=1) for _ in range(RESAMPLES // _CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def _wilson(passed: float, asked: int, z: float = 1.959964) -> Interval:
    rate, z2 = passed / asked, z * z
    middle = (rate + z2 / (2 * asked)) / (1 + z2 / asked)
    half = z / (1 + z2 / asked) * (rate * (1 - rate) / asked + z2 / (4 * asked**2)) ** 0.5
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half))
