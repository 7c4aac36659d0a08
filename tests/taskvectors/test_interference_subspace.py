"""Singular directions: against a full SVD, exact where they can be, unbiased where not."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.interference.subspace import (
    CHUNK,
    DENSE_FROM,
    MAX_SIDES,
    TOP,
    overlap,
    subspace,
)
from tests.taskvectors.making import sparse


def spiked(rng: np.random.Generator, shape: tuple[int, int], density: float) -> Delta:
    """Sparse or dense, with eight directions that stand out, as in a fine-tuned model."""
    strengths = 2.0 ** -np.arange(TOP)
    left, right = (rng.standard_normal((size, TOP)) for size in shape)
    values = (left * strengths) @ right.T + 1e-3 * rng.standard_normal(shape)
    if density == 1.0:
        return DenseDelta(values.astype(np.float32))
    index = np.flatnonzero(rng.random(values.size) < density)
    return SparseDelta(shape, index, values.reshape(-1)[index].astype(np.float32))


def exact(delta: Delta, rank: int) -> tuple[Array, Array]:
    """The top directions by a full SVD."""
    u, _, vt = np.linalg.svd(delta.to_dense().astype(np.float64), full_matrices=False)
    return u[:, :rank], vt[:rank].T


def shared(one: Array, other: Array) -> float:
    """‖UᵀU′‖²_F / r by its definition as the mean of squared cosines of principal angles."""
    return float(np.mean(np.linalg.svd(one.T @ other, compute_uv=False) ** 2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(9, 150), st.integers(9, 150)),
    density=st.sampled_from([0.5, 1.0]),
)
def test_overlap_equals_that_of_a_full_svd(
    seed: int, shape: tuple[int, int], density: float
) -> None:
    """Of sparse and dense deltas, tall and wide."""
    rng = np.random.default_rng(seed)
    deltas = [spiked(rng, shape, density) for _ in range(2)]
    one, other = (subspace(delta) for delta in deltas)
    found = overlap(one, other)
    (u, v), (w, x) = (exact(delta, TOP) for delta in deltas)
    assert found.left == pytest.approx(shared(u, w), abs=2e-3)
    assert found.right == pytest.approx(shared(v, x), abs=2e-3)
    assert (found.left_chance, found.right_chance) == (TOP / shape[0], TOP / shape[1])


def embedded(rng: np.random.Generator, block: tuple[int, int], shape: tuple[int, int]) -> Delta:
    """A full block of eight strong directions, on scattered rows and columns."""
    values = spiked(rng, block, 1.0).to_dense()
    rows, columns = (
        np.sort(rng.choice(n, k, replace=False)) for n, k in zip(shape, block, strict=True)
    )
    index = (rows[:, None] * shape[1] + columns).reshape(-1)
    return SparseDelta(shape, index, values.reshape(-1))


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        ((150, 170), (460, 500)),
        ((10, CHUNK + 900), (90, CHUNK + 1000)),
        ((CHUNK + 900, 10), (CHUNK + 1000, 90)),
        ((64, CHUNK // 32), (256, CHUNK // 8)),
    ],
)
def test_chunks_of_entries_add_up(block: tuple[int, int], shape: tuple[int, int]) -> None:
    """Below the density for the dense form: borders within rows, between them, at the end."""
    delta = embedded(np.random.default_rng(4), block, shape)
    assert CHUNK < delta.nnz < DENSE_FROM * shape[0] * shape[1]
    found, (u, v) = subspace(delta), exact(delta, TOP)
    assert shared(found.left, u) == pytest.approx(1, abs=1e-4)
    assert shared(found.right, v) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("density", [0.01, 0.12, 0.5])
def test_memory_is_a_few_times_the_parameter(density: float) -> None:
    """Whatever the density, and the directions are those of a full SVD."""
    delta = spiked(np.random.default_rng(5), (1024, 1024), density)
    tracemalloc.start()
    try:
        found = subspace(delta)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    if density == 0.5:
        for side, expected in zip((found.left, found.right), exact(delta, TOP), strict=True):
            assert shared(side, expected) == pytest.approx(1, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    ranks=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_low_rank_directions_are_exact(
    seed: int, shape: tuple[int, int], ranks: tuple[int, int]
) -> None:
    """By QR of the factors, for ranks below and above the smaller side and eight."""
    rng = np.random.default_rng(seed)
    deltas = [
        LowRankDelta(
            shape,
            rng.standard_normal((rank, shape[1])).astype(np.float32),
            rng.standard_normal((shape[0], rank)).astype(np.float32),
            float(rng.choice([-2.0, 0.5])),
        )
        for rank in ranks
    ]
    one, other = (subspace(delta) for delta in deltas)
    assert [one.rank, other.rank] == [min(rank, TOP, *shape) for rank in ranks]
    rank = min(one.rank, other.rank)
    (u, v), (w, x) = (exact(delta, rank) for delta in deltas)
    found = overlap(one, other)
    assert found.left == pytest.approx(shared(u, w), abs=1e-3)
    assert found.right == pytest.approx(shared(v, x), abs=1e-3)


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_random_pairs_overlap_as_chance_says(density: float) -> None:
    """On average r / n: the common seed of the method does not make strangers look alike."""
    rng, ratios = np.random.default_rng(11), []
    for _ in range(60):
        pair = []
        for _ in range(2):
            index = np.flatnonzero(rng.random(120 * 90) < density)
            values = rng.standard_normal(len(index)).astype(np.float32)
            delta = sparse((120, 90), index, values)
            pair.append(subspace(delta if density < 1 else DenseDelta(delta.to_dense())))
        found = overlap(*pair)
        ratios.append((found.left / found.left_chance, found.right / found.right_chance))
    assert np.mean(ratios, axis=0) == pytest.approx([1, 1], abs=0.15)


def test_directions_are_orthonormal_and_few() -> None:
    """Also of a matrix with fewer directions than eight, and of one with many."""
    rng = np.random.default_rng(2)
    narrow = sparse((40, 30), [0, 1, 31], [1, 2, -3])
    for delta, rank in ((narrow, 2), (spiked(rng, (40, 30), 0.3), TOP)):
        found = subspace(delta)
        assert found.rank == rank
        for side in (found.left, found.right):
            assert side.T @ side == pytest.approx(np.eye(rank), abs=1e-6)


@pytest.mark.parametrize(
    "delta",
    [
        sparse((4,), [0], [1]),
        sparse((2, 2, 2), [0], [1]),
        sparse((0, 4), [], []),
        sparse((MAX_SIDES, 1), [0], [1]),
    ],
)
def test_other_shapes_have_no_directions(delta: Delta) -> None:
    """Not two axes, no elements, or sides that would take too much memory."""
    assert subspace(delta) is None


def test_zero_has_no_directions() -> None:
    """Zeros of each kind overlap with nothing."""
    zero = np.zeros((3, 3), np.float32)
    some = subspace(DenseDelta(np.eye(3, dtype=np.float32)))
    for delta in (
        sparse((3, 3), [], []),
        DenseDelta(zero),
        LowRankDelta((3, 3), zero, zero),
        LowRankDelta((3, 3), zero[:0], zero[:, :0]),
        LowRankDelta((3, 3), zero + 1, zero + 1, 0.0),
    ):
        found = subspace(delta)
        assert found.rank == 0
        assert overlap(found, some) is None
