"""Task arithmetic: `Σ wₖ τₖ` (arXiv 2212.04089, §3)."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from taskvectors.delta import Array, Delta, LowRankDelta, add
from taskvectors.merge.election import total, weighted
from taskvectors.merge.parts import Part, present, unstack


def merge(part: Part, _parameters: Mapping[str, Any]) -> Delta | None:
    """One delta stays what it is and low rank stays low rank; else the sum over the stack."""
    summands = [(delta, weight) for delta, weight in present(part) if weight != 0]
    if not summands:
        return None
    if len(summands) == 1 or all(isinstance(delta, LowRankDelta) for delta, _ in summands):
        return reduce(
            lambda left, right: add(part.name, left, right),
            (delta if weight == 1.0 else delta * weight for delta, weight in summands),
        )
    return unstack(part, weighted_sum(part, part.stack.values))


def weighted_sum(part: Part, values: Array) -> Array:
    """`Σ weights[k] values[k]`, one vector after the other: float32 [U] of [K, U]."""
    return total(weighted(values, part.weights))
