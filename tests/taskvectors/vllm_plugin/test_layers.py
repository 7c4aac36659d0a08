"""What a layer adds equals the product with the dense delta, for every kind and selection.

vLLM's own modules are exercised in tests/end_to_end; here a bare module stands in for one, to
reach odd shapes and mixes quickly.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taskvectors.errors import BaseMismatch, VectorLoadFailed
from taskvectors.selection import EVERYWHERE, Selection
from taskvectors.vector import (
    BaseInfo,
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
)
from taskvectors.vllm_plugin.coefficients import (
    ActiveRanks,
    CoefficientTable,
    StepCoefficients,
    WeightedColumn,
)
from taskvectors.vllm_plugin.deltas import Deltas, LowRankPack
from taskvectors.vllm_plugin.layers import add_linear, add_norm, add_rows
from taskvectors.vllm_plugin.sites import Part, Site
from taskvectors.vllm_plugin.staging import Stager

CPU = torch.device("cpu")
WIDTH, SIZES, LEAVES = 11, (6, 3, 5), ("q_proj", "k_proj", "v_proj")
NAMES = [f"model.layers.0.self_attn.{leaf}" for leaf in LEAVES]
SEED = 5


class _Index:
    """One fused site, found by the names of its parts."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def find(self, parameter: str) -> Sequence[tuple[Site, int]]:
        names = [part.module for part in self._site.parts]
        module = parameter.rpartition(".")[0]
        return [(self._site, names.index(module))] if module in names else []


def _fused_site() -> Site:
    module = nn.Module()
    module.input_size = WIDTH  # type: ignore[assignment]
    starts = np.cumsum([0, *SIZES]).tolist()
    parts = [Part(n, i, starts[i], s) for i, (n, s) in enumerate(zip(NAMES, SIZES, strict=True))]
    return Site("linear", module, tuple(parts))


def _single_site(kind: str, rows: int, width: int) -> Site:
    module = nn.Module()
    module.embedding_dim = width  # type: ignore[assignment]
    return Site(kind, module, (Part(NAMES[0], 0, 0, rows),))  # type: ignore[arg-type]


def _delta(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Delta, Tensor]:
    if kind == "low_rank":
        a = torch.randn(2, shape[1], generator=generator)
        b = torch.randn(shape[0], 2, generator=generator)
        return LowRankDelta(shape, a.numpy(), b.numpy(), 0.5), 0.5 * b @ a
    dense = torch.randn(shape, generator=generator)
    if kind == "dense":
        return DenseDelta(dense.numpy()), dense
    dense = dense * (torch.rand(shape, generator=generator) < 0.3)
    index = dense.flatten().nonzero().flatten()
    values = dense.flatten()[index].numpy()
    return SparseDelta(shape, index.numpy().astype(np.int64), values), dense


Install = Callable[[Site, int, dict[str, Delta]], None]


@pytest.fixture(params=[False, True], ids=["torch", "packed"])
def install(request: pytest.FixtureRequest) -> Install:
    """Puts a vector into a site's column, in the storage of either kernel."""

    def put(site: Site, column: int, parameters: dict[str, Delta]) -> None:
        index = _Index(site)
        stager = Stager(index, CPU, torch.float32, packs=request.param)  # type: ignore[arg-type]
        vector = TaskVector(base=BaseInfo("base", None), parameters=parameters)
        for target, staged in stager.stage(vector, column):
            target.deltas = target.deltas.with_vector(column, staged)

    return put


def _step(rows: Sequence[int], loadouts: list[list[WeightedColumn]]) -> StepCoefficients:
    table = CoefficientTable(len(loadouts) + 1, 4, NAMES)
    for row, vectors in enumerate(loadouts, start=1):
        table.write(row, vectors)
    step = table.gather(*np.unique(np.array(rows), return_inverse=True), CPU)
    assert step is not None
    return step


