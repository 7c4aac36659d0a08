"""The operators that a compiled or captured model calls on a GPU: opaque, with fixed addresses.

An operator names an arena and a site by number and reads everything else in the arena's buffers,
so neither torch.compile nor a captured graph sees what a step holds.
"""

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor


class SiteProducts(Protocol):
    """What an arena can add to the output of its sites."""

    def add(self, site: int, y: Tensor, x: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k x[t]. y: [T, ≥ out]; x: [T, in]."""

    def add_rows(self, site: int, y: Tensor, ids: Tensor) -> None:
        """y[t] += Σ_k C[t, k] · Δ_k[ids[t]]. y: [T, dim]; ids: [T]."""

    def add_norm(self, site: int, y: Tensor, x: Tensor, eps: float) -> None:
        """y[t] += Σ_k C[t, k] · normal(x[t]) ⊙ Δ_k. y, x: [T, dim] or [T, heads, dim]."""


_ARENAS: "weakref.WeakValueDictionary[int, SiteProducts]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def register(arena: SiteProducts) -> int:
    """The number by which operators know `arena`, for as long as it lives."""
    number = next(_NUMBERS)
    _ARENAS[number] = arena
    return number


@torch.library.custom_op("taskvectors::add_linear", mutates_args=("y",))
def add_linear(y: Tensor, x: Tensor, arena: int, site: int) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k x[t] over the resident vectors of one site.

    y: [T, ≥ out]; x: [T, in]; both float32, bfloat16 or float16, rows contiguous.
    """
    _ARENAS[arena].add(site, y, x)


@add_linear.register_fake
def _(y: Tensor, x: Tensor, arena: int, site: int) -> None:  # noqa: ARG001 (the operator's)
    assert y.dim() == x.dim() == 2


@torch.library.custom_op("taskvectors::add_rows", mutates_args=("y",))
def add_rows(y: Tensor, ids: Tensor, arena: int, site: int) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k[ids[t]] over the resident vectors of an embedding.

    y: [T, dim], rows contiguous; ids: [T], int32 or int64.
    """
    _ARENAS[arena].add_rows(site, y, ids)


@add_rows.register_fake
def _(y: Tensor, ids: Tensor, arena: int, site: int) -> None:  # noqa: ARG001 (the operator's)
    assert y.dim() == 2
    assert ids.dim() == 1


@torch.library.custom_op("taskvectors::add_norm", mutates_args=("y",))
def add_norm(y: Tensor, x: Tensor, eps: float, arena: int, site: int) -> None:
    """y[t] += Σ_k C[t, k] · x[t] / sqrt(mean(x[t]²) + eps) ⊙ Δ_k over the vectors of a norm.

    y, x: [T, dim], [T · heads, dim] or [T, heads, dim], the last dimension contiguous.
    """
    _ARENAS[arena].add_norm(site, y, x, eps)


@add_norm.register_fake
def _(y: Tensor, x: Tensor, eps: float, arena: int, site: int) -> None:  # noqa: ARG001 (the operator's)
    assert y.shape == x.shape
