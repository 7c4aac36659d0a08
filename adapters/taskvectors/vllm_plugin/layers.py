"""Layers: each hooked vLLM module adds the deltas of the step's loadouts to its own output."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskvectors.kernels import torch_ops
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.coefficients import StepCoefficients
from taskvectors.vllm_plugin.sites import Site


class StepState:
    """What the running step needs to know; written by the manager, read by every layer.

    tokens: coefficients of the rows that go through the decoder. samples: of the rows that go
    through the head. Both are None when no loadout is active. prompt_hidden: while prompt
    logprobs are computed, the decoder's output of all tokens, of which the head gets slices.
    """

    def __init__(self) -> None:
        self.tokens: StepCoefficients | None = None
        self.samples: StepCoefficients | None = None
        self.prompt_hidden: Tensor | None = None

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
        compat.override_quant_method(module, apply=_linear_apply(site, lambda _: state.tokens))
    else:
        head = _linear_apply(site, state.head_coefficients)
        compat.override_quant_method(module, apply=head, embedding=_lookup(site, state))


def _linear_apply(
    site: Site, coefficients_of: Callable[[Tensor], StepCoefficients | None]
) -> Callable[..., Tensor]:
    def apply(
        original: Callable[..., Tensor], layer: nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        y = original(layer, x, bias)
        coefficients = coefficients_of(x)
        if coefficients is not None:
            rows = x.reshape(-1, x.shape[-1])
            add_linear(site, coefficients, y.view(len(rows), -1), rows)
            if site.kind != "linear" and coefficients.poisoned is not None:
                y[coefficients.poisoned[coefficients.inverse]] = float("nan")
        return y

    return apply


def _lookup(site: Site, state: StepState) -> Callable[..., Tensor]:
    def embedding(original: Callable[..., Tensor], layer: nn.Module, ids: Tensor) -> Tensor:
        y = original(layer, ids)
        if state.tokens is not None:
            add_rows(site, state.tokens, y, ids.long())
        return y

    return embedding


def _norm_forward(site: Site, state: StepState) -> Callable[..., Any]:
    eps = float(getattr(site.module, "variance_epsilon", 1e-6))

    def forward(original: Callable[..., Any], x: Tensor, residual: Tensor | None) -> Any:
        if state.tokens is None or not site.deltas.dense:
            return original(x, residual)
        before = x.clone() if residual is None else None  # a norm may write in place
        result = original(x, residual)
        y, source = (result, before) if residual is None else result
        assert source is not None
        add_norm(site, state.tokens, y, source, eps)
        return result

    return forward


def add_linear(site: Site, coefficients: StepCoefficients, y: Tensor, x: Tensor) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k x[t] + bias_k. y: [T, out], wider for a padded head; x: [T, in].

    With weights per part the product of each part has its own C.
    """
    deltas, columns = site.deltas, coefficients.columns
    uniform = coefficients.is_uniform(site.part_indexes)
    if deltas.low_rank is not None:
        _add_low_rank(site, coefficients, y, x)
    for column in columns:
        if column in deltas.sparse:
            matrix = deltas.sparse[column]
            if uniform:
                coef = coefficients.of_part(site.parts[0].index, len(x))[:, column]
                torch_ops.sparse_linear(y[:, : matrix.shape[0]], x, coef, matrix)
            else:
                _add_by_part(site, coefficients, column, y, torch_ops.sparse_product(matrix, x))
        if column in deltas.dense:
            product = x @ deltas.dense[column].T
            _add_by_part(site, coefficients, column, y, product)
        if column in deltas.bias:
            bias = deltas.bias[column].expand(len(x), -1)
            _add_by_part(site, coefficients, column, y, bias)


def _add_low_rank(site: Site, coefficients: StepCoefficients, y: Tensor, x: Tensor) -> None:
    pack = site.deltas.low_rank
    assert pack is not None
    blocks, start = [], 0
    for block in pack.blocks:
        part, ranks = site.parts[block.part], slice(start, start + len(block.columns))
        coef = coefficients.of_part(part.index, len(x))[:, block.columns]
        blocks.append(torch_ops.RankBlock(ranks, slice(part.start, part.stop), coef, block.b))
        start = ranks.stop
    torch_ops.low_rank_linear(y, x, pack.a, blocks)


def _add_by_part(
    site: Site, coefficients: StepCoefficients, column: int, y: Tensor, product: Tensor
) -> None:
    for part in site.parts:
        coef = coefficients.of_part(part.index, len(product))[:, column, None]
        rows = slice(part.start, part.stop)
        y[:, rows] += (product[:, rows] * coef).to(y.dtype)


def add_rows(site: Site, coefficients: StepCoefficients, y: Tensor, ids: Tensor) -> None:
    """y[t] += Σ_k C[t, k] · Δ_k[ids[t]]. y: [T, dim]; ids: [T] int64."""
    deltas, coef = site.deltas, coefficients.of_part(site.parts[0].index, len(ids))
    for block in deltas.low_rank.blocks if deltas.low_rank else ():
        hidden = block.b.T[ids] * coef[:, block.columns].to(y.dtype)
        y.addmm_(hidden, block.a)
    for column in coefficients.columns:
        if column in deltas.sparse:
            torch_ops.sparse_rows(y, ids, coef[:, column], deltas.sparse[column])
        if column in deltas.dense:
            y += (deltas.dense[column][ids] * coef[:, column, None]).to(y.dtype)


def add_norm(site: Site, coefficients: StepCoefficients, y: Tensor, x: Tensor, eps: float) -> None:
    """y[t] += Σ_k C[t, k] · normal(x[t]) ⊙ Δ_k. y, x: [T, …, dim], one token per leading row.

    A norm over heads may see [T · heads, dim]: each token's coefficient covers its heads.
    """
    columns = [column for column in coefficients.columns if column in site.deltas.dense]
    if not columns:
        return
    rows = coefficients.num_rows
    coef = coefficients.of_part(site.parts[0].index, max(rows, x.shape[0] if x.dim() > 2 else 0))
    if x.dim() == 2 and len(x) != rows:
        coef = coef.repeat_interleave(len(x) // rows, dim=0)
    weight = coef[:, columns] @ torch.stack([site.deltas.dense[c] for c in columns]).float()
    middle = (1,) * (x.dim() - 2)
    torch_ops.rms_norm(y, x, weight.view(len(weight), *middle, -1), eps)
