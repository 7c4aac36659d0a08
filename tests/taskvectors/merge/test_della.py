"""DELLA against mergekit under the same draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import DenseDelta, SparseDelta
from taskvectors.errors import InvalidLoadout
from taskvectors.merge import merge_vectors
from taskvectors.sparsify import uniform
from tests.taskvectors.merge.drawing import Dense, Drawn, digest_of, drawn, golden, vector_of
from tests.taskvectors.merge.oracles import (
    assert_equal,
    assert_near,
    merge_group,
    stable_sorts,
    with_our_draws,
)

SPREADS = ((0.5, 0.15), (0.3, 0.2), (0.7, 0.0), (0.2, 0.19))
spreads = st.sampled_from(SPREADS)
seeds = st.integers(0, 2**53)


def theirs(case: Drawn, seed: int, **parameters: object) -> Dense:
    """mergekit's, row by row of what follows the first dimension, each row of two or more."""

    def merge_one(name: str) -> object:
        shape = case.shapes[name]
        flat = (1, -1) if len(shape) == 1 else (shape[0], -1)
        tensors = [tensor.reshape(flat) for tensor in case.tensors(name, torch.float32)]
        base = torch.zeros_like(tensors[0])
        return merge_group([base, *tensors], case.weights, "della", parameters).reshape(shape)

    with stable_sorts():
        return with_our_draws(case, seed, lambda name: merge_one(name).numpy())  # type: ignore[attr-defined]


def has_long_rows(case: Drawn) -> bool:
    """mergekit's ranks of a row of one element are 0 / 0."""
    rows = (math.prod(s[1:]) if len(s) > 1 else s[0] for s in case.shapes.values())
    return all(columns > 1 for columns in rows)


@pytest.mark.parametrize("rescale", ["l1", "none"])
@pytest.mark.parametrize("tied", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), spread=spreads, seed=seeds, normalize=st.booleans())
def test_the_other_rescalings_are_mergekits(
    rescale: str,
    tied: bool,
    data: st.DataObject,
    spread: tuple[float, float],
    seed: int,
    normalize: bool,
) -> None:
    """Given our draws mergekit merges the same: its L1 norm, or nothing."""
    case = data.draw(drawn(count=(1, 6), tied=tied).filter(has_long_rows))
    density, epsilon = spread
    parameters = {
        "density": density,
        "epsilon": epsilon,
        "normalize": normalize,
        "lambda": 0.5,
    }
    ours = case.merged("della", seed=seed, rescale=rescale, **parameters)
    expected = theirs(case, seed, rescale=rescale == "l1", **parameters)
    if rescale == "none" and tied:
        assert_equal(ours, expected)
    else:
        assert_near(case, ours, expected, factor=128)


@pytest.mark.parametrize(("density", "epsilon"), SPREADS)
def test_what_is_kept_is_divided_by_its_own_probability(density: float, epsilon: float) -> None:
    """`float32(value) / float32(p)`, p linear in the rank within the row."""
    rng = np.random.default_rng(3)
    magnitudes = np.stack([rng.permutation(40) + 1 for _ in range(30)])
    values = (magnitudes * rng.choice([-1, 1], magnitudes.shape)).astype(np.float32)
    vector = vector_of({"w": DenseDelta(values)})
    merged = merge_vectors([vector], None, "della", density=density, epsilon=epsilon, seed=5)
    chances = density - epsilon + (magnitudes - 1) / 39 * (2 * epsilon)
    kept = uniform("0", 5, "w", np.arange(values.size)).reshape(values.shape) < chances
    expected = np.where(kept, values / chances.astype(np.float32), np.float32(0))
    assert merged.parameters["w"].to_dense().tobytes() == expected.tobytes()


def test_the_mean_is_the_vectors() -> None:
    """Over many seeds each element's mean is its value: the rescaling is unbiased."""
    values = np.array([[1.0, -2.0, 3.0, -4.0]], np.float32)
    vector = vector_of({"w": DenseDelta(values)})
    total = np.zeros((1, 4))
    for seed in range(4000):
        merged = merge_vectors([vector], None, "della", density=0.5, epsilon=0.3, seed=seed)
        if merged.parameters:
            total += merged.parameters["w"].to_dense()
    # five standard deviations of |x| sqrt((1 - p) / p / 4000), p ≥ 0.2
    np.testing.assert_array_less(np.abs(total / 4000 - values), np.abs(values) * 0.16)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6)), seeds)
def test_density_one_is_the_election(case: Drawn, seed: int) -> None:
    """Nothing is dropped; what is left is TIES that trims nothing."""
    assert_equal(case.merged("della", density=1.0, seed=seed), case.merged("ties", density=1.0))


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.1), (0.5, 0.5)])
def test_a_spread_beyond_probabilities_is_refused(density: float, epsilon: float) -> None:
    """The error names both and says what would do."""
    vector = vector_of({"w": DenseDelta(np.ones((2, 2), np.float32))})
    with pytest.raises(InvalidLoadout, match=rf"epsilon {epsilon} at density {density}.*below"):
        merge_vectors([vector], None, "della", density=density, epsilon=epsilon)


def test_seeds_make_the_bytes_and_they_are_golden() -> None:
    """Another seed, other bytes; those of one seed never change."""
    first, other = (golden("della", seed=seed).parameters["w"] for seed in (7, 8))
    assert isinstance(first, SparseDelta)
    assert isinstance(other, SparseDelta)
    assert digest_of(first) != digest_of(other)
    assert digest_of(first) == "9e6836872b7db279"
