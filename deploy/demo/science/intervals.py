"""Uncertainty: of a rate, of a difference of rates on the same prompts, of a rank correlation."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from taskvectors.delta import Array

Z95 = 1.959964
SEED = 0
NUM_RESAMPLES = 10_000

Interval = tuple[float, float]


def wilson(passed: int, asked: int, z: float = Z95) -> Interval:
    """Wilson's score interval of a rate (J. Am. Stat. Assoc. 22, 1927)."""
    rate, spread = passed / asked, z * z / asked
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / asked + spread / asked / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate_of(passes: str) -> dict[str, object]:
    """`"1101"` → passed, asked, rate and its 95 % interval."""
    passed, asked = passes.count("1"), len(passes)
    low, high = wilson(passed, asked)
    return {
        "passed": passed,
        "asked": asked,
        "rate": round(passed / asked, 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def either(*passes: str) -> str:
    """Passes of an answer that may pass any of several graders."""
    return "".join(str(int("1" in column)) for column in zip(*passes, strict=True))


def mean_drop(pairs: Sequence[tuple[str, str]]) -> tuple[float, Interval]:
    """Mean of rate(before) − rate(after) on the prompts that both have; bootstrap over prompts.

    Every pair is resampled by the same draws, because they share their prompts.
    """
    common = [min(map(len, pair)) for pair in pairs]
    differences = [bits(b[:n]) - bits(a[:n]) for (b, a), n in zip(pairs, common, strict=True)]
    resampled = np.mean([d[_draws(len(d))].mean(axis=1) for d in differences], axis=0)
    return float(np.mean([d.mean() for d in differences])), percentiles(resampled)


@cache
def _draws(count: int) -> Array:
    """With replacement from `count` prompts, `[resamples, count]`."""
    return np.random.default_rng(SEED).integers(0, count, (NUM_RESAMPLES, count))


def bits(passes: str) -> Array:
    """float64 of zeros and ones."""
    return np.array([int(p) for p in passes], np.float64)


def spearman(x: Array, y: Array) -> float:
    """Rank correlation, equal values sharing their mean rank; nan where one does not vary."""
    a, b = ranks(x), ranks(y)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def ranks(x: Array) -> Array:
    """Mean ranks from 0."""
    below = (x[:, None] > x[None, :]).sum(axis=1)
    equal = (x[:, None] == x[None, :]).sum(axis=1)
    mean: Array = below + (equal - 1) / 2
    return mean


def correlation(x: Array, y: Array) -> dict[str, object]:
    """Spearman's ρ, its bootstrap interval over the points, and a permutation p-value."""
    rng = np.random.default_rng(SEED)
    rho = spearman(x, y)
    draws = rng.integers(0, len(x), (NUM_RESAMPLES, len(x)))
    resampled = np.array([spearman(x[d], y[d]) for d in draws])
    shuffled = np.array([spearman(x, rng.permutation(y)) for _ in range(NUM_RESAMPLES)])
    extreme = int((np.abs(shuffled) >= abs(rho) - 1e-12).sum())
    return {
        "rho": round(rho, 3),
        "interval": [round(v, 3) for v in percentiles(resampled[~np.isnan(resampled)])],
        "p": round((1 + extreme) / (1 + NUM_RESAMPLES), 4),
        "points": len(x),
    }


def percentiles(values: Array) -> Interval:
    """The middle 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
