"""DARE, then the weighted sum (Yu et al. 2024, arXiv 2311.03099, §3).

What is kept is divided by the density, as in the paper and PEFT, not brought back to its L1 norm
as in mergekit, unless `rescale` says so. A drop hangs on the seed, the vector's key, the
parameter's name and the element's flat index alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.linear import weighted_sum
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.rescaling import keep_norm
from taskvectors.sparsify import dare


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, lambda, rescale, seed."""
    merged = weighted_sum(part, drop(part, parameters))
    return unstack(part, merged * np.float32(parameters["lambda"]))


def drop(part: Part, parameters: Mapping[str, Any]) -> Array:
    """The stack's values after drops and rescaling: float32 [K, U]."""
    rows = zip(part.keys, part.stack.values, strict=True)
    return np.stack([_drop(part, key, row, parameters) for key, row in rows])


def _drop(part: Part, key: str, row: Array, parameters: Mapping[str, Any]) -> Array:
    density, seed = parameters["density"], parameters["seed"]
    own = np.flatnonzero(row)
    kept = own[dare(part.stack.index[own], row[own], density, key, seed, part.name)]
    result = np.zeros_like(row)
    result[kept] = row[kept]
    if parameters["rescale"] == "density":
        result[kept] /= np.float32(density)
    elif parameters["rescale"] == "l1" and density < 1:
        result[kept] = keep_norm(row[kept], row[own])
    return result
