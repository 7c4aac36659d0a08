"""Spherical interpolation of two fine-tuned checkpoints (Shoemake 1985), as mergekit's `slerp`.

One angle for each parameter, between base + τ₁ and base + τ₂; where they are almost parallel, as
fine-tuned models mostly are, the way is straight and sparse vectors stay sparse.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta, DenseDelta
from taskvectors.errors import InvalidLoadout
from taskvectors.merge.angles import arc_factors, dot, share_of_second
from taskvectors.merge.parts import Part, unstack

_PARALLEL = 0.9995
_LEAST_NORM = 1e-8


def merge(part: Part, _parameters: Mapping[str, Any]) -> Delta | None:
    """`t` is the second weight's share of both. Raises InvalidLoadout without the base."""
    if part.base is None:
        raise InvalidLoadout("method 'slerp' needs the base's weights: give its checkpoint")
    base = part.base.astype(np.float32).reshape(-1)
    cosine = _cosine(part, base)
    factors = arc_factors(cosine, share_of_second(part.weights), np.abs(cosine) > _PARALLEL)
    first, second = (float(factor[0]) for factor in factors)
    on_support = (
        np.float32(first) * part.stack.values[0] + np.float32(second) * part.stack.values[1]
    )
    if abs(cosine[0]) > _PARALLEL:
        return unstack(part, on_support)
    merged = np.float32(first + second - 1) * base
    merged[part.stack.index] += on_support
    return DenseDelta(merged.reshape(part.shape))


def _cosine(part: Part, base: Array) -> Array:
    """float64 [1]: between the fine-tuned parameters; a zero one is at right angles to all."""
    ends = []
    for values in part.stack.values:
        end = base.copy()
        end[part.stack.index] += values
        ends.append(end)
    norms = [math.sqrt(dot(end, end)) for end in ends]
    first, second = (norm if norm > _LEAST_NORM else 1.0 for norm in norms)
    return np.array([dot(*ends) / (first * second)]).clip(-1, 1)
