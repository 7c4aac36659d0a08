"""TALL masks and the sum seen through one of them (Wang et al. 2024, arXiv 2405.07813, §4).

`τ_MTL = Σ wₖ τₖ`; the mask of vector t is where `|τₜ| > λ |τ_MTL − τₜ|`: where the merged model is
near to that vector's own. FusionBench's strict comparison. Sums go by vector, so the bytes do not
depend on the machine.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.election import total, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.task import rows_of


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """`λ · mask_task ∘ τ_MTL`."""
    summed, masks = sum_and_masks(part, parameters["mask_lambda"])
    mask = masks[rows_of(part.keys, parameters["task"])].any(axis=0)
    return unstack(part, summed * mask * np.float32(parameters["lambda"]))


def sum_and_masks(part: Part, mask_lambda: float) -> tuple[Array, Array]:
    """(float32 [U] weighted sum, bool [K, U] masks) on the stack; masks compare unweighted τ."""
    values = part.stack.values
    summed = total(weighted(values, part.weights))
    masks = np.abs(values) > np.abs(summed - values) * np.float32(mask_lambda)
    return summed, masks
