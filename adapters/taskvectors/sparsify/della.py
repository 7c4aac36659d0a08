"""DELLA: drop entries at random, the small ones more often (Deep et al. 2024, arXiv 2406.11617)."""

import math

import numpy as np

from taskvectors.delta import Array, Shape
from taskvectors.sparsify.hashing import uniform
from taskvectors.sparsify.threshold import magnitude_bits


def check_epsilon(density: float, epsilon: float) -> None:
    """Raise ValueError unless both `density ± epsilon` are probabilities within (0, 1)."""
    if density < 1 and not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(
            f"epsilon {epsilon} at density {density} gives keep-probabilities from"
            f" {density - epsilon:g} to {density + epsilon:g}; both must lie within 0 and 1"
        )


def della(
    index: Array,
    values: Array,
    shape: Shape,
    density: float,
    epsilon: float,
    key: str,
    seed: int,
    name: str,
) -> tuple[Array, Array]:
    """(bool [n] mask, float64 [n] probabilities) of a support in a parameter of `shape`.

    index: int64 [n], ascending, whole rows (rows = shape[0]; 1-D is one row); values: float32 [n].
    Within a row of m elements rank r = 0 … m−1 ascends with |x|: zeros rank lowest, among equals
    the lowest index. `p = density − ε + 2ε · r / (m − 1)` (MagPrune, §3.1; the paper divides what
    is kept by p); a row of one element has `p = density`. From density 1 on all is kept. Zeros are
    never kept. Raises ValueError for an epsilon that gives no probabilities.
    """
    check_epsilon(density, epsilon)
    if density >= 1:
        return np.asarray(values != 0), np.ones(len(values))
    columns = shape[0] if len(shape) == 1 else math.prod(shape[1:])
    if columns == 1:
        probabilities = np.full(len(values), density)
    else:
        share = _ranks(index, values, columns) / np.float64(columns - 1)
        probabilities = (density - epsilon) + share * (2 * epsilon)
    kept = (uniform(key, seed, name, index) < probabilities) & (values != 0)
    return np.asarray(kept), probabilities


def _ranks(index: Array, values: Array, columns: int) -> Array:
    """int64 [n]: rank of |x| in its row of `columns` elements, most of which may be off-support."""
    rows = index // columns
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = np.append(starts, len(index))[1:]
    bits = magnitude_bits(values)
    ranks = np.empty(len(index), np.int64)
    for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
        order = np.argsort(bits[begin:end], kind="stable")
        ranks[begin + order] = np.arange(columns - (end - begin), columns)
    return ranks
