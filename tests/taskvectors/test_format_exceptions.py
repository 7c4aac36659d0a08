"""The exact values beside a delta, for a checkpoint that is restored bit for bit."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvectors.errors import InvalidIndex, InvalidTensor, NonFiniteValue
from taskvectors.format import Exceptions, VectorReader, read_vector, validate_file
from taskvectors.vector import DenseDelta, LowRankDelta, SparseDelta
from tests.taskvectors.coded import FLOATS, SOME, sparse_deltas, write
from tests.taskvectors.making import sparse


@SOME
@given(sparse_deltas(), st.sampled_from(["F64", *FLOATS]), st.floats(0, 1), st.booleans())
def test_exceptions_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    delta: SparseDelta,
    dtype: Any,
    share: float,
    dense: bool,
) -> None:
    """Any entries, within the support or not; the delta is as it would be without them."""
    numel = math.prod(delta.shape)
    rng = np.random.default_rng(numel)
    index = np.flatnonzero(rng.random(numel) < share).astype(np.int64)
    numbers = rng.normal(size=len(index)).astype(np.float64 if dtype == "F64" else dtype)
    numbers[::3] = -0.0
    path = tmp_path_factory.getbasetemp() / "exact.safetensors"
    changed = DenseDelta(delta.to_dense()) if dense else delta
    write(path, changed, Exceptions(index, numbers), index="u16")
    assert validate_file(path).parameters["w"].num_exceptions == len(index)
    assert np.array_equal(read_vector(path).delta("w"), delta.to_dense())
    with VectorReader(path) as reader:
        found = reader.exceptions("w")
    assert (found is None) == (len(index) == 0)
    if found is not None:
        assert found.index.tolist() == index.tolist()
        assert found.values.dtype == numbers.dtype
        assert found.values.tobytes() == numbers.tobytes()


@pytest.mark.parametrize(
    ("index", "numbers", "error", "message"),
    [
        ([1, 1], [1.0, 2.0], InvalidIndex, "must ascend strictly from 0"),
        ([-1], [1.0], InvalidIndex, "must ascend strictly from 0"),
        ([0, 1], [1.0], InvalidIndex, "2 indices for 1 exceptions"),
        ([0], [np.nan], NonFiniteValue, "NaN or infinite"),
        ([0.0], [1.0], InvalidTensor, "1-D int64 index"),
        ([[0]], [[1.0]], InvalidTensor, "1-D int64 index"),
        ([0], [1], InvalidTensor, "unsupported exception dtype int64; choose"),
    ],
)
def test_exceptions_are_checked(
    index: list[Any], numbers: list[Any], error: type[Exception], message: str
) -> None:
    """What the file could not hold is refused before it is written."""
    with pytest.raises(error, match=message):
        Exceptions(np.array(index), np.array(numbers))


def test_the_writer_checks_where_exceptions_belong(tmp_path: Path) -> None:
    """They lie within the parameter, and a low-rank one has none."""
    exact = Exceptions(np.array([4]), np.ones(1))
    with pytest.raises(InvalidIndex, match="w has an exception at 4, outside of 4 elements"):
        write(tmp_path / "x", sparse([2, 2], [0], [1.0]), exact)
    low_rank = LowRankDelta((3, 2), np.ones((1, 2), np.float32), np.ones((3, 1), np.float32))
    with pytest.raises(InvalidTensor, match="low_rank w cannot have exceptions"):
        write(tmp_path / "x", low_rank, exact)