@pytest.mark.parametrize("kinds", [("sparse",), ("low_rank",), ("dense",), ("sparse", "low_rank")])
@pytest.mark.parametrize("selection", [EVERYWHERE, Selection(modules=(("k_proj", 0.5),))])
@pytest.mark.parametrize("repeat", [1, 20])
def test_a_fused_layer_adds_each_tokens_own_mix(
    install: Install, kinds: tuple[str, ...], selection: Selection, repeat: int
) -> None:
    print(f"seed {SEED}")
    generator = torch.Generator().manual_seed(SEED)
    site, dense = _fused_site(), []
    for column, kind in enumerate(kinds):
        parameters, deltas = {}, []
        for name, size in zip(NAMES, SIZES, strict=True):
            parameters[f"{name}.weight"], delta = _delta(kind, (size, WIDTH), generator)
            deltas.append(delta)
        install(site, column, parameters)
        dense.append(deltas)
    loadouts = [
        [WeightedColumn(column, 1.5 - column) for column in range(len(kinds))],
        [WeightedColumn(0, -0.5, selection)],
    ]
    rows = [0, 1, 2, 2] * repeat
    x = torch.randn(len(rows), WIDTH, generator=generator)
    y = torch.zeros(len(rows), sum(SIZES))
    add_linear(site, _step(rows, loadouts), y, x)
    for t, row in enumerate(rows):
        expected = torch.zeros(sum(SIZES))
        for vector in loadouts[row - 1] if row else []:
            weighted = [
                vector.weight * vector.selection.factor(name) * delta
                for name, delta in zip(NAMES, dense[vector.column], strict=True)
            ]
            expected += torch.cat(weighted) @ x[t]
        torch.testing.assert_close(y[t], expected, atol=1e-5, rtol=1e-5)


def test_a_vector_on_one_part_leaves_the_other_parts_alone(install: Install) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for kind in ("sparse", "low_rank", "dense"):
        site = _fused_site()
        delta, dense = _delta(kind, (SIZES[1], WIDTH), generator)
        install(site, 0, {f"{NAMES[1]}.weight": delta})
        x, y = torch.randn(2, WIDTH, generator=generator), torch.zeros(2, sum(SIZES))
        add_linear(site, _step([1, 1], [[WeightedColumn(0, 1.0)]]), y, x)
        torch.testing.assert_close(y[:, 6:9], x @ dense.T)
        assert not y[:, :6].any()
        assert not y[:, 9:].any()


def test_biases_add_by_part(install: Install) -> None:
    site = _fused_site()
    bias = torch.arange(3.0) + 1
    install(site, 0, {f"{NAMES[1]}.bias": DenseDelta(bias.numpy())})
    y = torch.zeros(2, sum(SIZES))
    add_linear(site, _step([1, 0], [[WeightedColumn(0, 2.0)]]), y, torch.zeros(2, WIDTH))
    assert y[0].tolist() == [0] * 6 + [2, 4, 6] + [0] * 5
    assert not y[1].any()


def test_an_evicted_vector_is_gone_and_the_others_stay(install: Install) -> None:
    generator = torch.Generator().manual_seed(SEED)
    site, dense = _fused_site(), {}
    for column, kind in enumerate(("low_rank", "low_rank", "sparse")):
        delta, dense[column] = _delta(kind, (SIZES[0], WIDTH), generator)
        install(site, column, {f"{NAMES[0]}.weight": delta})
    for column in (0, 2):
        site.deltas = site.deltas.without_vector(column)
    x, y = torch.randn(1, WIDTH, generator=generator), torch.zeros(1, sum(SIZES))
    add_linear(site, _step([1], [[WeightedColumn(c, 1.0) for c in range(3)]]), y, x)
    torch.testing.assert_close(y[:, : SIZES[0]], x @ dense[1].T)
    site.deltas = site.deltas.without_vector(1)
    assert site.deltas.low_rank is None
    assert not site.deltas.packed.blocks


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense"])
def test_an_embedding_adds_the_rows_of_its_tokens(install: Install, kind: str) -> None:
    generator = torch.Generator().manual_seed(SEED)
    site = _single_site("embedding", 9, 4)
    delta, dense = _delta(kind, (9, 4), generator)
    install(site, 2, {f"{NAMES[0]}.weight": delta})
    ids, y = torch.tensor([8, 0, 3, 3]), torch.zeros(4, 4)
    add_rows(site, _step([1, 1, 0, 1], [[WeightedColumn(2, -2.0)]]), y, ids)
    coef = torch.tensor([-2.0, -2.0, 0.0, -2.0])
    torch.testing.assert_close(y, coef[:, None] * dense[ids])


