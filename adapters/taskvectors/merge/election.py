"""Sign election and the mean of what agrees: the second half of TIES and its kin.

Yadav et al. 2023, arXiv 2306.01708, §4. Order of sums: by vector, so results do not depend on
the machine.
"""

import numpy as np

from taskvectors.delta import Array


def weighted(values: Array, weights: tuple[float, ...]) -> Array:
    """`values[k] * weights[k]`, float32 [K, U]."""
    scaled: Array = values * np.asarray(weights, np.float32)[:, None]
    return scaled


def agreeing(values: Array, *, by_count: bool = False) -> Array:
    """bool [K, U]: nonzero and of the elected sign; a sum of zero elects plus.

    The election adds the values up, or with `by_count` their signs.
    """
    votes = np.sign(values) if by_count else values
    elected = np.where(total(votes) >= 0, np.float32(1), np.float32(-1))
    mask: Array = np.sign(values) == elected
    return mask


def total(rows: Array) -> Array:
    """The sum over the first axis, one row after the other: float32 [U]."""
    result = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        result += row
    return result


def elect_and_merge(values: Array, weights: tuple[float, ...], *, normalize: bool) -> Array:
    """mergekit's consensus: weights count in the election, and in the divisor if `normalize`.

    values: float32 [K, U], weighted already. Where the agreeing weights sum to zero nothing is
    divided.
    """
    mask = agreeing(values)
    merged = total(values * mask)
    if normalize:
        divisor = total(weighted(mask.astype(np.float32), weights))
        divisor[divisor == 0] = 1
        merged /= divisor
    return merged
