"""The one vector that a merge is made for: `task`, of TALL masks and EMR."""

from collections.abc import Sequence

import numpy as np

from taskvectors.delta import Array
from taskvectors.errors import InvalidLoadout
from taskvectors.values import MAX_ECHO


def rows_of(keys: Sequence[str], task: str) -> Array:
    """bool [K]: which of `keys` are the vector `task`; more than one if it is there twice.

    Raises InvalidLoadout if none is.
    """
    mask = np.array([key == task or key.startswith(f"{task}#") for key in keys], np.bool_)
    if not mask.any():
        choices = ", ".join(keys)[:MAX_ECHO]
        raise InvalidLoadout(
            f"task must be one of the vectors ({choices}), not {task[:MAX_ECHO]!r}"
        )
    return mask