@pytest.mark.parametrize("shape", [(3, 8), (6, 8), (3, 2, 8)])
def test_a_norm_scales_by_the_tokens_weight(install: Install, shape: tuple[int, ...]) -> None:
    """Rows are tokens, or the heads of each token flattened or in a middle dimension."""
    generator = torch.Generator().manual_seed(SEED)
    site = _single_site("norm", 8, 8)
    delta, dense = _delta("dense", (8,), generator)
    install(site, 1, {f"{NAMES[0]}.weight": delta})
    x, y = torch.randn(shape, generator=generator), torch.zeros(shape)
    add_norm(site, _step([1, 0, 1], [[WeightedColumn(1, 0.5)]]), y, x, 1e-6)
    coef = torch.tensor([0.5, 0.0, 0.5]).repeat_interleave(x.numel() // 24)
    normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = (normal * dense).view(-1, 8) * coef[:, None]
    torch.testing.assert_close(y, expected.view(shape))


def test_a_vectors_overflow_stays_in_the_rows_that_use_it(install: Install) -> None:
    """0 · inf is NaN: a zero coefficient must not multiply another row's product."""
    for kind in ("low_rank", "dense"):
        site, huge = _fused_site(), np.full((2, WIDTH), 3e38, "f4")
        delta: Delta = DenseDelta(np.full((SIZES[0], WIDTH), 1.0, "f4"))
        if kind == "low_rank":
            delta = LowRankDelta((SIZES[0], WIDTH), np.ones_like(huge), np.ones((6, 2), "f4"), 1.0)
        install(site, 0, {f"{NAMES[0]}.weight": delta})
        x = torch.ones(2, WIDTH)
        x[0] = 3e38  # its own row overflows
        y = torch.zeros(2, sum(SIZES))
        loadouts = [[WeightedColumn(0, 1.0)], [WeightedColumn(1, 1.0)]]
        add_linear(site, _step([1, 2], loadouts), y, x)
        assert not y[0].isfinite().all()
        assert not y[1].any()


@pytest.mark.parametrize("install", [False], indirect=True)
def test_idle_vectors_cost_and_change_nothing(install: Install) -> None:
    """Only the ranks of the step's own vectors enter the product."""
    generator = torch.Generator().manual_seed(SEED)
    site, dense = _fused_site(), {}
    for column in range(3):
        delta, dense[column] = _delta("low_rank", (SIZES[0], WIDTH), generator)
        install(site, column, {f"{NAMES[0]}.weight": delta})
    step = _step([1], [[WeightedColumn(1, 2.0)]])
    assert site.deltas.low_rank is not None
    active = step.ranks(site.deltas.low_rank)
    assert active is not None
    assert active.pack.owners == {1}
    x, y = torch.randn(1, WIDTH, generator=generator), torch.zeros(1, sum(SIZES))
    add_linear(site, step, y, x)
    torch.testing.assert_close(y[:, : SIZES[0]], 2.0 * x @ dense[1].T)


@pytest.mark.parametrize("install", [False], indirect=True)
def test_a_layer_reads_its_deltas_once(install: Install) -> None:
    """An eviction in the middle of a layer changes nothing for that layer."""
    generator = torch.Generator().manual_seed(SEED)
    site = _fused_site()
    for column, kind in enumerate(("sparse", "low_rank")):
        delta, _ = _delta(kind, (SIZES[0], WIDTH), generator)
        install(site, column, {f"{NAMES[0]}.weight": delta})
    step = _step([1], [[WeightedColumn(0, 1.0), WeightedColumn(1, 1.0)]])
    x, whole, torn = torch.randn(1, WIDTH), torch.zeros(1, 14), torch.zeros(1, 14)
    add_linear(site, step, whole, x)
    ranks = step.ranks

    def evict_meanwhile(pack: LowRankPack) -> ActiveRanks | None:
        site.deltas = Deltas()
        return ranks(pack)

    step.ranks = evict_meanwhile  # type: ignore[method-assign]
    add_linear(site, step, torn, x)
    assert torch.equal(whole, torn)


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense"])
def test_a_value_that_could_overflow_a_product_is_refused(install: Install, kind: str) -> None:
    values = np.full((SIZES[0], WIDTH), 7e4, "f4")
    deltas: dict[str, Delta] = {
        "dense": DenseDelta(values),
        "sparse": SparseDelta(values.shape, np.arange(3), values.reshape(-1)[:3]),
        "low_rank": LowRankDelta(values.shape, values[:1], np.ones((6, 1), "f4"), 1.0),
    }
    with pytest.raises(VectorLoadFailed, match="65504"):
        install(_fused_site(), 0, {f"{NAMES[0]}.weight": deltas[kind]})


def test_a_parameter_without_a_place_is_refused_by_name(install: Install) -> None:
    with pytest.raises(VectorLoadFailed, match=r"model\.experts\.weight"):
        install(_fused_site(), 0, {"model.experts.weight": DenseDelta(np.zeros((2, 2), "f4"))})


def test_a_shape_that_is_not_the_engines_is_refused(install: Install) -> None:
    for kind in ("sparse", "low_rank", "dense"):
        delta, _ = _delta(kind, (SIZES[0], WIDTH + 1), torch.Generator().manual_seed(SEED))
        with pytest.raises(BaseMismatch, match=r"\[6, 12\]"):
            install(_fused_site(), 0, {f"{NAMES[0]}.weight": delta})
