"""Task singular vectors, TSV-M (Gargiulo et al. 2024, arXiv 2412.00081, §4).

Each of K vectors keeps its `min(m, n) // K` largest singular values; the kept singular vectors of
all, side by side, are replaced by the nearest orthonormal ones. Other than in FusionBench,
directions of no energy take no part (there they are arbitrary), and a vector keeps at least one.
Weights scale the vectors first. A parameter that is no matrix gets λ times the mean. Computed by
LAPACK, see `spectral`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.iso_c import mean
from taskvectors.merge.parts import Part, present
from taskvectors.merge.spectral import delta_of, orthogonal, spectrum_of


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: lambda."""
    if len(part.shape) != 2:
        return mean(part, parameters["lambda"])
    rank = max(1, min(part.shape) // len(part.deltas))
    kept = [spectrum_of(delta, weight).largest(rank) for delta, weight in present(part)]
    if not any(len(spectrum.values) for spectrum in kept):
        return None
    values = np.concatenate([spectrum.values for spectrum in kept]) * parameters["lambda"]
    left = orthogonal(np.hstack([spectrum.left for spectrum in kept]))
    right = orthogonal(np.vstack([spectrum.right for spectrum in kept]))
    return delta_of(left * values, right, part.shape)
