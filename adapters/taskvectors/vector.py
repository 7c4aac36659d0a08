"""A task vector in memory: fine-tuned minus base, and its algebra."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taskvectors.delta import (
    Array,
    Delta,
    DenseDelta,
    LowRankDelta,
    Shape,
    SparseDelta,
    add,
    shapes_differ,
)
from taskvectors.errors import BaseMismatch
from taskvectors.selection import Selection, parse_selection

__all__ = [
    "BaseInfo",
    "Delta",
    "DenseDelta",
    "LowRankDelta",
    "Shape",
    "SparseDelta",
    "TaskVector",
    "kind_of",
    "module_of",
]


@dataclass(frozen=True)
class BaseInfo:
    """The base that a task vector belongs to. Without a fingerprint it is unverified."""

    name: str
    fingerprint: str | None = None

    def merged(self, other: "BaseInfo") -> "BaseInfo":
        """The base of a sum; raises BaseMismatch where the two bases are known to differ.

        Two fingerprints decide; without any, the names must agree; with one, the sum is unverified.
        """
        if self.fingerprint is not None and other.fingerprint is not None:
            differ = self.fingerprint != other.fingerprint
        else:
            differ = self.fingerprint == other.fingerprint and self.name != other.name
        if differ:
            raise BaseMismatch(f"the bases differ: {self} and {other}")
        return self if self.fingerprint == other.fingerprint else BaseInfo(self.name)

    def __str__(self) -> str:
        return f"{self.name!r} (fingerprint {self.fingerprint or 'unknown'})"


@dataclass(frozen=True, eq=False)
class TaskVector:
    """A delta for each changed parameter of one base.

    metadata: the file's optional fields (`format.metadata` names them). A sum keeps the fields
    on which both sides agree; the other operations keep them all.
    """

    base: BaseInfo
    parameters: Mapping[str, Delta]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __add__(self, other: "TaskVector") -> "TaskVector":
        """Sum per parameter; raises BaseMismatch for another base or another shape."""
        base = self.base.merged(other.base)
        parameters = {**self.parameters, **other.parameters}
        for name in self.parameters.keys() & other.parameters.keys():
            parameters[name] = add(name, self.parameters[name], other.parameters[name])
        agreed = {k: v for k, v in self.metadata.items() if other.metadata.get(k) == v}
        return TaskVector(base, dict(sorted(parameters.items())), agreed)

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self + (-other)

    def __neg__(self) -> "TaskVector":
        return self._map(lambda delta: -delta)

    def __mul__(self, factor: float) -> "TaskVector":
        return self._map(lambda delta: delta * factor)

    __rmul__ = __mul__

    def select(self, *, layers: object = None, modules: object = None) -> "TaskVector":
        """Keep or scale parts, said as in a request: `layers=["0-14"]`, `modules={"mlp.*": 0.5}`.

        Raises InvalidLoadout for a malformed selection.
        """
        return self.restrict(parse_selection({"layers": layers, "modules": modules}, "select"))

    def restrict(self, selection: Selection) -> "TaskVector":
        """Scale each parameter by the selection's factor; drop it where the factor is 0."""
        factors = {name: selection.factor(module_of(name)) for name in self.parameters}
        kept = {
            name: delta if factors[name] == 1.0 else delta * factors[name]
            for name, delta in self.parameters.items()
            if factors[name] != 0.0
        }
        return replace(self, parameters=kept)

    def delta(self, name: str) -> Array:
        """The dense float32 delta of one parameter; raises KeyError where nothing changes."""
        return self.parameters[name].to_dense()

    def apply_to(self, name: str, base_array: Array) -> Array:
        """`base_array` plus the delta, added in float32, in the base's own dtype.

        Returns `base_array` itself where nothing changes; raises BaseMismatch for another shape.
        """
        delta = self.parameters.get(name)
        if delta is None:
            return base_array
        if delta.shape != base_array.shape:
            raise shapes_differ(name, delta.shape, base_array.shape)
        total = base_array.astype(np.float32)
        total += delta.to_dense()
        return total.astype(base_array.dtype)

    @property
    def nnz(self) -> int:
        """Changed elements: stored values of sparse deltas, all elements of the others."""
        return sum(delta.nnz for delta in self.parameters.values())

    @property
    def density(self) -> float:
        """`nnz` over the elements of the parameters it has a delta for; 0.0 when it has none."""
        total = sum(math.prod(delta.shape) for delta in self.parameters.values())
        return self.nnz / total if total else 0.0

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def _map(self, change: Callable[[Delta], Delta]) -> "TaskVector":
        return replace(self, parameters={n: change(d) for n, d in self.parameters.items()})


def module_of(parameter: str) -> str:
    """`model.norm` for `model.norm.weight`."""
    return parameter.rpartition(".")[0]


def kind_of(parameter: str) -> str:
    """`model.layers.*.mlp.up_proj.weight`: one word for a parameter and its kin in other layers."""
    return ".".join("*" if part.isdigit() else part for part in parameter.split("."))
