"""The engine's layers over an arena: what `layers` does eagerly, as operators a graph can hold.

A layer calls its operator in every step; the operator launches nothing while no loadout is active.
vLLM captures its graphs both ways, and torch.compile sees an opaque call, as with vLLM's own LoRA.
Proved in Triton's interpreter and with torch.compile on a CPU; streams and graph capture have not
run on CUDA.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from taskvectors.kernels import gpu_ops
from taskvectors.kernels.gpu_step import StepLimits
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.arena import (
    ArenaLimits,
    DeltaArena,
    RankPart,
    RowKind,
    SiteDelta,
    SiteShape,
)
from taskvectors.vllm_plugin.config import PluginConfig
from taskvectors.vllm_plugin.deltas import StagedDeltas
from taskvectors.vllm_plugin.sites import Site, SiteIndex
from taskvectors.vllm_plugin.staging import Staged

PIECES_OF_A_PART = 7
"""Arrays of one vector on one part, at most; each may waste what its alignment asks for."""


class ArenaLayers:
    """Hooks all sites of a model over one arena, and is the residence of the pool's vectors.

    num_rows: of the coefficient table; the last is poisoned. max_tokens: of a step, with padding.
    stream: of the steps on CUDA, once one has run.
    """

    def __init__(
        self,
        index: SiteIndex,
        config: PluginConfig,
        num_rows: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        columns = config.max_vectors
        limits = StepLimits(
            max_tokens,
            num_rows,
            columns,
            len(index.parts),
            mixed=min(config.max_mixed, columns),
            pair_tokens=min(64, max_tokens),
        )
        spare = PIECES_OF_A_PART * 16 * len(index.parts) * columns
        sizes = ArenaLimits(config.pool_bytes + spare, max_rank=config.max_rank)
        compat.check_device_memory(device, sizes.capacity)
        shapes = [_shape(site) for site in index.sites]
        self.arena = DeltaArena(shapes, limits, sizes, dtype, device, poison_row=num_rows - 1)
        self.arena.compacts_between_steps = True
        self.max_mixed = limits.mixed
        self.stream: Any = None
        self._copies: Any = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._numbers = {id(site): number for number, site in enumerate(index.sites)}
        self._samples = self._tokens = np.zeros(0, np.int64)
        self._prompt_hidden: Tensor | None = None
        for number, site in enumerate(index.sites):
            self._hook(site, number)

    # What steps do.

    def write_step(self, tokens: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> None:
        """The coefficient row of each token of the step, and of each row that the head sees."""
        self._tokens, self._samples = tokens, samples
        self.arena.write_step(tokens, samples)

    @contextlib.contextmanager
    def prompt_positions(self, hidden_states: Tensor) -> Iterator[None]:
        """While open, the head is applied to slices of `hidden_states`, not to sampled rows."""
        self._prompt_hidden = hidden_states
        try:
            yield
        finally:
            self._prompt_hidden = None
            self.arena.write_samples(self._samples)

    # The residence; called by the loader thread.

    def install(self, column: int, staged: Staged) -> None:
        """Copy a staged vector into the arena. Raises VectorLoadFailed when it does not fit."""
        deltas = {self._numbers[id(site)]: _site_delta(delta) for site, delta in staged}
        with self._copying():
            self.arena.install(column, deltas)

    def remove(self, column: int) -> None:
        """Free a column that no row has a weight for."""
        with self._copying():
            self.arena.remove(column)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        """On CUDA, a stream beside the steps': after the steps under way, which may still read
        what was freed, and done before anybody is told so."""
        if self._copies is None:
            yield
            return
        if self.stream is not None:
            self._copies.wait_stream(self.stream)
        with torch.cuda.stream(self._copies):
            yield
        self._copies.synchronize()

    # Hooks.

    def _hook(self, site: Site, number: int) -> None:
        arena, module = self.arena.number, site.module
        if site.kind == "norm":
            compat.override_norm(module, _norm(module, arena, number))
        elif site.kind == "linear":
            compat.override_quant_method(module, apply=_linear(arena, number))
        else:
            compat.override_quant_method(
                module, apply=self._head(number), embedding=_lookup(arena, number)
            )

    def _head(self, number: int) -> Callable[..., Tensor]:
        """Outside of what vLLM compiles or captures, so that it may look at prompt positions."""
        add = _linear(self.arena.number, number)

        def apply(
            original: Callable[..., Tensor], layer: nn.Module, x: Tensor, bias: Tensor | None = None
        ) -> Tensor:
            if self._prompt_hidden is not None:
                start = position(self._prompt_hidden, x)
                self.arena.write_samples(self._tokens[start : start + len(x)])
            return add(original, layer, x, bias)

        return apply


def position(hidden: Tensor, x: Tensor) -> int:
    """At which row of `hidden` its slice `x` begins."""
    start, remainder = divmod(
        x.data_ptr() - hidden.data_ptr(), hidden.stride(0) * hidden.element_size()
    )
    assert remainder == 0, "prompt logprobs were not computed on a slice of hidden states"
    assert 0 <= start <= len(hidden), "slice lies outside the hidden states"
    return start


def _linear(arena: int, number: int) -> Callable[..., Tensor]:
    def apply(
        original: Callable[..., Tensor], layer: nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        y = original(layer, x, bias)
        rows = x.reshape(-1, x.shape[-1])
        gpu_ops.add_linear(y.view(-1, y.shape[-1]), rows, arena, number)
        return y

    return apply


def _lookup(arena: int, number: int) -> Callable[..., Tensor]:
    def embedding(original: Callable[..., Tensor], layer: nn.Module, ids: Tensor) -> Tensor:
        y = original(layer, ids)
        gpu_ops.add_rows(y, ids, arena, number)
        return y

    return embedding


def _norm(module: nn.Module, arena: int, number: int) -> Callable[..., Any]:
    eps = float(getattr(module, "variance_epsilon", 1e-6))

    def forward(original: Callable[..., Any], x: Tensor, residual: Tensor | None) -> Any:
        before = x.clone() if residual is None else None  # a norm may write in place
        result = original(x, residual)
        y, source = (result, before) if residual is None else result
        assert source is not None
        gpu_ops.add_norm(y, source, eps, arena, number)
        return result

    return forward


def _shape(site: Site) -> SiteShape:
    parts = tuple(part.size for part in site.parts)
    width = parts[0] if site.kind == "norm" else compat.input_width(site.module)
    rows: RowKind = "samples" if site.kind == "head" else "tokens"
    return SiteShape(parts, width, site.parts[0].index, rows)


def _site_delta(staged: StagedDeltas) -> SiteDelta:
    ranks = tuple(RankPart(block.part, block.a, block.b) for block in staged.low_rank)
    matrices = [dense for dense in staged.dense if dense.value.dim() == 2]
    vectors = [*(dense for dense in staged.dense if dense.value.dim() == 1), *staged.bias]
    return SiteDelta(staged.sparse, ranks, tuple(matrices), tuple(vectors))
