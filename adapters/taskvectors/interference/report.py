"""What a comparison found: figures per pair, overall, per layer and per kind of module.

Advisory: `ADVICE` says what the figures predict, and what they do not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskvectors.interference.elements import PairSums
from taskvectors.interference.subspace import Overlap
from taskvectors.vector import BaseInfo

PREDICTS = (
    "Predicts, roughly: vectors with little overlap more often both survive a linear mix; where"
    " weighted conflict is high, TIES-style merges drop most of what they share (unrelated signs"
    " give 0.5); perplexity damage tracks RMS cosine about linearly (arXiv 2508.11985, abstract)."
)
PREDICTS_NOT = (
    "Does not predict that a mix works: that depends on method and partner (arXiv 2601.22285), and"
    " a low cosine promises nothing (digit domains: cosine .07-.14, 53-56 % of normalised accuracy"
    " kept). Advisory only: nothing but a probe score proves a merge."
)
ADVICE = (PREDICTS, PREDICTS_NOT)
OTHER = "other"
"""The layer of what is in no layer: embeddings, the final norm, the head."""


@dataclass(frozen=True)
class VectorFigures:
    """One vector by itself.

    norm: √Σ d². nnz: elements that are not zero, of all three kinds of deltas. density: nnz over
    the elements of the parameters that it has a delta for.
    """

    name: str
    norm: float
    nnz: int
    density: float
    num_parameters: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, six significant digits."""
        return {
            "name": self.name,
            "norm": _short(self.norm),
            "nnz": self.nnz,
            "density": _short(self.density),
            "parameters": self.num_parameters,
        }


@dataclass(frozen=True)
class Figures:
    """How two deltas a and b relate, over a set of parameters. Sums are over their elements.

    cosine: Σ ab / √(Σ a² Σ b²); 0 where either is absent.
    conflict: Σ min(|a|, |b|) where ab < 0, over Σ min(|a|, |b|); 0 without common support. The
        idea is TIES' interference of signs (arXiv 2306.01708, section 3); the weights are ours.
    conflict_share: entries with ab < 0 over entries with ab ≠ 0; 0 without common support.
    jaccard: entries with ab ≠ 0 over entries with a ≠ 0 or b ≠ 0; 0 where there are none.
    overlap_energy: Σ a² where b ≠ 0, over Σ a²; and the same of b.
    subspace: the mean over the matrices that both change; None where there are none.
    """

    cosine: float
    conflict: float
    conflict_share: float
    jaccard: float
    overlap_energy: tuple[float, float]
    common: int
    subspace: Overlap | None
    num_matrices: int

    @classmethod
    def of(cls, sums: PairSums) -> "Figures":
        """The figures that follow from sums."""
        norms = math.sqrt(sums.left_energy) * math.sqrt(sums.right_energy)
        cosine = max(-1.0, min(1.0, _ratio(sums.dot, norms)))
        return cls(
            cosine,
            _ratio(sums.opposed_mass, sums.common_mass),
            _ratio(sums.opposed, sums.common),
            _ratio(sums.common, sums.left_nnz + sums.right_nnz - sums.common),
            (
                _share(sums.left_common_energy, sums.left_energy),
                _share(sums.right_common_energy, sums.right_energy),
            ),
            sums.common,
            _mean_overlap(sums),
            sums.num_matrices,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, six significant digits."""
        return {
            "cosine": _short(self.cosine),
            "conflict": _short(self.conflict),
            "conflict_share": _short(self.conflict_share),
            "jaccard": _short(self.jaccard),
            "overlap_energy": [_short(share) for share in self.overlap_energy],
            "common": self.common,
            "subspace": None if self.subspace is None else _subspace_json(self),
        }


@dataclass(frozen=True)
class PairReport:
    """Two vectors: over all parameters, per layer ("0", "1", …, "other") and per kind of module."""

    left: str
    right: str
    overall: Figures
    layers: Mapping[str, Figures]
    kinds: Mapping[str, Figures]

    def to_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """Plain JSON; `layers` and `kinds` only if asked for."""
        fields = {"left": self.left, "right": self.right, **self.overall.to_json()}
        if per_layer:
            for key, parts in (("layers", self.layers), ("kinds", self.kinds)):
                fields[key] = {name: figures.to_json() for name, figures in parts.items()}
        return fields


@dataclass(frozen=True)
class Report:
    """What `compare` found. pairs: each once, in the order of the vectors."""

    base: BaseInfo
    vectors: tuple[VectorFigures, ...]
    pairs: tuple[PairReport, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that any vector changes, in order; "other" comes last."""
        return tuple(self.pairs[0].layers)

    def to_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """Plain JSON, with the advice."""
        return {
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "vectors": [vector.to_json() for vector in self.vectors],
            "pairs": [pair.to_json(per_layer=per_layer) for pair in self.pairs],
            "advice": list(ADVICE),
        }


def _mean_overlap(sums: PairSums) -> Overlap | None:
    if not sums.num_matrices:
        return None
    totals = (sums.left_singular, sums.right_singular, sums.left_chance, sums.right_chance)
    return Overlap(*(total / sums.num_matrices for total in totals))


def _subspace_json(figures: Figures) -> dict[str, Any]:
    assert figures.subspace is not None
    fields = {name: _short(value) for name, value in vars(figures.subspace).items()}
    return {**fields, "matrices": figures.num_matrices}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share(part: float, whole: float) -> float:
    """A ratio of two sums of the same terms in another order may exceed 1 by a rounding."""
    return min(1.0, _ratio(part, whole))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
