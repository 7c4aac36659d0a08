"""Layers: each hooked vLLM module adds the deltas of the step's loadouts to its own output."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskvectors.kernels import torch_ops
from taskvectors.kernels.cpu import add_layer
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.coefficients import StepCoefficients
from taskvectors.vllm_plugin.deltas import LowRankPack
from taskvectors.vllm_plugin.sites import Part, Site
from taskvectors.vllm_plugin.trace_ops import operator


class StepState:
    """What the running step needs to know; written by the manager, read by every layer.

    tokens: coefficients of the rows that go through the decoder. samples: of the rows that go
    through the head. Both are None when no loadout is active. prompt_hidden: while prompt
    logprobs are computed, the decoder's output of all tokens, of which the head gets slices.
    rehearses: the model is traced as for a step with loadouts.
    """

    def __init__(self) -> None:
        self.tokens: StepCoefficients | None = None
        self.samples: StepCoefficients | None = None
        self.prompt_hidden: Tensor | None = None
        self.rehearses = False

    @property
    def is_mixed(self) -> bool:
        """Whether a compiled model must run the trace that adds deltas."""
        return self.rehearses or self.tokens is not None

    def head_coefficients(self, x: Tensor) -> StepCoefficients | None:
        """The coefficients of the rows `x` [T, dim] that the head is applied to."""
        if self.prompt_hidden is None or self.tokens is None:
            return self.samples
        row_bytes = self.prompt_hidden.stride(0) * self.prompt_hidden.element_size()
        start, remainder = divmod(x.data_ptr() - self.prompt_hidden.data_ptr(), row_bytes)
        assert remainder == 0, "prompt logprobs were not computed on a slice of hidden states"
        assert 0 <= start <= len(self.prompt_hidden), "slice lies outside the hidden states"
        return self.tokens.slice(start, start + len(x))


def hook(site: Site, state: StepState) -> None:
    """Make the module of `site` add the deltas that `state` asks for."""
    module = site.module
    if site.kind == "norm":
        compat.override_norm(module, _norm_forward(site, state))
    elif site.kind == "linear":
        apply = _linear_apply(site, state, lambda _: state.tokens)
        compat.override_quant_method(module, apply=apply)
    else:
        head = _linear_apply(site, state, state.head_coefficients)
        compat.override_quant_method(module, apply=head, embedding=_lookup(site, state))


def _linear_apply(
    site: Site, state: StepState, coefficients_of: Callable[[Tensor], StepCoefficients | None]
) -> Callable[..., Tensor]:
    def add(y: Tensor, x: Tensor) -> None:
        coefficients = coefficients_of(x)
        if coefficients is None:
            return
        rows = x.reshape(-1, x.shape[-1])
        add_linear(site, coefficients, y.view(len(rows), -1), rows)
        poisoned = None if site.kind == "linear" else coefficients.poisoned_rows()
        if poisoned is not None:
            y[poisoned] = float("nan")

    traced = operator(add)

    def apply(
        original: Callable[..., Tensor], layer: nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        y = original(layer, x, bias)
        if not torch.compiler.is_compiling():
            add(y, x)
        elif state.is_mixed:
            traced(y, x)
        return y

    return apply


def _lookup(site: Site, state: StepState) -> Callable[..., Tensor]:
    def add(y: Tensor, ids: Tensor) -> None:
        if state.tokens is not None:
            add_rows(site, state.tokens, y, ids.long())

    traced = operator(add)

    def embedding(original: Callable[..., Tensor], layer: nn.Module, ids: Tensor) -> Tensor:
        y = original(layer, ids)
        if not torch.compiler.is_compiling():
            add(y, ids)
        elif state.is_mixed:
            traced(y, ids)
        return y

    return embedding


def _norm_forward(site: Site, state: StepState) -> Callable[..., Any]:
    eps = float(getattr(site.module, "variance_epsilon", 1e-6))

    def changes() -> bool:
        coefficients = state.tokens
        return coefficients is not None and not site.deltas.dense.keys().isdisjoint(
            coefficients.columns
        )

    def add(y: Tensor, x: Tensor) -> None:
        if state.tokens is not None and changes():
            add_norm(site, state.tokens, y, x, eps)

    traced = operator(add)

    def forward(original: Callable[..., Any], x: Tensor, residual: Tensor | None) -> Any:
        is_traced = torch.compiler.is_compiling()
        if not (state.is_mixed if is_traced else changes()):
            return original(x, residual)
        before = x.clone() if residual is None else None  # a norm may write in place
        result = original(x, residual)
        y, source = (result, before) if residual is None else result
        assert source is not None
        (traced if is_traced else add)(y, source)
        return result

    return forward


# Each function reads `site.deltas` once: the loader thread may replace it at any moment.
# A zero coefficient never multiplies a product of its row: 0 · inf would be NaN, and one
# vector's overflow would reach the rows of others.


def add_linear(site: Site, coefficients: StepCoefficients, y: Tensor, x: Tensor) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k x[t] + bias_k. y: [T, out], wider for a padded head; x: [T, in].

    With weights per part the product of each part has its own C.
    """
    deltas = site.deltas
    if deltas.packed.blocks:
        add_layer(y, x, deltas.packed, coefficients.groups)
    if deltas.is_packed:
        return
    if deltas.low_rank is not None:
        _add_low_rank(site, deltas.low_rank, coefficients, y, x)
    for column in coefficients.columns:
        if column in deltas.sparse:
            _add_sparse(site, deltas.sparse[column], coefficients, column, y, x)
        for dense in deltas.dense.get(column, ()):
            _add_part(site.parts[dense.part], coefficients, column, y, x @ dense.value.T)
        for bias in deltas.bias.get(column, ()):
            values = bias.value.expand(len(x), -1)
            _add_part(site.parts[bias.part], coefficients, column, y, values)


