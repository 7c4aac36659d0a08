"""Spherical interpolation of two vectors (Shoemake 1985), as mergekit's `nuslerp` with a base.

One angle for the whole parameter, or for each row or column. Sparse vectors stay sparse.
"""

from collections.abc import Mapping
from typing import Any

from taskvectors.delta import Delta
from taskvectors.merge.angles import Along, Groups, arc_factors, share_of_second
from taskvectors.merge.parts import Part, unstack

_LEAST_NORM = 1e-7
_COLLINEAR = 2.0**-24  # 1 − cos²: what float32, in which mergekit computes, cannot tell from 0


def merge(part: Part, parameters: Mapping[str, Any]) -> Delta | None:
    """parameters: flatten, row_wise. `t` is the second weight's share of both."""
    along: Along = "columns" if parameters["row_wise"] else "rows"
    groups = Groups(part.stack.index, part.shape, "all" if parameters["flatten"] else along)
    first, second = part.stack.values
    norms = groups.norm(first).clip(_LEAST_NORM) * groups.norm(second).clip(_LEAST_NORM)
    cosine = (groups.inner(first, second) / norms).clip(-1, 1)
    factors = arc_factors(cosine, share_of_second(part.weights), 1 - cosine * cosine <= _COLLINEAR)
    return unstack(part, groups.spread(factors[0], first) + groups.spread(factors[1], second))
