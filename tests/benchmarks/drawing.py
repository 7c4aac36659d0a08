"""Simulated experiments: the sums of units at every peek, many experiments at once."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from outfitter.statistics.moments import Moments

Array = np.ndarray
Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[Array, Array, Array]]
"""x, y and z of [experiments, units]."""
FIELDS = ("n", "x", "xx", "y", "yy", "xy", "z", "zz", "xz", "yz")


def peeks(first: int, last: int, num_peeks: int = 50) -> Array:
    """Units of a variant at each peek, closer to each other at the start."""
    spaced = np.unique(np.geomspace(first, last, num_peeks).round().astype(int))
    while len(spaced) < num_peeks:
        missing = np.setdiff1d(np.arange(first, last), spaced)[: num_peeks - len(spaced)]
        spaced = np.unique(np.concatenate([spaced, missing]))
    return spaced


def arm(rng: np.random.Generator, draw: Draw, at: Array, num_experiments: int) -> Array:
    """[experiments, peeks, 10]: the moments of one variant, whose units come one by one."""
    sums = np.zeros((num_experiments, len(at), len(FIELDS)))
    before = 0
    for place, units in enumerate(at):
        size = (num_experiments, int(units) - before)
        x, y, z = draw(rng, size)
        parts = (np.ones(size), x, x * x, y, y * y, x * y, z, z * z, x * z, y * z)
        sums[:, place] = np.stack([part.sum(axis=1) for part in parts], axis=1)
        before = int(units)
    return np.asarray(sums.cumsum(axis=1))


def moments(sums: Array) -> Moments:
    """Of one experiment at one peek; sums: [10]."""
    return Moments(int(sums[0]), *(float(value) for value in sums[1:]))


def returning(
    rng: np.random.Generator, num_experiments: int, num_units: int, num_peeks: int, kind: str
) -> Array:
    """[experiments, peeks, 10] of units that come back all the time, each true to itself.

    Units are there from the first peek on; half of their variance is what they are, the rest is
    chance. kind: `mean` (per request), or `proportion` (of a unit's requests that succeed).
    """
    sums = np.zeros((num_experiments, num_peeks, len(FIELDS)))
    shape = (num_experiments, num_units)
    own = rng.normal(0, 1, shape) if kind == "mean" else rng.beta(0.5, 0.5, shape)
    rate = rng.gamma(1, 1, shape)
    x, y = np.zeros(shape), np.zeros(shape)
    for place in range(num_peeks):
        more = rng.poisson(0.1 * rate)
        if kind == "mean":
            x += more * own + np.sqrt(more) * rng.normal(0, 1, shape)
        else:
            x += rng.binomial(more, own)
        y += more
        seen = y > 0
        if kind == "mean":
            values, counts = x, y
        else:
            values, counts = np.divide(x, y, out=np.zeros(shape), where=seen), seen.astype(float)
        parts = (seen, values, values**2, counts, counts**2, values * counts)
        sums[:, place, : len(parts)] = np.stack([part.sum(axis=1) for part in parts], axis=1)
    return sums


def normal(shift: float = 0.0) -> Draw:
    """Unit variance."""
    return lambda rng, size: (rng.normal(shift, 1, size), *_plain(size))


def log_normal(sigma: float, shift: float = 0.0) -> Draw:
    """As latencies are; shift: of the logarithm."""
    return lambda rng, size: (rng.lognormal(shift, sigma, size), *_plain(size))


def ratio(success: float) -> Draw:
    """Units have a geometric number of requests, and a rate of their own around `success`."""

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array, Array]:
        y = rng.geometric(0.3, size)
        own = rng.beta(4 * success, 4 * (1 - success), size)
        return rng.binomial(y, own).astype(float), y.astype(float), np.zeros(size)

    return draw


def covered(correlation: float, shift: float = 0.0) -> Draw:
    """A covariate that is as skewed as counts are."""

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array, Array]:
        z = rng.exponential(1, size)
        noise = rng.normal(0, 1, size)
        x = correlation * z + np.sqrt(1 - correlation**2) * noise + shift
        return x, np.ones(size), z

    return draw


def successes(
    rng: np.random.Generator, p: float, at: Sequence[int] | Array, num_experiments: int
) -> Array:
    """[experiments, peeks]: how many of the units so far, of a proportion."""
    steps = np.diff(np.concatenate([[0], np.asarray(at)]))
    return np.asarray(rng.binomial(steps, p, (num_experiments, len(steps))).cumsum(axis=1))


def batches(num_experiments: int, size: int) -> Iterator[int]:
    """So many at once, that they fit into memory."""
    for start in range(0, num_experiments, size):
        yield min(size, num_experiments - start)


def _plain(size: tuple[int, int]) -> tuple[Array, Array]:
    return np.ones(size), np.zeros(size)
