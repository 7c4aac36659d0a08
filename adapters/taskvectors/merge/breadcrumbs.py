"""Model Breadcrumbs (Davari & Belilovsky 2024, arXiv 2312.06795, §3) in mergekit's dialect.

Of each vector's elements of a parameter the `int(gamma · numel)` largest are dropped, the next
`int(density · numel)` kept; where fewer are left, fewer outliers are dropped. Nothing is rescaled.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvectors.delta import Delta
from taskvectors.merge.linear import weighted_sum
from taskvectors.merge.parts import Part, unstack
from taskvectors.sparsify import breadcrumbs


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: density, gamma, lambda."""
    index, density, gamma = part.stack.index, parameters["density"], parameters["gamma"]
    banded = np.stack(
        [row * breadcrumbs(index, row, part.numel, density, gamma) for row in part.stack.values]
    )
    return unstack(part, weighted_sum(part, banded) * np.float32(parameters["lambda"]))
