"""From a method's name to the function that merges one parameter. Modules load when needed."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from taskvectors.delta import Delta
from taskvectors.merge.parts import Part, Parts

Merge: TypeAlias = Callable[[Part], Delta | None]


def merger(method: str, parameters: Mapping[str, Any], parts: Parts) -> Merge:
    """The function that merges one parameter; parameters: of the method, complete.

    It is `merge(part, parameters)` of the module in this package that is called as the method. A
    module with `survey(parts, parameters)` looks at the whole model first and returns the function.
    """
    module = importlib.import_module(f"taskvectors.merge.{method}")
    if hasattr(module, "survey"):
        surveyed: Merge = module.survey(parts, parameters)
        return surveyed
    return lambda part: module.merge(part, parameters)
