"""What an extraction kept, for people and for scripts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from taskvectors.delta import Shape
from taskvectors.vector import BaseInfo

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (parameters done, parameters in all, name of the one just done)."""


@dataclass(frozen=True)
class ParameterReport:
    """kind: sparse or dense. energy and kept_energy: Σ d² of the difference and of what is kept."""

    name: str
    kind: str
    shape: Shape
    nnz: int
    energy: float
    kept_energy: float

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept over all elements."""
        return self.nnz / self.numel

    @property
    def kept(self) -> float:
        """The kept share of the energy, 0 to 1 (rounding to the stored dtype could exceed it)."""
        return min(1.0, self.kept_energy / self.energy)


@dataclass(frozen=True)
class ExtractReport:
    """Of changed parameters; `unchanged` names the others."""

    path: Path
    digest: str
    nbytes: int
    base: BaseInfo
    parameters: tuple[ParameterReport, ...]
    unchanged: tuple[str, ...]

    @property
    def nnz(self) -> int:
        """Kept entries in all."""
        return sum(parameter.nnz for parameter in self.parameters)

    @property
    def density(self) -> float:
        """Kept entries over the elements of changed parameters; 0.0 when nothing changed."""
        total = sum(parameter.numel for parameter in self.parameters)
        return self.nnz / total if total else 0.0

    @property
    def kept(self) -> float:
        """The kept share of the energy over all parameters; 1.0 when nothing changed."""
        energy = sum(parameter.energy for parameter in self.parameters)
        kept = sum(parameter.kept_energy for parameter in self.parameters)
        return min(1.0, kept / energy) if energy else 1.0
