"""Task arithmetic: `Σ wₖ τₖ` (arXiv 2212.04089, §3)."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from taskvectors.delta import Delta, LowRankDelta, SparseDelta, add
from taskvectors.merge.parts import Part, present, unstack


def merge(part: Part, _parameters: Mapping[str, Any]) -> Delta | None:
    """Sparse stays sparse and low rank stays low rank; a mixture is what is smaller."""
    weighted = [(delta, weight) for delta, weight in present(part) if weight != 0]
    if not weighted:
        return None
    kinds = {type(delta) for delta, _ in weighted}
    if kinds <= {SparseDelta} or kinds <= {LowRankDelta}:
        return reduce(
            lambda total, delta: add(part.name, total, delta),
            (delta if weight == 1.0 else delta * weight for delta, weight in weighted),
        )
    total = part.stack.values[0] * 0
    for row, weight in zip(part.stack.values, part.weights, strict=True):
        total += row * total.dtype.type(weight)
    return unstack(part, total)
