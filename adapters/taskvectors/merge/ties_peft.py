"""TIES in PEFT's dialect (Yadav et al. 2023, arXiv 2306.01708, §4).

Each vector keeps `int(density · numel)` elements of every parameter, perhaps none. The election
knows no weights: a vector of negative weight votes for its own sign. The weighted sum of what
agrees is divided by the number of agreeing vectors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.election import agreeing, total
from taskvectors.merge.linear import weighted_sum
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.ties import trim


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, majority_sign."""
    trimmed = trim(part, int(parameters["density"] * part.numel))
    mask = agreeing(trimmed, by_count=parameters["majority_sign"] == "frequency")
    merged = weighted_sum(part, trimmed * mask)
    merged /= np.maximum(total(mask), np.float32(1))
    return unstack(part, merged)
