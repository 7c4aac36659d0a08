"""The one vector that a merge is made for: `task`, of TALL masks and EMR."""

from collections.abc import Sequence

import numpy as np

from taskvectors.delta import Array


def rows_of(keys: Sequence[str], task: str) -> Array:
    """bool [K]: which of `keys` are the vector `task`; more than one if it is there twice."""
    mask = np.array([key == task or key.startswith(f"{task}#") for key in keys], np.bool_)
    assert mask.any(), "Method.check_named has looked"
    return mask