def _add_low_rank(
    site: Site, pack: LowRankPack, coefficients: StepCoefficients, y: Tensor, x: Tensor
) -> None:
    active = coefficients.ranks(pack)
    if active is None:
        return
    blocks, start = [], 0
    for block, positions in zip(active.pack.blocks, active.positions, strict=True):
        part, ranks = site.parts[block.part], slice(start, start + len(block.owners))
        coef = coefficients.of_part(part.index, len(x))[:, positions]
        blocks.append(torch_ops.RankBlock(ranks, slice(part.start, part.stop), coef, block.b))
        start = ranks.stop
    torch_ops.low_rank_linear(y, x, active.pack.a, blocks)


def _add_sparse(
    site: Site,
    matrix: SparseMatrix,
    coefficients: StepCoefficients,
    column: int,
    y: Tensor,
    x: Tensor,
) -> None:
    if coefficients.is_uniform(site.part_indexes):
        coef = coefficients.of_column(site.parts[0].index, len(x), column)
        torch_ops.sparse_linear(y[:, : matrix.shape[0]], x, coef, matrix)
        return
    product = torch_ops.sparse_product(matrix, x)
    for part in site.parts:
        _add_part(part, coefficients, column, y, product[:, part.start : part.stop])


def _add_part(
    part: Part, coefficients: StepCoefficients, column: int, y: Tensor, product: Tensor
) -> None:
    coef = coefficients.of_column(part.index, len(product), column)[:, None]
    weighted = torch_ops.weigh(product, coef)
    y[:, part.start : part.stop] += weighted.to(y.dtype)


def add_rows(site: Site, coefficients: StepCoefficients, y: Tensor, ids: Tensor) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k[ids[t]]. y: [T, dim]; ids: [T] int64."""
    deltas, part = site.deltas, site.parts[0].index
    active = coefficients.ranks(deltas.low_rank) if deltas.low_rank else None
    if active is not None:
        [block], [positions] = active.pack.blocks, active.positions
        coef = coefficients.of_part(part, len(ids))[:, positions]
        y.addmm_(torch_ops.weigh(block.b.T[ids], coef).to(y.dtype), block.a)
    for column in coefficients.columns:
        coef = coefficients.of_column(part, len(ids), column)
        if column in deltas.sparse:
            torch_ops.sparse_rows(y, ids, coef, deltas.sparse[column])
        for dense in deltas.dense.get(column, ()):
            y += torch_ops.weigh(dense.value[ids], coef[:, None]).to(y.dtype)


def add_norm(site: Site, coefficients: StepCoefficients, y: Tensor, x: Tensor, eps: float) -> None:
    """y[t] += Σ_k C[t, k] · normal(x[t]) ⊙ Δ_k. y, x: [T, …, dim], one token per leading row.

    A norm over heads may see [T · heads, dim]: each token's coefficient covers its heads.
    """
    dense, part, rows = site.deltas.dense, site.parts[0].index, coefficients.num_rows
    heads, remainder = divmod(len(x), rows)
    assert remainder == 0, f"{len(x)} rows of a norm for {rows} tokens"
    weight = torch.zeros(rows, x.shape[-1], device=x.device)
    for column in coefficients.columns:
        for delta in dense.get(column, ()):
            coef = coefficients.of_column(part, rows, column)[:, None]
            weight += coef * delta.value.float()
    weight = weight.repeat_interleave(heads, dim=0)
    middle = (1,) * (x.dim() - 2)
    torch_ops.rms_norm(y, x, weight.view(len(x), *middle, -1), eps)
