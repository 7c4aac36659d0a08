"""EMR merging: elect, mask, rescale (Huang et al. 2024, arXiv 2405.17461, §3).

The unified vector has the sign of the sum and the largest magnitude of that sign. For one vector,
`task`, it is masked where signs differ and rescaled, one factor for the whole model. FusionBench's
details: a sum of zero elects minus; the rescaler is a ratio of sums over the parameters of *mean*
magnitudes. Sums go in order, so the bytes do not depend on the machine.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from taskvectors.delta import Array, Delta
from taskvectors.merge.election import total, weighted
from taskvectors.merge.parts import Part, unstack
from taskvectors.merge.task import rows_of
from taskvectors.sparsify import ordered_sum


def survey(parts: Iterable[Part], parameters: Mapping[str, Any]) -> Callable[[Part], Delta | None]:
    """parameters: task. Reads all parameters once for the rescaler; raises InvalidLoadout."""
    task = parameters["task"]
    if task is None:
        return lambda part: unstack(part, unify(weighted(part.stack.values, part.weights)))
    return partial(recover, task=task, rescaler=_rescaler(parts, task))


def recover(part: Part, task: str, rescaler: float) -> Delta | None:
    """The unified vector as `task` sees it."""
    return unstack(part, _seen_by(part, task)[1] * np.float32(rescaler))


def unify(values: Array) -> Array:
    """Elected sign × largest magnitude of that sign; values: float32 [K, U], result [U]."""
    sign = np.where(total(values) > 0, np.float32(1), np.float32(-1))
    largest: Array = np.maximum(values * sign, np.float32(0)).max(axis=0)
    return np.asarray(largest * sign + np.float32(0))  # no −0


def _seen_by(part: Part, task: str) -> tuple[Array, Array]:
    """(the vector, the unified vector where the signs agree): float32 [U] each.

    A vector that is there several times, in several selections, is all of them together, once.
    """
    values = weighted(part.stack.values, part.weights)
    own, unified = unify(values[rows_of(part.keys, task)]), unify(values)
    return own, unified * (np.sign(own) == np.sign(unified))


def _rescaler(parts: Iterable[Part], task: str) -> float:
    """0 where no sign agrees anywhere: there is nothing to rescale."""
    before = after = 0.0
    for part in parts:
        own, masked = _seen_by(part, task)
        before += ordered_sum(np.abs(own)) / max(1, part.numel)
        after += ordered_sum(np.abs(masked)) / max(1, part.numel)
    return before / after if after else 0.0
