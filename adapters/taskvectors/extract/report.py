"""What an extraction does and what it kept, for people and for scripts."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from taskvectors.delta import Shape
from taskvectors.extract.sizes import Size
from taskvectors.vector import BaseInfo

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (bytes read, bytes to read in all, what is being done to which parameter)."""


class Meter:
    """Adds up bytes read, from any thread, and tells a Progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, nbytes: int, what: str) -> None:
        """`nbytes` more have been read."""
        if self._progress is not None:
            with self._lock:
                self._done += nbytes
                self._progress(self._done, self._total, what)


@dataclass(frozen=True)
class ParameterReport:
    """kind: sparse, low_rank or dense. values, index: how they are stored.

    nnz: changed elements (all, of a low-rank or dense delta). energy: Σ d² of the difference;
    kept_energy: over the kept entries or singular values, before rounding and rescaling.
    """

    name: str
    kind: str
    shape: Shape
    nnz: int
    energy: float
    kept_energy: float
    size: Size
    values: str
    index: str
    rank: int

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Changed over all elements."""
        return self.nnz / self.numel

    @property
    def kept(self) -> float:
        """The kept share of the energy, 0 to 1 (rounding of sums could exceed it)."""
        return min(1.0, self.kept_energy / self.energy) if self.energy else 1.0


@dataclass(frozen=True)
class ExtractReport:
    """Of changed parameters; `unchanged` names the others."""

    path: Path
    digest: str
    nbytes: int
    base: BaseInfo
    parameters: tuple[ParameterReport, ...]
    unchanged: tuple[str, ...]
    finetuned_fingerprint: str | None = None

    @property
    def nnz(self) -> int:
        """Changed elements in all."""
        return sum(parameter.nnz for parameter in self.parameters)

    @property
    def density(self) -> float:
        """Changed elements over the elements of changed parameters; 0.0 when nothing changed."""
        total = sum(parameter.numel for parameter in self.parameters)
        return self.nnz / total if total else 0.0

    @property
    def kept(self) -> float:
        """The kept share of the energy over all parameters; 1.0 when nothing changed."""
        energy = sum(parameter.energy for parameter in self.parameters)
        kept = sum(parameter.kept_energy for parameter in self.parameters)
        return min(1.0, kept / energy) if energy else 1.0

    @property
    def size(self) -> Size:
        """Of all parameters together."""
        return sum((parameter.size for parameter in self.parameters), Size())
