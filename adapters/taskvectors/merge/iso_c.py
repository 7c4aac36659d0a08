"""Iso-C: the sum with all singular values made equal (Marczak et al. 2025, arXiv 2502.04959, §4.1).

`λ σ̄ U Vᵀ` of `Σ wₖ τₖ = U Σ Vᵀ`, σ̄ the mean singular value. Other than in FusionBench, U, V and the
mean are those of the sum's own rank: directions in which it is zero are not filled with arbitrary
ones. A parameter that is no matrix gets λ times the mean. Computed by LAPACK, see `spectral`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.election import total, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.spectral import delta_of, spectrum_of_sum


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: lambda."""
    if len(part.shape) != 2:
        return mean(part, parameters["lambda"])
    spectrum = spectrum_of_sum(part)
    if not len(spectrum.values):
        return None
    level = spectrum.values.mean() * parameters["lambda"]
    return delta_of(spectrum.left * level, spectrum.right, part.shape)


def mean(part: Part, scale: float) -> Delta | None:
    """`scale · Σ wₖ τₖ / K`."""
    summed = total(weighted(part.stack.values, part.weights))
    return unstack(part, summed * np.float32(scale / len(part.deltas)))
