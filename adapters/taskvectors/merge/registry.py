"""From a method's name to the function that merges one parameter. Modules load when needed."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from taskvectors.delta import Delta, Shape
from taskvectors.merge.parts import Part, Parts
from taskvectors.sources import Source

Merge: TypeAlias = Callable[[Part], Delta | None]

_MODULES = {
    "linear": "linear",
    "ties": "ties",
    "ties_peft": "ties_peft",
    "ties_original": "ties_original",
    "dare_linear": "dare_linear",
    "dare_ties": "dare_ties",
    "della": "della",
    "breadcrumbs": "breadcrumbs",
    "sce": "sce",
    "consensus": "consensus",
    "tall_masks": "tall_masks",
    "emr": "emr",
    "slerp": "slerp",
    "nuslerp": "nuslerp",
    "model_stock": "model_stock",
    "knots": "knots",
    "tsv": "tsv",
    "iso_c": "iso_c",
}
"""Of each method: the module in this package whose `merge(part, parameters)` it is.

A module with `prepare(sources, parameters, base_shapes)` looks at the whole model first and
returns the function itself. One with `survey(parts, parameters)` does the same, where weights and
selections count: `parts` are all parameters of the merge.
"""


def merger(
    method: str,
    parameters: Mapping[str, Any],
    sources: Sequence[Source],
    base_shapes: Mapping[str, Shape] | None,
    parts: Parts,
) -> Merge:
    """The function that merges one parameter."""
    module = importlib.import_module(f"taskvectors.merge.{_MODULES[method]}")
    if hasattr(module, "prepare"):
        prepared: Merge = module.prepare(sources, parameters, base_shapes)
        return prepared
    if hasattr(module, "survey"):
        surveyed: Merge = module.survey(parts, parameters)
        return surveyed
    return lambda part: module.merge(part, parameters)
