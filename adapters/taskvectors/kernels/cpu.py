"""All deltas of one layer in one call on a CPU: each vector is paid by the tokens that use it.

Compiled by numba when the engine starts, and kept in its cache. Semantics are those of
`reference`. The tokens of a vector are packed side by side, 16, 8 or 1 to a row, so that one
nonzero meets all of them in one vector instruction. Coefficients scale x, and never a product: a
zero one leaves a token's row alone, whatever another token's product is.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from taskvectors.kernels.blocks import MOST_LANES, Array, Block, LayerTable, RankPair, TokenGroups


def add_layer(y: Tensor, x: Tensor, table: LayerTable, groups: TokenGroups) -> None:
    """y[t] += Σ_k coef[t, k] · Δ_k x[t] over all blocks of the layer.

    y: [T, out], wider for a padded head, contiguous; x: [T, in]; both of one dtype, on the CPU:
    float32, bfloat16, or another at the price of copies.
    """
    if not len(table.fields):
        return
    assert y.is_contiguous()
    assert y.dtype == x.dtype
    if x.dtype not in (torch.float32, torch.bfloat16):
        total = torch.zeros(y.shape)
        add_layer(total, x.float(), table, groups)
        y += total.to(y.dtype)
        return
    x = x.contiguous()
    rows, width = x.shape
    out = y.shape[1]
    scratch = _scratch(table.scratch + rows * (width + out))
    run, places = _compiled(x.dtype), (table.address, groups.address)
    run(y.data_ptr(), x.data_ptr(), rows, out, width, *places, scratch, _LANES)


def warm_up(dtype: torch.dtype) -> None:
    """Compile for an engine's dtype, or read it from the cache, before a step needs it.

    The first time takes half a minute, and from the cache a second.
    """
    empty = TokenGroups(np.zeros((1, 2), np.int32), np.zeros(0, np.int32), np.zeros((1, 0), "f4"))
    block = Block(0, 0, 0, RankPair(np.zeros((1, 1), "f4"), np.zeros((1, 1), "f4"), 1.0))
    zeros = torch.zeros(1, 1, dtype=dtype)
    add_layer(zeros, zeros, LayerTable([block]), empty)


@functools.cache
def _compiled(dtype: torch.dtype) -> Callable[..., None]:
    from taskvectors.kernels import compiled  # numba takes half a second, which GPUs need not wait

    run: Callable[..., None]
    run = compiled.add_bf16 if dtype == torch.bfloat16 else compiled.add_float32
    return run


_LANES = np.zeros(MOST_LANES, np.int64)
_BUFFERS: dict[str, Array] = {}


def _scratch(size: int) -> Array:
    """Memory for one call, kept for the next; only the engine's step thread calls."""
    if len(_BUFFERS.get("scratch", ())) < size:
        _BUFFERS["scratch"] = np.empty(2 * size, np.float32)
    return _BUFFERS["scratch"]
