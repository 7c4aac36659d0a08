"""mergekit's methods on dense deltas: the base is zero, so that the result is the merged delta."""

from collections.abc import Sequence
from typing import Any

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorGroup


def merged(
    method: str,
    deltas: Sequence[torch.Tensor],
    per_vector: dict[str, Sequence[float]] | None = None,
    **parameters: Any,
) -> torch.Tensor:
    """per_vector: parameters with a value for each vector, such as `weight`."""
    group = TensorGroup.from_tensors([torch.zeros_like(deltas[0]), *deltas], base_index=0)
    keyed = {
        name: PerInputValues(list(enumerate(values, start=1)))
        for name, values in (per_vector or {}).items()
    }
    result: torch.Tensor = registry.get(method).merge_group(group, **keyed, **parameters)
    return result
