"""The arena: addresses that never change, contents that do, and what the operator then adds."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from taskvectors.errors import VectorLoadFailed
from taskvectors.kernels import gpu_ops, reference
from taskvectors.kernels.gpu_step import StepLimits
from taskvectors.kernels.torch_ops import SparseMatrix
from taskvectors.vllm_plugin.arena import (
    ArenaLimits,
    DeltaArena,
    RankPart,
    SiteDelta,
    SiteShape,
    sparse_sizes,
)
from tests.taskvectors.gpu_kernels.steps import DEVICE, assert_close, generator, random_matrix

SITES = (
    SiteShape(parts=(9, 5, 4), width=13, first_part=0),
    SiteShape(parts=(11,), width=18, first_part=3),
    SiteShape(parts=(7,), width=12, first_part=4, rows="samples"),
)
STEP = StepLimits(tokens=40, rows=6, columns=4, parts=5, mixed=3, pair_tokens=8)


def _arena(capacity: int = 20_000, dtype: torch.dtype = torch.float32) -> DeltaArena:
    limits = ArenaLimits(capacity, max_rank=5, rank_tokens=16)
    return DeltaArena(SITES, STEP, limits, dtype, DEVICE)


def _random_vector(random: torch.Generator) -> dict[int, SiteDelta]:
    """Sparse at some sites, low-rank at some parts, both or neither."""
    deltas = {}
    for number, site in enumerate(SITES):
        draw = torch.rand(2 + len(site.parts), generator=random)
        sparse = None
        if draw[0] < 0.7:
            density = 0.5 * float(draw[1])
            csr = random_matrix(site.out, site.width, density, random).to_sparse_csr()
            crow, col = csr.crow_indices().int(), csr.col_indices().int()
            sparse = SparseMatrix((site.out, site.width), crow, col, csr.values())
        ranks = []
        for part, rows in enumerate(site.parts):
            rank = int(draw[2 + part] * 9) - 3
            if rank > 0:
                a = torch.randn(rank, site.width, generator=random)
                ranks.append(RankPart(part, a, torch.randn(rank, rows, generator=random)))
        deltas[number] = SiteDelta(sparse, tuple(ranks))
    return deltas


def _expected(
    site: int, x: Tensor, vectors: dict[int, dict[int, SiteDelta]], weights: Tensor
) -> Tensor:
    """weights: [parts, tokens, columns]."""
    shape = SITES[site]
    y, bounds = torch.zeros(len(x), shape.out), np.cumsum([0, *shape.parts]).tolist()
    for column, vector in vectors.items():
        for part in range(len(shape.parts)):
            rows = slice(bounds[part], bounds[part + 1])
            coef, delta = weights[shape.first_part + part, :, column], vector[site]
            if delta.sparse is not None:
                dense = delta.sparse.csr.to_dense()[rows].to_sparse_csr()
                reference.sparse_linear(y[:, rows], x, coef, dense)
            for ranks in delta.ranks:
                if ranks.part == part:
                    of_rank = coef[:, None].expand(-1, len(ranks.a))
                    reference.low_rank_linear(y[:, rows], x, of_rank, ranks.a, ranks.b)
    return y


class _Play:
    """An arena and what it should hold."""

    def __init__(self, random: torch.Generator) -> None:
        self.arena, self.random = _arena(), random
        self.vectors: dict[int, dict[int, SiteDelta]] = {}
        self.weights = torch.zeros(STEP.parts, STEP.rows, STEP.columns)
        self.rows = {"tokens": np.zeros(1, np.int64), "samples": np.zeros(1, np.int64)}

    def draw(self, stop: int) -> int:
        return int(torch.randint(0, stop, (1,), generator=self.random))

    def change(self) -> None:
        """Install or remove a vector, write a row, or plan a step."""
        column, row = self.draw(STEP.columns), 1 + self.draw(STEP.rows - 1)
        action = self.draw(3)
        if action == 0 and column in self.vectors:
            for using in (self.weights[:, :, column] != 0).any(dim=0).nonzero().flatten().tolist():
                self._write(using, torch.zeros(STEP.parts, STEP.columns))
            del self.vectors[column]
            self.arena.remove(column)
        elif action == 0:
            vector = _random_vector(self.random)
            self.arena.install(column, vector)
            self.vectors[column] = vector
        elif action == 1:
            weights = torch.zeros(STEP.parts, STEP.columns)
            for used in list(self.vectors)[: STEP.mixed]:
                weights[:, used] = torch.randn(STEP.parts, generator=self.random)
            self._write(row, weights)
        self._plan()

    def _plan(self) -> None:
        counts = [[1, 5, 8, 9, 33][self.draw(5)], 1 + self.draw(8)]
        for name, count in zip(self.rows, counts, strict=True):
            rows = torch.randint(0, STEP.rows, (count,), generator=self.random)
            self.rows[name] = rows.numpy()
        self.arena.write_step(self.rows["tokens"], self.rows["samples"])

    def _write(self, row: int, weights: Tensor) -> None:
        self.weights[:, row] = weights
        if weights.any():
            self.arena.coefficients.write(row, weights)
        else:
            self.arena.coefficients.clear(row)

    def check(self) -> None:
        """The operator adds what the reference says, and nothing to rows behind the step's."""
        site = self.draw(len(SITES))
        shape, rows = SITES[site], self.rows[SITES[site].rows]
        padded = np.concatenate([rows, np.zeros(self.draw(3), np.int64)])
        x = torch.randn(len(padded), shape.width, generator=self.random)
        y = torch.zeros(len(padded), shape.out, device=DEVICE)
        gpu_ops.add_linear(y, x.to(DEVICE), self.arena.number, site)
        expected = _expected(site, x, self.vectors, self.weights[:, padded])
        assert_close(y, expected, 60)
        assert (y[len(rows) :] == 0).all()


