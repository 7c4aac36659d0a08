"""The operator by which a compiled model calls what a layer does eagerly.

A compiler sees only that it writes to y: the code behind it may look at the step and at the
resident vectors, both of which change after the trace.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Add = Callable[[Tensor, Tensor], None]
_ADDS: list[Add] = []
"""Never shrinks: traces hold positions."""


def operator(add: Add) -> Add:
    """`add(y, x)`, which writes to y, as a call that a compiler does not look into."""
    number = len(_ADDS)
    _ADDS.append(add)

    def call(y: Tensor, x: Tensor) -> None:
        torch.ops.taskvectors.add_deltas(y, x, number)

    return call


def _add_deltas(y: Tensor, x: Tensor, site: int) -> None:
    _ADDS[site](y, x)


# Not `torch.library.custom_op`, whose wrapper costs more than a small layer's deltas.
_library: Any = torch.library.Library("taskvectors", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("add_deltas(Tensor(a!) y, Tensor x, int site) -> ()")
_library.impl("add_deltas", _add_deltas, "CPU")
torch.library.register_fake("taskvectors::add_deltas", lambda *_: None, lib=_library)
