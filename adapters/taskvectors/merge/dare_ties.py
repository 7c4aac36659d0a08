"""DARE, then TIES' election (Yu et al. 2024, arXiv 2311.03099, §3, with mergekit's election)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.dare_linear import drop
from taskvectors.merge.election import elect_and_merge, weighted
from taskvectors.merge.parts import Part, unstack


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, lambda, rescale, normalize, seed."""
    values = weighted(drop(part, parameters), part.weights)
    merged = elect_and_merge(values, part.weights, normalize=parameters["normalize"])
    return unstack(part, merged * np.float32(parameters["lambda"]))