@pytest.mark.parametrize("changes", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_addresses_stay_and_results_are_right_over_random_changes(changes: int) -> None:
    """Of vectors, rows and steps; every result equals the reference."""
    play = _Play(generator())
    addresses = play.arena.addresses()
    for _ in range(changes):
        play.change()
        play.check()
        assert play.arena.addresses() == addresses
    assert len(play.vectors) > 0
    for column in list(play.vectors):
        play.arena.remove(column)
    assert play.arena.extents.largest_hole == play.arena.extents.capacity


def test_a_vector_that_does_not_fit_takes_no_room() -> None:
    """Neither do its sites that did fit."""
    random, arena = generator(), _arena(capacity=2048)
    dense = random_matrix(11, 18, 1.0, random).to_sparse_csr()
    crow, col = dense.crow_indices().int(), dense.col_indices().int()
    matrix = SparseMatrix((11, 18), crow, col, dense.values())
    arena.install(0, {1: SiteDelta(matrix)})
    free = arena.extents.num_free
    assert free == 2048 - sum(sparse_sizes((11, 18), 198, 4))
    part = RankPart(0, torch.ones(1, 13), torch.ones(1, 9))
    with pytest.raises(VectorLoadFailed, match="no room for"):
        arena.install(1, {0: SiteDelta(None, (part,)), 1: SiteDelta(matrix)})
    assert arena.extents.num_free == free
    arena.install(1, {0: SiteDelta(None, (part,))})


def test_too_high_a_rank_is_refused_and_takes_no_room() -> None:
    arena = _arena()
    part = RankPart(0, torch.ones(6, 18), torch.ones(6, 11))
    with pytest.raises(VectorLoadFailed, match="of rank 6; at most 5"):
        arena.install(0, {1: SiteDelta(None, (part,))})
    assert arena.extents.num_free == arena.extents.capacity
    arena.install(0, {})


def _ready(dtype: torch.dtype = torch.float32) -> DeltaArena:
    arena, random = _arena(dtype=dtype), generator()
    for column in range(2):
        arena.install(column, _random_vector(random))
    arena.coefficients.write(1, torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    arena.coefficients.write(2, torch.tensor([[-1.0, 2.0, 0.0, 0.0]]))
    arena.write_step(np.array([0, 1, 2, 2]), np.array([1]))
    return arena


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_rules(dtype: torch.dtype) -> None:
    """Its schema, what it mutates, and its fake implementation are as declared."""
    arena = _ready(dtype)
    y = torch.zeros(4, 18, dtype=dtype, device=DEVICE)
    x = torch.ones(4, 13, dtype=dtype, device=DEVICE)
    torch.library.opcheck(gpu_ops.add_linear, (y, x, arena.number, 0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_sees_what_later_steps_hold(backend: str) -> None:
    """Compiled once, without a break, and right after the contents changed."""
    arena, graphs = _ready(), counters["stats"]["unique_graphs"]

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        y = x @ weight.T
        gpu_ops.add_linear(y, x, arena.number, 0)
        return y * 2

    fast = torch.compile(layer, fullgraph=True, backend=backend)
    x, weight = torch.ones(4, 13, device=DEVICE), torch.ones(18, 13, device=DEVICE)
    results = []
    for rows in ([0, 1, 2, 2], [2, 0, 0, 1]):
        arena.write_step(np.array(rows), np.array([1]))
        results.append(fast(x, weight))
        assert_close(results[-1], layer(x, weight).cpu(), 13)
    torch.testing.assert_close(results[0][2], results[1][0])
    assert not torch.equal(*results)
    assert counters["stats"]["unique_graphs"] == graphs + 1


def test_an_arena_that_is_gone_is_forgotten() -> None:
    number = _arena().number
    gc.collect()
    with pytest.raises(KeyError):
        gpu_ops.add_linear(torch.zeros(1, 18), torch.zeros(1, 13), number, 0)
