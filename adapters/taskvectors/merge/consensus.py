"""Consensus merging (Wang et al. 2024, arXiv 2405.07813, §4).

The weighted sum without the elements that lie in fewer than `agreement` TALL masks: 1 drops what
serves no vector, 2 also what serves a single one, 0 nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.tall_masks import sum_and_masks


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: agreement, lambda, mask_lambda."""
    summed, masks = sum_and_masks(part, parameters["mask_lambda"])
    kept = masks.sum(axis=0) >= parameters["agreement"]
    return unstack(part, summed * kept * np.float32(parameters["lambda"]))
