"""TIES as its authors published it (Yadav et al. 2023, arXiv 2306.01708, §4, and their code).

A vector is trimmed over the whole model of N elements, those of parameters that it leaves alone
included: it keeps every magnitude not below the `int(density · N) + 1`-th largest, equals and all.
An element whose sum is zero takes the sign that more elements of the model elect; where that is
a draw as well, their code keeps the negative values, and so does this.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta, SparseDelta
from taskvectors.errors import InvalidLoadout
from taskvectors.merge.election import total
from taskvectors.merge.parts import Part, Parts, elements, unstack
from taskvectors.merge.registry import Merge
from taskvectors.sparsify import Cut, Picker, Threshold


def survey(parts: Parts, parameters: Mapping[str, Any]) -> Merge:
    """Find each vector's cut over the whole model; parameters: density, lambda, merge.

    Reads every parameter twice. Raises InvalidLoadout without the base.
    """
    if parts.base_shapes is None:
        raise InvalidLoadout(
            "method 'ties_original' trims over the whole model; give the base checkpoint as well,"
            " or choose 'ties', which trims each parameter"
        )
    numel = sum(math.prod(shape) for shape in parts.base_shapes.values())
    cuts = _find_cuts(parts, int(parameters["density"] * numel) + 1)
    return _Election(parts, cuts, parameters["merge"], parameters["lambda"]).merge


@dataclass(frozen=True, eq=False)
class _Election:
    """Merges parameters of vectors whose cuts are known. cuts: by the vectors' keys."""

    parts: Parts
    cuts: Mapping[str, Cut]
    how: str
    factor: float

    def merge(self, part: Part) -> Delta | None:
        """The merged delta of one parameter."""
        values = self._trim(part)
        signs = np.sign(total(values))
        if bool(((signs == 0) & values.any(axis=0)).any()):
            signs[signs == 0] = self._majority
        agreed = values * np.where(signs > 0, values > 0, values < 0)
        return unstack(part, self._combine(agreed, signs) * np.float32(self.factor))

    def _trim(self, part: Part) -> Array:
        trimmed = np.zeros_like(part.stack.values)
        for number, (key, delta) in enumerate(zip(part.keys, part.deltas, strict=True)):
            if delta is not None:
                row = part.stack.values[number]
                trimmed[number] = row * Picker(self.cuts[key], "all").mask(row)
        return trimmed

    def _combine(self, agreed: Array, signs: Array) -> Array:
        if self.how == "max":
            return np.asarray(np.abs(agreed).max(axis=0) * signs)
        merged = total(agreed)
        if self.how == "mean":
            merged /= np.maximum(total(agreed != 0), np.float32(1))
        return merged

    @cached_property
    def _majority(self) -> int:
        """The sign that more elements of the model elect; reads every parameter once more."""
        elected = sum(
            int(np.sign(total(self._trim(part))).sum(dtype=np.int64)) for part in self.parts
        )
        return (elected > 0) - (elected < 0)


def _find_cuts(parts: Parts, count: int) -> dict[str, Cut]:
    """Where the `count` largest magnitudes of each vector end, over all parameters."""
    thresholds: defaultdict[str, Threshold] = defaultdict(partial(Threshold, count))
    for part in parts:
        for key, values in _values(part):
            thresholds[key].coarse(values)
    for threshold in thresholds.values():
        threshold.refine()
    for part in parts:
        for key, values in _values(part):
            thresholds[key].fine(values)
    return {key: threshold.cut() for key, threshold in thresholds.items()}


def _values(part: Part) -> Iterator[tuple[str, Array]]:
    """The values of each vector that changes the parameter: flat float32."""
    for key, delta in zip(part.keys, part.deltas, strict=True):
        if isinstance(delta, SparseDelta):
            yield key, delta.values.astype(np.float32)
        elif delta is not None:
            yield key, elements(delta)
