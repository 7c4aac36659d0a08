"""DARE, by sum and by election, against mergekit and PEFT under the same draws."""

from typing import Any

import numpy as np
import peft.utils.merge_utils as peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import Array, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.merge import merge_vectors
from taskvectors.sparsify import uniform
from taskvectors.vector import TaskVector
from tests.taskvectors.merge.drawing import Drawn, digest_of, drawn, golden, values_of, vector_of
from tests.taskvectors.merge.oracles import (
    assert_equal,
    assert_near,
    one_by_mergekit,
    with_our_draws,
)

densities = st.integers(1, 99).map(lambda percent: percent / 100)
seeds = st.integers(0, 2**53)
METHODS = ("dare_linear", "dare_ties")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rescale", ["l1", "none"])
@settings(max_examples=80, deadline=None)
@given(case=drawn(count=(1, 6)), density=densities, seed=seeds, normalize=st.booleans())
def test_the_other_rescalings_are_mergekits(
    method: str, rescale: str, case: Drawn, density: float, seed: int, normalize: bool
) -> None:
    """Given our draws mergekit merges the same: its L1 norm, or nothing."""
    parameters: dict[str, Any] = {"density": density, "lambda": 0.5}
    if method == "dare_ties":
        parameters["normalize"] = normalize
    ours = case.merged(method, seed=seed, rescale=rescale, **parameters)
    theirs = with_our_draws(
        case,
        seed,
        lambda name: one_by_mergekit(case, name, method, rescale=rescale == "l1", **parameters),
    )
    assert_near(case, ours, theirs, factor=32 / density)


@settings(max_examples=80, deadline=None)
@given(drawn(count=(1, 6)), densities, seeds)
def test_dare_linear_is_pefts(case: Drawn, density: float, seed: int) -> None:
    """Given our draws PEFT divides by the density as well."""
    weights = torch.tensor(case.weights, dtype=torch.float32)
    theirs = with_our_draws(
        case,
        seed,
        lambda name: peft.dare_linear(case.tensors(name, torch.float32), weights, density).numpy(),
    )
    ours = case.merged("dare_linear", density=density, seed=seed)
    assert_near(case, ours, theirs, factor=4 / density)


@pytest.mark.parametrize("tied", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=seeds)
def test_dare_ties_by_density_is_mergekits_unscaled_over_the_density(
    tied: bool, data: st.DataObject, seed: int
) -> None:
    """One density for all vectors changes no vote; where sums cancel, if it is a power of two."""
    case = data.draw(drawn(count=(1, 6), tied=tied))
    density = data.draw(st.sampled_from((0.5, 0.25)) if tied else densities)
    parameters: dict[str, Any] = {"density": density, "normalize": True}
    ours = case.merged("dare_ties", seed=seed, **parameters)
    theirs = with_our_draws(
        case, seed, lambda name: one_by_mergekit(case, name, "dare_ties", **parameters) / density
    )
    if tied:
        assert_equal(ours, theirs)
    else:
        assert_near(case, ours, theirs, factor=32 / density)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.1, 0.3, 0.9, 1.0, 1e-3])
def test_what_is_kept_is_divided_by_the_density_exactly(method: str, density: float) -> None:
    """`float32(value) / float32(density)`, bit for bit; the rest is zero."""
    values = values_of(np.random.default_rng(1), (200, 50), False)
    merged = merge_vectors([vector_of({"w": DenseDelta(values)})], None, method, density=density)
    kept = uniform("0", 0, "w", np.arange(values.size)).reshape(values.shape) < density
    expected = np.where(kept, values / np.float32(density), np.float32(0))
    assert merged.parameters["w"].to_dense().tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6)), seeds, st.sampled_from(("density", "l1", "none")))
def test_density_one_is_linear(case: Drawn, seed: int, rescale: str) -> None:
    """Nothing is dropped, nothing rescaled; of dare_ties the election is left."""
    dared = case.merged("dare_linear", density=1.0, seed=seed, rescale=rescale)
    assert_near(case, dared, case.merged("linear"), factor=4)
    elected = case.merged("dare_ties", density=1.0, seed=seed, rescale=rescale, normalize=True)
    assert_equal(elected, case.merged("ties", density=1.0))


@pytest.mark.parametrize("method", METHODS)
def test_forms_of_a_vector_draw_the_same(method: str) -> None:
    """Sparse, dense or low rank: an element's draw is its own."""
    a, b = np.array([[1, 0, 2, -1, 3]], np.float32), np.array([[1], [0], [-2]], np.float32)
    product = b @ a
    index = np.flatnonzero(product).astype(np.int64)
    forms = (
        LowRankDelta(product.shape, a, b),
        DenseDelta(product),
        SparseDelta(product.shape, index, product.reshape(-1)[index]),
    )
    results = [
        merge_vectors([vector_of({"w": form})], None, method, density=0.5).parameters["w"]
        for form in forms
    ]
    assert all((r.to_dense() == results[0].to_dense()).all() for r in results)
    assert 0 < np.count_nonzero(results[0].to_dense()) < len(index)


@pytest.mark.parametrize("method", METHODS)
def test_rows_alone_are_dropped_as_in_the_whole(method: str) -> None:
    """Whoever holds some rows of a tensor composes these rows of the whole merge."""
    rng = np.random.default_rng(2)
    whole = [values_of(rng, (8, 50), False) for _ in range(3)]

    def merged(arrays: list[Array]) -> Array:
        vectors = [vector_of({"w": DenseDelta(array)}) for array in arrays]
        result = merge_vectors(vectors, [1.0, 0.5, -1.0], method, density=0.3, seed=4)
        return result.parameters["w"].to_dense()

    rows = np.zeros((8, 50), np.float32)
    rows[2:5] = 1
    np.testing.assert_array_equal(merged([array * rows for array in whole]), merged(whole) * rows)


@pytest.mark.parametrize("method", METHODS)
def test_seeds_make_the_bytes(method: str) -> None:
    """The same seed the same bytes, another seed others; so do two copies of one vector."""
    first, again, other = (golden(method, density=0.5, seed=seed) for seed in (1, 1, 2))
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)
    copy = vector_of({"w": DenseDelta(np.ones((20, 20), np.float32))})
    both = merge_vectors([copy, copy], None, "dare_linear", density=0.5).parameters["w"].to_dense()
    assert set(np.unique(both).tolist()) == {0.0, 2.0, 4.0}


def test_merges_are_golden() -> None:
    """The bytes of a merge never change, because loadouts are cached by digest."""
    assert [digest(golden(method, density=0.5, seed=7)) for method in METHODS] == [
        "06fb31dd7b6fa146",
        "f9082d0011bf35dc",
    ]


def digest(vector: TaskVector) -> str:
    delta = vector.parameters["w"]
    assert isinstance(delta, SparseDelta)
    return digest_of(delta)
