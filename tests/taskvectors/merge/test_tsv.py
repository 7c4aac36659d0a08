"""TSV-M against FusionBench's, and against the formula where vectors lack rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.merge import merge_vectors
from taskvectors.vector import DenseDelta, LowRankDelta
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge.drawing import Drawn, assert_close, drawn, matrices, vector_of

NAME = "layers.0.up.weight"


@pytest.mark.parametrize("seed", range(30))
def test_tsv_is_fusion_benchs(seed: int) -> None:
    """Dense vectors of full rank, weighted first; one-dimensional parameters too."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    shapes = {"w": tuple(rng.integers(4, 30, 2).tolist()), "norm": (5,), "conv": (2, 3, 2)}
    vectors = [
        vector_of(
            {
                name: DenseDelta(rng.standard_normal(size).astype(np.float32))
                for name, size in shapes.items()
            }
        )
        for _ in range(count)
    ]
    case = Drawn(vectors, rng.uniform(-1, 2, count).tolist(), shapes)
    states = [
        {name: weight * case.tensors(name)[k] for name in shapes}
        for k, weight in enumerate(case.weights)
    ]
    utils = fusion_bench.load("method.task_singular_vector.utils.TSVM_utils")
    expected = utils.compute_and_sum_svd_mem_reduction(states, accelerator="cpu")
    merged = case.merged("tsv", **{"lambda": 0.7})
    for name in shapes:
        assert_close(merged[name], 0.7 * expected[name], times=2)


def paper(deltas: list[torch.Tensor]) -> torch.Tensor | None:
    """Gargiulo et al., §4, in float64 with `A (AᵀA)^(−½)`; None where rounding decides the rank."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    lefts, values, rights = [], [], []
    for delta in deltas:
        left, value, right = torch.linalg.svd(delta, full_matrices=False)
        share = value / value.max().clip(1e-300)
        following = torch.cat([share, torch.zeros(1)])[1:]
        cut = min(rank, len(share)) - 1
        if share[cut] > 1e-8 and share[cut] - following[cut] < 1e-3:
            return None
        if ((share > 1e-8) & (share < 1e-3)).any():
            return None
        kept = int((share[:rank] > 1e-8).sum())
        lefts.append(left[:, :kept])
        values.append(value[:kept])
        rights.append(right[:kept].T)
    left, right = nearest(torch.cat(lefts, 1)), nearest(torch.cat(rights, 1))
    return None if left is None or right is None else left * torch.cat(values) @ right.T


def nearest(matrix: torch.Tensor) -> torch.Tensor | None:
    """`A (AᵀA)^(−½)` on the range of AᵀA; None where its rank is uncertain."""
    squares, basis = torch.linalg.eigh(matrix.T @ matrix)
    share = squares / squares.max() if len(squares) else squares
    if ((share > 1e-12) & (share < 1e-6)).any():
        return None
    kept = share > 1e-9
    return matrix @ (basis[:, kept] / squares[kept].sqrt()) @ basis[:, kept].T


@settings(max_examples=100, deadline=None)
@given(drawn())
def test_tsv_leaves_out_what_is_zero(case: Drawn) -> None:
    """Sparse, low-rank and absent vectors, ties: only directions with energy are orthogonalised."""
    merged = case.merged("tsv")
    for name, shape in case.shapes.items():
        deltas = [w * t for w, t in zip(case.weights, case.tensors(name), strict=True)]
        expected = paper(deltas) if len(shape) == 2 else torch.stack(deltas).mean(0)
        if expected is not None:
            size = max(float(delta.abs().max()) for delta in deltas)
            assert_close(merged[name], expected, times=10, scale=size)


@settings(max_examples=40, deadline=None)
@given(drawn(count=(1, 1), weights=(1.0,)))
def test_one_vector_keeps_its_rank(case: Drawn) -> None:
    """A single vector is itself."""
    merged = case.merged("tsv")
    for name in case.shapes:
        assert_close(merged[name], case.tensors(name)[0], times=2)


@pytest.mark.parametrize("count", [2, 3])
def test_identical_vectors_are_their_largest_directions(count: int) -> None:
    """Copies share their directions: the merge is the vector cut to its share of the rank."""
    matrix = np.random.default_rng(count).standard_normal((8, 6))
    left, values, right = np.linalg.svd(matrix.astype(np.float32).astype(float))
    rank = 6 // count
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    assert_close(matrices(*[matrix] * count).merged("tsv")["w"], expected, times=2)


def test_vectors_that_do_not_meet_are_added() -> None:
    """Of low rank and with orthogonal rows and columns, nothing is lost; the sum is low-rank."""
    rng = np.random.default_rng(5)
    vectors = []
    for place in (0, 10):
        a, b = np.zeros((2, 20), np.float32), np.zeros((20, 2), np.float32)
        a[:, place : place + 10] = rng.standard_normal((2, 10))
        b[place : place + 10] = rng.standard_normal((10, 2))
        vectors.append(vector_of({"w": LowRankDelta((20, 20), a, b, 3.0)}))
    delta = merge_vectors(vectors, method="tsv").parameters["w"]
    assert isinstance(delta, LowRankDelta)
    assert delta.rank == 4
    expected = sum(vector.parameters["w"].to_dense() for vector in vectors)
    assert_close(delta.to_dense(), expected, times=2)


def test_a_thin_parameter_is_not_lost() -> None:
    """Of a single row each of three vectors keeps its one direction, where FusionBench drops it."""
    merged = matrices([[1.0, 0, 0]], [[0, 1.0, 0]], [[0, 0, 1.0]]).merged("tsv")["w"]
    np.testing.assert_allclose(merged, np.full((1, 3), 3**-0.5), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    drawn(count=(2, 4), tied=False, weights=(1.0, -0.5), kinds=("dense", "low rank"), least=4),
    st.randoms(use_true_random=False),
)
def test_tsv_does_not_see_the_order(case: Drawn, random: object) -> None:
    """Any order of the vectors gives the same merge, but for rounding."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    if paper([w * t for w, t in zip(case.weights, case.tensors(NAME), strict=True)]) is not None:
        first, second = case.merged("tsv"), case.merged("tsv", order=order)
        assert_close(second[NAME], first[NAME], times=10)
