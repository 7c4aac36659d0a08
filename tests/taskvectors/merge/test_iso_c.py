"""Iso-C against FusionBench's, and against the formula where the sum lacks rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.errors import NonFiniteValue
from taskvectors.merge import merge_vectors
from taskvectors.vector import DenseDelta, LowRankDelta
from tests.taskvectors.merge import fusion_bench_oracle as fusion_bench
from tests.taskvectors.merge.drawing import Drawn, assert_close, drawn, matrices, vector_of

UNCERTAIN = (1e-8, 1e-3)
"""Singular values between these shares of the largest: whether they count is a matter of taste."""


@pytest.mark.parametrize("seed", range(30))
def test_iso_c_is_fusion_benchs(seed: int) -> None:
    """Dense vectors of full rank, weights of both signs, one-dimensional parameters too."""
    rng = np.random.default_rng(seed)
    count, shape = int(rng.integers(1, 5)), tuple(rng.integers(2, 30, 2).tolist())
    shapes = {"w": shape, "norm": (5,), "conv": (2, 3, 2)}
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
    iso_c = fusion_bench.load("method.isotropic_merging.iso_utils").iso_c
    expected = iso_c(states, accelerator="cpu")
    merged = case.merged("iso_c", **{"lambda": 0.7})
    for name in shapes:
        assert_close(merged[name], 0.7 * expected[name], times=2)


def isotropic(total: torch.Tensor) -> torch.Tensor | None:
    """The paper's formula on the rank there is, `σ̄ M (MᵀM)^(−½)`; None if that is uncertain."""
    values = torch.linalg.svdvals(total)
    share = values / values.max().clip(1e-300)
    if ((share > UNCERTAIN[0]) & (share < UNCERTAIN[1])).any():
        return None
    squares, basis = torch.linalg.eigh(total.T @ total)
    kept = squares > 1e-10 * squares.max()
    root = (basis[:, kept] / squares[kept].sqrt()) @ basis[:, kept].T
    return total @ root * (values.sum() / max(1, int(kept.sum())))


@settings(max_examples=150, deadline=None)
@given(drawn())
def test_iso_c_keeps_the_rank(case: Drawn) -> None:
    """Sparse, low-rank and absent vectors, ties and cancellations: directions of zero stay zero."""
    merged = case.merged("iso_c")
    for name, shape in case.shapes.items():
        total = sum(w * t for w, t in zip(case.weights, case.tensors(name), strict=True))
        expected = isotropic(total) if len(shape) == 2 else total / len(case.vectors)
        if expected is not None:
            assert_close(merged[name], expected, times=10, scale=1e-6)


@settings(max_examples=60, deadline=None)
@given(drawn(kinds=("low rank",), weights=(1.0, -0.5), least=6))
def test_low_rank_vectors_stay_low_rank(case: Drawn) -> None:
    """With all singular values equal; a second time changes nothing."""
    name = "layers.0.up.weight"
    delta = merge_vectors(case.vectors, case.weights, "iso_c").parameters.get(name)
    if delta is None:
        return
    if isinstance(delta, LowRankDelta):
        assert delta.rank * sum(delta.shape) < delta.nnz
    values = np.linalg.svd(delta.to_dense().astype(np.float64), compute_uv=False)
    kept = values[values > 1e-4 * values[0]]
    np.testing.assert_allclose(kept, values[0], rtol=1e-5)
    again = matrices(delta.to_dense()).merged("iso_c")["w"]
    assert_close(again, delta.to_dense(), times=5)


def test_an_orthogonal_matrix_is_itself() -> None:
    """Nothing is left to level."""
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    assert_close(matrices(matrix).merged("iso_c")["w"], matrix.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(drawn(count=(2, 4), tied=False), st.randoms(use_true_random=False))
def test_iso_c_does_not_see_the_order(case: Drawn, random: object) -> None:
    """Any order of the vectors gives the same merge, but for rounding."""
    order = list(range(len(case.vectors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    first, second = case.merged("iso_c"), case.merged("iso_c", order=order)
    for name, shape in case.shapes.items():
        total = sum(w * t for w, t in zip(case.weights, case.tensors(name), strict=True))
        if len(shape) != 2 or isotropic(total) is not None:
            assert_close(second[name], first[name], times=10, scale=1e-6)


@pytest.mark.parametrize("method", ["iso_c", "tsv", "knots"])
def test_what_cancels_is_left_out(method: str) -> None:
    """A parameter of zeros has no directions; it is not in the merge."""
    zero = matrices(np.zeros((3, 4)), np.zeros((3, 4)))
    assert merge_vectors(zero.vectors, method=method).parameters == {}
    if method == "iso_c":
        opposed = matrices(np.ones((3, 4)), -np.ones((3, 4)))
        assert merge_vectors(opposed.vectors, method=method).parameters == {}


@pytest.mark.parametrize("method", ["iso_c", "tsv", "knots"])
def test_a_rank_of_zero_is_no_error(method: str) -> None:
    """Low-rank deltas without a rank, and parameters without elements, merge to nothing."""
    hollow = LowRankDelta((3, 4), np.zeros((0, 4), np.float32), np.zeros((3, 0), np.float32))
    empty = DenseDelta(np.zeros((0, 4), np.float32))
    for delta in (hollow, empty):
        vectors = [vector_of({"w": delta}), vector_of({"w": delta})]
        assert merge_vectors(vectors, method=method).parameters == {}


@pytest.mark.parametrize("method", ["iso_c", "tsv", "knots"])
def test_an_svd_that_does_not_converge_is_tried_transposed(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAPACK's failure on a matrix does not end a merge of hours."""
    case = matrices(*np.random.default_rng(3).standard_normal((2, 4, 6)))
    expected = case.merged(method)["w"]
    svd = np.linalg.svd

    def failing(matrix: np.ndarray, **options: bool) -> object:  # type: ignore[type-arg]
        if matrix.flags.c_contiguous:
            raise np.linalg.LinAlgError("SVD did not converge")
        return svd(matrix, **options)

    monkeypatch.setattr(np.linalg, "svd", failing)
    assert_close(case.merged(method)["w"], expected, times=5)


@pytest.mark.parametrize("method", ["iso_c", "tsv", "knots"])
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    """Infinite values have no singular values."""
    with pytest.raises(NonFiniteValue, match="not finite; its SVD does not exist"):
        matrices(np.full((2, 2), np.inf)).merged(method)
