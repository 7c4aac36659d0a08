"""The products in torch's own operators, for CPU and CUDA tensors.

Semantics, shapes and dtypes are those of `reference`; a sparse delta is a `SparseMatrix`.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

CSR_MAX_ROWS = 32
"""Above this many tokens an embedding bag beats torch's CSR product on CPU."""


@dataclass(frozen=True)
class SparseMatrix:
    """A compressed sparse row matrix with 32-bit indices.

    crow: [rows + 1] int32; col: [nnz] int32, ascending within a row; val: [nnz].
    """

    shape: tuple[int, int]
    crow: Tensor
    col: Tensor
    val: Tensor

    @classmethod
    def from_flat(cls, shape: tuple[int, int], index: Tensor, val: Tensor) -> "SparseMatrix":
        """From ascending row-major positions `index` [nnz] int64 and values `val` [nnz]."""
        rows, columns = shape
        counts = torch.bincount(index // columns, minlength=rows)
        crow = torch.zeros(rows + 1, dtype=torch.int32, device=index.device)
        torch.cumsum(counts, 0, dtype=torch.int32, out=crow[1:])
        return cls(shape, crow, (index % columns).int(), val)

    @cached_property
    def csr(self) -> Tensor:
        """The same data as a torch CSR tensor; nothing is copied."""
        return torch.sparse_csr_tensor(
            self.crow, self.col, self.val, self.shape, check_invariants=False
        )


def sparse_product(delta: SparseMatrix, x: Tensor) -> Tensor:
    """x @ deltaᵀ: [T, in] → [T, out], in the dtype of the delta's values."""
    xt = x.to(delta.val.dtype).T
    if x.is_cuda or x.shape[0] <= CSR_MAX_ROWS:
        return (delta.csr @ xt.contiguous()).T
    bags = F.embedding_bag(
        delta.col,
        xt.contiguous(),
        delta.crow[:-1],
        mode="sum",
        per_sample_weights=delta.val,
    )
    return bags.T


def sparse_linear(y: Tensor, x: Tensor, coef: Tensor, delta: SparseMatrix) -> None:
    """y[t] += coef[t] · delta @ x[t]; coef [T]."""
    # A zero coefficient meets its own row of x only, so it needs no `weigh`.
    y += sparse_product(delta, x.to(delta.val.dtype) * coef[:, None]).to(y.dtype)


def weigh(product: Tensor, coef: Tensor) -> Tensor:
    """product · coef, in the wider dtype, and zero where coef is, whatever the product is."""
    return torch.where(coef == 0, 0.0, product * coef)


class RankBlock(NamedTuple):
    """Some ranks of a low-rank product and where their output goes.

    ranks: rows of `a`; outputs: columns of `y`; coef: [T, R], the weight of each rank's owner;
    b: [R, columns], the scale folded in.
    """

    ranks: slice
    outputs: slice
    coef: Tensor
    b: Tensor


def low_rank_linear(y: Tensor, x: Tensor, a: Tensor, blocks: Iterable[RankBlock]) -> None:
    """y[t, outputs] += Σ_r coef[t, r] · (a[r] · x[t]) · b[r] for every block; x is read once.

    y: [T, out]; x: [T, in]; a: [ΣR, in].
    """
    hidden = x @ a.T
    for block in blocks:
        weighted = weigh(hidden[:, block.ranks], block.coef).to(hidden.dtype)
        y[:, block.outputs].addmm_(weighted, block.b)


def rms_norm(y: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """y[t] += x[t] / sqrt(mean(x[t]²) + eps) ⊙ weight[t].

    y, x: [T, …, dim]; weight: [T, …, dim] or broadcastable, Σ_k coef[t, k] · delta_k.
    """
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    y += (normal * weight).to(y.dtype)


def sparse_rows(y: Tensor, ids: Tensor, coef: Tensor, delta: SparseMatrix) -> None:
    """y[t] += coef[t] · delta[ids[t]]; ids [T] int64, coef [T]."""
    start = delta.crow[ids].long()
    count = delta.crow[ids + 1].long() - start
    token = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), count)
    first = torch.cumsum(count, 0) - count
    position = torch.arange(len(token), device=ids.device) + (start - first)[token]
    values = delta.val[position] * coef[token].to(delta.val.dtype)
    y.index_put_((token, delta.col[position].long()), values.to(y.dtype), accumulate=True)
