"""What is searched: the weights of vectors, and where wanted the merge method and its density."""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from outfitter.config import InvalidConfig
from taskvectors.method import Method
from taskvectors.methods import LINEAR, find_method

DIGITS = 2
"""Weights and densities are rounded to hundredths: finer steps change no score that is measured."""


@dataclass(frozen=True)
class Candidate:
    """One loadout of a space: a weight for each vector. density: None where there is none."""

    weights: tuple[float, ...]
    method: str = LINEAR.name
    density: float | None = None

    @cached_property
    def key(self) -> str:
        """Equal for equal candidates; 16 hex digits."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    @property
    def is_base(self) -> bool:
        """True when nothing is added to the base."""
        return self.method == LINEAR.name and not any(self.weights)

    @property
    def size(self) -> float:
        """Σ |weight|: of equally good candidates the smallest is chosen."""
        return sum(map(abs, self.weights))

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {"weights": list(self.weights), "method": self.method, "density": self.density}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Candidate":
        """Raises KeyError, TypeError."""
        return cls(tuple(fields["weights"]), fields["method"], fields["density"])

    def task_vectors(self, names: Sequence[str]) -> dict[str, Any] | None:
        """The field of a request; None for the base alone. names: of the vectors, in order."""
        if self.is_base:
            return None
        pairs = zip(names, self.weights, strict=True)
        is_linear = self.method == LINEAR.name
        kept = [{"name": n, "weight": w} for n, w in pairs if w or not is_linear]
        fields: dict[str, Any] = {"vectors": kept, "method": self.method}
        if self.density is not None:
            fields["density"] = self.density
            fields |= _epsilon(find_method(self.method), self.density)
        return fields

    def describe(self, names: Sequence[str]) -> str:
        """`json 1.20, uppercase 0.80; ties, density 0.40`."""
        pairs = zip(names, self.weights, strict=True)
        text = ", ".join(f"{name} {weight:g}" for name, weight in pairs if weight) or "base"
        if self.method != LINEAR.name:
            text += f"; {self.method}"
        return text if self.density is None else f"{text}, density {self.density:g}"


@dataclass(frozen=True)
class Space:
    """Bounds of a search. Bounds are inclusive; raises InvalidConfig, InvalidLoadout."""

    num_vectors: int
    weights: tuple[float, float] = (0.0, 1.5)
    methods: tuple[str, ...] = (LINEAR.name,)
    density: tuple[float, float] = (0.1, 1.0)

    def __post_init__(self) -> None:
        low, high = self.weights
        if not -16 <= low < high <= 16:
            raise InvalidConfig(f"unsupported --weights {low:g}:{high:g}; use such as 0:1.5")
        if not 0 < self.density[0] <= self.density[1] <= 1:
            low, high = self.density
            raise InvalidConfig(f"unsupported --density {low:g}:{high:g}; use such as 0.1:1")
        for name in self.methods:
            method = find_method(name)
            method.check_at_request()
            method.check_vectors([1.0] * self.num_vectors)
            if required := [p.name for p in method.parameters if p.is_required]:
                raise InvalidConfig(f"method {name!r} needs {required[0]!r}, which is not searched")

    def has_density(self, method: str) -> bool:
        """Whether a method has one, so that it is searched."""
        return any(p.name == "density" for p in find_method(method).parameters)

    def has_weights(self, method: str) -> bool:
        """Whether a method knows weights."""
        return find_method(method).is_weighted

    def candidate(
        self, weights: Sequence[float], method: str | None = None, density: float | None = None
    ) -> Candidate:
        """Within the bounds and rounded. density: ignored where the method has none."""
        name = method or self.methods[0]
        kept = tuple(_rounded(w, self.weights) for w in weights)
        if not self.has_weights(name):
            kept = (1.0,) * self.num_vectors
        if not self.has_density(name):
            return Candidate(kept, name)
        return Candidate(kept, name, _rounded(density or self.density[1], self.density))

    def draw(self, rng: random.Random) -> Candidate:
        """Uniform over the bounds."""
        method = rng.choice(self.methods)
        weights = [rng.uniform(*self.weights) for _ in range(self.num_vectors)]
        return self.candidate(weights, method, rng.uniform(*self.density))

    @property
    def base(self) -> Candidate:
        """No vectors."""
        return Candidate((0.0,) * self.num_vectors)

    @property
    def equals(self) -> list[Candidate]:
        """Equal weights: the mean of the vectors, and their sum."""
        scales = (1 / self.num_vectors, 1.0)
        found = (self._fixed((scale,) * self.num_vectors) for scale in scales)
        return [*dict.fromkeys(found)]

    @property
    def alone(self) -> list[Candidate]:
        """Each vector alone, at weight 1."""
        positions = range(self.num_vectors)
        return [self._fixed(tuple(float(i == k) for i in positions)) for k in positions]

    def _fixed(self, weights: tuple[float, ...]) -> Candidate:
        """Baselines are what they are, whatever the bounds; always linear."""
        return Candidate(tuple(round(weight, DIGITS) for weight in weights))

    def to_json(self) -> dict[str, Any]:
        """All that is searched."""
        fields = {"weights": list(self.weights), "methods": list(self.methods)}
        if any(map(self.has_density, self.methods)):
            fields["density"] = list(self.density)
        return fields


def _rounded(value: float, bounds: tuple[float, float]) -> float:
    """Within the bounds, which may be finer than what is rounded to."""
    step = 10**-DIGITS
    low, high = math.ceil(bounds[0] / step - 1e-9), math.floor(bounds[1] / step + 1e-9)
    if low > high:
        return bounds[0]
    return float(round(min(max(round(value / step), low), high) * step, DIGITS)) + 0.0


def _epsilon(method: Method, density: float) -> dict[str, float]:
    """Half a spread that keeps all chances within 0 and 1, for methods that have one."""
    default = next((p.default for p in method.parameters if p.name == "epsilon"), None)
    if not isinstance(default, float) or density >= 1:
        return {}
    return {"epsilon": round(min(default, 0.9 * min(density, 1 - density)), 4)}
