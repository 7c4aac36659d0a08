"""KnOTS: TIES in one basis for all vectors (Stoica et al. 2024, arXiv 2410.19735, §4).

`[τ₁ … τ_K] = U Σ [V₁ … V_K]`; the parts `Σ Vₖ` are merged by this library's `ties` (mergekit's),
and U takes the result back. Other than in FusionBench, the least singular value that counts is
relative to the largest, so results scale with the vectors. A parameter that is no matrix is merged
by `ties` as it is. Computed by LAPACK, see `spectral`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta, DenseDelta
from taskvectors.merge import ties
from taskvectors.merge.parts import Part, present
from taskvectors.merge.spectral import delta_of, spectrum_side_by_side

_NOISE = 2.0**-40  # float64 leaves less of a zero; TIES would count it as an agreeing value


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, lambda."""
    parameters = {**parameters, "normalize": True}
    if len(part.shape) != 2:
        return ties.merge(part, parameters)
    terms = [(delta, weight) for delta, weight in present(part) if weight != 0]
    if not terms:
        return None
    spectrum = spectrum_side_by_side([delta for delta, _ in terms])
    aligned = spectrum.values[:, None] * spectrum.right
    aligned[np.abs(aligned) < spectrum.values.max(initial=0.0) * _NOISE] = 0
    deltas = tuple(
        DenseDelta(own.astype(np.float32)) for own in np.split(aligned, len(terms), axis=1)
    )
    weights = tuple(weight for _, weight in terms)
    keys = part.keys[: len(terms)]
    merged = ties.merge(Part(part.name, deltas[0].shape, deltas, weights, keys), parameters)
    if merged is None:
        return None
    return delta_of(spectrum.left, merged.to_dense().astype(np.float64), part.shape)
