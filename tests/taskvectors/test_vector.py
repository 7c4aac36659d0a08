"""The algebra of task vectors against the same arithmetic on dense arrays."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import Array, Delta
from taskvectors.errors import BaseMismatch, InvalidIndex, InvalidLoadout, InvalidTensor
from taskvectors.selection import Selection
from taskvectors.vector import (
    BaseInfo,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
    module_of,
)
from tests.taskvectors.making import (
    BF16,
    DENSE,
    FINGERPRINT,
    LOW_RANK,
    SHAPES,
    SPARSE,
    example_vector,
    sparse,
)

BASE = BaseInfo("b", FINGERPRINT)
KINDS = ["sparse", "low_rank", "dense"]


def random_delta(kind: str, shape: tuple[int, int], seed: int, dtype: Any = np.float32) -> Delta:
    rng = np.random.default_rng(seed)
    if kind == "dense":
        return DenseDelta(rng.normal(size=shape).astype(dtype))
    if kind == "low_rank":
        rank = 1 + seed % 3
        a, b = rng.normal(size=(rank, shape[1])), rng.normal(size=(shape[0], rank))
        return LowRankDelta(shape, a.astype(dtype), b.astype(dtype), 0.5 * rank)
    numel = math.prod(shape)
    index = np.sort(rng.choice(numel, numel // 2, replace=False)).astype(np.int64)
    return SparseDelta(shape, index, rng.normal(size=len(index)).astype(dtype))


def one(delta: Delta, base: BaseInfo = BASE, **metadata: object) -> TaskVector:
    return TaskVector(base, {"w": delta}, metadata)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 1000),
    st.floats(-4, 4),
)
def test_the_algebra_is_that_of_dense_arrays(
    left: str, right: str, shape: tuple[int, int], seed: int, factor: float
) -> None:
    """Sums, differences, negatives and multiples of any kinds equal the dense ones."""
    v = one(random_delta(left, shape, seed))
    w = one(random_delta(right, shape, seed + 1, BF16))
    x, y = v.delta("w"), w.delta("w")
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose((v + w).delta("w"), x + y, **close)
    np.testing.assert_allclose((v - w).delta("w"), x - y, **close)
    np.testing.assert_array_equal((-w).delta("w"), -y)
    np.testing.assert_allclose((v * factor).delta("w"), x * np.float32(factor), **close)
    np.testing.assert_allclose((factor * v).delta("w"), (v * factor).delta("w"))


def test_a_sum_of_sparse_deltas_has_the_union_of_their_supports() -> None:
    """Entries that cancel are gone; the sum is sparse."""
    total = one(sparse([10], [1, 4, 7], [1, 2, 3])) + one(sparse([10], [0, 4, 7], [1, 1, -3]))
    delta = total.parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert delta.index.tolist() == [0, 1, 4]
    assert delta.values.tolist() == [1, 1, 3]


@pytest.mark.parametrize("scales", [(2.0, 2.0), (2.0, -0.5)])
def test_a_sum_of_low_rank_deltas_has_both_ranks(scales: tuple[float, float]) -> None:
    """Ranks are concatenated, nothing is densified, and an equal scale and dtype are kept."""
    a, b = np.ones((1, 3), BF16), np.ones((2, 1), BF16)
    left, right = (one(LowRankDelta((2, 3), a, b, scale)) for scale in scales)
    delta = (left + right).parameters["w"]
    assert isinstance(delta, LowRankDelta)
    assert delta.rank == 2
    assert delta.to_dense().tolist() == [[sum(scales)] * 3] * 2
    assert (delta.b.dtype == BF16) == (scales[0] == scales[1])


@pytest.mark.parametrize(("left", "right"), [("sparse", "low_rank"), ("dense", "sparse")])
def test_a_sum_of_mixed_kinds_is_dense_for_that_parameter_only(left: str, right: str) -> None:
    """Other parameters keep their kind."""
    v = TaskVector(BASE, {"w": random_delta(left, (3, 3), 1), "v": sparse([2], [1], [1])})
    total = v + one(random_delta(right, (3, 3), 2))
    assert isinstance(total.parameters["w"], DenseDelta)
    assert isinstance(total.parameters["v"], SparseDelta)


def test_a_sum_keeps_parameters_of_either_side() -> None:
    """A parameter that only one side changes is taken over."""
    v, w = one(sparse([2], [1], [1])), TaskVector(BASE, {"u": sparse([2], [0], [3])})
    assert list(v + w) == ["u", "w"]
    assert len(v + w) == 2


def test_a_sum_keeps_the_metadata_that_both_sides_share() -> None:
    """A licence stays only where both have it."""
    v = one(sparse([2], [1], [1]), license="mit", tags=["a"])
    w = one(sparse([2], [1], [1]), license="mit", tags=["b"])
    assert (v + w).metadata == {"license": "mit"}
    assert (-v * 2).metadata == v.metadata


def test_negation_keeps_the_stored_dtype() -> None:
    """A negated file is as large as the file."""
    delta = (-one(sparse([2], [1], np.array([1.5], BF16)))).parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert delta.values.dtype == BF16


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_must_be_finite(kind: str, factor: float) -> None:
    """NaN times a vector is an error at once."""
    with pytest.raises(ValueError, match="by a finite number only"):
        one(random_delta(kind, (2, 2), 1)) * factor


def test_vectors_of_different_bases_do_not_add() -> None:
    """Two known fingerprints that differ are an error, whatever the names."""
    other = BaseInfo("b", "cd" * 32)
    with pytest.raises(BaseMismatch, match="the bases differ"):
        one(sparse([2], [1], [1])) + one(sparse([2], [1], [1]), other)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (BASE, BaseInfo("other", FINGERPRINT), BASE),
        (BASE, BaseInfo("b"), BaseInfo("b")),
        (BaseInfo("b"), BASE, BaseInfo("b")),
        (BaseInfo("b"), BaseInfo("b"), BaseInfo("b")),
    ],
)
def test_a_sum_with_an_unverified_vector_is_unverified(
    left: BaseInfo, right: BaseInfo, expected: BaseInfo
) -> None:
    """A fingerprint holds for a sum only when both sides have it."""
    v = one(sparse([2], [1], [1]), left) + one(sparse([2], [1], [1]), right)
    assert v.base == expected


def test_unverified_vectors_of_different_names_do_not_add() -> None:
    """Without fingerprints the names must agree."""
    with pytest.raises(BaseMismatch, match="fingerprint unknown"):
        one(sparse([2], [1], [1]), BaseInfo("a")) + one(sparse([2], [1], [1]), BaseInfo("b"))


def test_deltas_of_different_shapes_do_not_add() -> None:
    """The error names the parameter and both shapes."""
    with pytest.raises(BaseMismatch, match=r"w has shape \[2\] on one side and \[3\]"):
        one(sparse([2], [1], [1])) + one(sparse([3], [1], [1]))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BF16])
@pytest.mark.parametrize("name", [SPARSE, LOW_RANK, DENSE])
def test_apply_adds_in_float32(name: str, dtype: np.dtype[Any]) -> None:
    """The base gets its delta and keeps its dtype; the argument is not changed."""
    base: Array = np.random.default_rng(0).normal(size=SHAPES[name]).astype(dtype)
    before = base.copy()
    result = example_vector().apply_to(name, base)
    expected = (base.astype(np.float32) + example_vector().delta(name)).astype(dtype)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(base, before)


def test_apply_leaves_other_parameters_alone() -> None:
    """A parameter without a delta comes back as it is; another shape is an error."""
    base = np.ones((2, 2), np.float32)
    assert example_vector().apply_to("other", base) is base
    with pytest.raises(BaseMismatch, match=SPARSE):
        example_vector().apply_to(SPARSE, base)
    with pytest.raises(KeyError):
        example_vector().delta("other")


def test_a_selection_scales_and_drops_parameters() -> None:
    """Layers and modules are said as in a request."""
    vector = example_vector()
    assert list(vector.select(layers=[0])) == [SPARSE, LOW_RANK]
    assert list(vector.select(layers=["1-5"])) == []
    halved = vector.select(modules={"up": 0.5, "norm": 1.0})
    assert list(halved) == [SPARSE, DENSE]
    np.testing.assert_array_equal(halved.delta(SPARSE), vector.delta(SPARSE) / 2)
    assert halved.parameters[DENSE] is vector.parameters[DENSE]
    assert list(vector.restrict(Selection())) == list(vector)
    with pytest.raises(InvalidLoadout):
        vector.select(layers=["all"])


def test_module_of_a_parameter() -> None:
    """The last component names the tensor, the rest the module."""
    assert module_of("model.norm.weight") == "model.norm"


def test_counts() -> None:
    """Stored values count for sparse deltas, all elements for the others."""
    vector = example_vector()
    assert vector.nnz == 4 + 20 + 7
    assert vector.density == (4 + 20 + 7) / (300 + 20 + 7)
    assert TaskVector(BASE, {}).density == 0.0


@pytest.mark.parametrize(
    ("index", "values", "error"),
    [
        ([3, 3], [1.0, 1.0], InvalidIndex),
        ([3, 2], [1.0, 1.0], InvalidIndex),
        ([-1, 2], [1.0, 1.0], InvalidIndex),
        ([3, 10], [1.0, 1.0], InvalidIndex),
        ([3], [1.0, 1.0], InvalidIndex),
        ([[3]], [1.0], InvalidTensor),
        ([3], [[1.0]], InvalidTensor),
    ],
)
def test_a_malformed_sparse_delta_is_refused(
    index: list[int], values: list[float], error: type[Exception]
) -> None:
    """Indices ascend strictly within the shape, one for each value."""
    with pytest.raises(error):
        sparse([10], index, values)


def test_a_wrong_dtype_is_refused() -> None:
    """Values are float32, float16 or bfloat16; indices int64."""
    with pytest.raises(InvalidTensor, match="unsupported value dtype float64; choose float32"):
        DenseDelta(np.ones(2))
    with pytest.raises(InvalidTensor, match="1-D int64 index"):
        SparseDelta((2,), np.zeros(1, np.int32), np.ones(1, np.float32))


def test_factors_that_do_not_fit_are_refused() -> None:
    """a is [r, in], b is [out, r]."""
    with pytest.raises(InvalidTensor, match="do not make"):
        LowRankDelta((2, 3), np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(InvalidTensor, match="do not make"):
        LowRankDelta((2, 3), np.ones((2, 3), np.float32), np.ones((2, 1), np.float32))
