"""Bitmaps, int8 and ternary values, exceptions: against naive decoders and golden bytes."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex, InvalidTensor, NonFiniteValue
from taskvectors.format import (
    INDEX_ENCODINGS,
    VALUE_ENCODINGS,
    as_stored,
    bitmap,
    gaps,
    read_header,
    read_vector,
    validate_file,
    values,
    write_vector,
)
from taskvectors.vector import BaseInfo, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from tests.taskvectors.coded import SOME, sparse_deltas, write
from tests.taskvectors.making import sparse


def plain_bits(raw: Array) -> list[int]:
    """The positions of set bits, one at a time."""
    return [8 * i + k for i, byte in enumerate(raw.tolist()) for k in range(8) if byte >> k & 1]


def plain_gaps(raw: Array) -> list[int]:
    """The indices of gaps, one at a time."""
    index, gap, position = [], 0, -1
    for number in raw.tolist():
        gap += number
        if raw.dtype != np.uint8 or number != 255:
            position += gap + 1
            index.append(position)
            gap = 0
    return index


def plain_decode(tensors: Mapping[str, Array], count: int, shape: tuple[int, ...]) -> Array:
    """The definition of the format (docs/format.md), one value at a time, densely."""
    index = plain_bits(tensors["w.bits"]) if "w.bits" in tensors else plain_gaps(tensors["w.idx"])
    assert len(index) == count
    dense = np.zeros(math.prod(shape), np.float32)
    scales = tensors.get("w.scale")
    for k, position in enumerate(index):
        if "w.sign" in tensors:
            negative = tensors["w.sign"][k // 8] >> (k % 8) & 1
            dense[position] = -scales[0] if negative else scales[0]
        elif scales is not None:
            row = position * len(scales) // math.prod(shape)
            dense[position] = np.float32(tensors["w.val"][k]) * scales[row]
        else:
            dense[position] = tensors["w.val"][k]
    return dense.reshape(shape)


@SOME
@given(sparse_deltas(), st.sampled_from([None, *VALUE_ENCODINGS]), st.sampled_from(INDEX_ENCODINGS))
def test_every_encoding_is_read_as_it_is_defined(
    tmp_path_factory: pytest.TempPathFactory,
    delta: SparseDelta,
    value_dtype: str | None,
    index: str,
) -> None:
    """A naive decoder over the safetensors library finds what the reader finds, to the bit."""
    path = tmp_path_factory.getbasetemp() / "coded.safetensors"
    write(path, delta, value_dtype=value_dtype, index=index)
    spec = validate_file(path).parameters["w"]
    read = read_vector(path).parameters["w"]
    assert isinstance(read, SparseDelta)
    expected = plain_decode(load_file(path), spec.nnz, delta.shape)
    assert np.array_equal(read.to_dense(), expected)
    stored = as_stored("w", delta, value_dtype)
    assert isinstance(stored, SparseDelta)
    assert stored.index.tobytes() == read.index.tobytes()
    assert stored.values.tobytes() == read.values.tobytes()
    assert stored.values.dtype == read.values.dtype
    assert value_dtype == "ternary" or np.array_equal(read.index, delta.index)


@SOME
@given(sparse_deltas())
def test_int8_is_the_nearest_code(delta: SparseDelta) -> None:
    """Each value is off by half a step at most, and the largest of a row is exact but for rounding.

    A step is the largest magnitude of the row (64 values each on average), else tensor, over 127.
    """
    stored = as_stored("w", delta, "int8")
    rows = delta.shape[0] if len(delta.shape) > 1 else 1
    if rows == 0 or len(delta.index) < 64 * rows:
        rows = 1
    owner = delta.index * rows // max(1, math.prod(delta.shape))
    exact = delta.values.astype(np.float64)
    for row in range(rows):
        mine = exact[owner == row]
        theirs = stored.values.astype(np.float64)[owner == row]
        step = np.abs(mine).max(initial=0) / 127
        assert (np.abs(mine - theirs) <= step * (0.5 + 1e-4)).all()
        assert np.abs(theirs).max(initial=0) == pytest.approx(127 * step, rel=1e-6, abs=0)


def test_codes_round_half_to_even() -> None:
    """Ties go to the even code on both sides of zero."""
    numbers = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    _, parts = values.encode_sparse("w", SparseDelta((7,), np.arange(7), numbers), "int8")
    assert parts["scale"].tolist() == [1.0]
    assert parts["val"].tolist() == [127, 0, 2, 2, 0, -2, -2]


@SOME
@given(sparse_deltas())
def test_the_ternary_scale_is_the_best_one(delta: SparseDelta) -> None:
    """The mean magnitude of the nonzero values in exact arithmetic; signs are kept, zeros gone."""
    stored = as_stored("w", delta, "ternary")
    assert isinstance(stored, SparseDelta)
    kept = delta.values != 0
    assert np.array_equal(stored.index, delta.index[kept])
    assert np.array_equal(stored.values < 0, delta.values[kept] < 0)
    if kept.any():
        magnitudes = [abs(Fraction(float(number))) for number in delta.values[kept]]
        mean = float(sum(magnitudes) / len(magnitudes))
        assert np.abs(stored.values) == pytest.approx(mean, rel=2e-7, abs=2e-45)


def test_a_long_mean_is_summed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of any size give the sum from first to last, not another one."""
    numbers = np.random.default_rng(5).normal(size=1000).astype(np.float32)
    total = 0.0
    for number in np.abs(numbers).tolist():
        total += number
    for chunk in (1, 7, 999, 1000, 5000):
        monkeypatch.setattr(values, "_CHUNK", chunk)
        assert values._mean_magnitude(numbers) == total / 1000


def test_a_bitmap_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding in chunks gives the same indices."""
    monkeypatch.setattr(bitmap, "_CHUNK", 3)
    index = np.sort(np.random.default_rng(2).choice(203, 60, replace=False))
    raw = bitmap.encode_bitmap(index, 203)
    assert plain_bits(raw) == index.tolist()
    chunks = list(bitmap.iter_bitmap(raw, 60, 203, "w.bits"))
    assert len(chunks) == 9
    assert np.concatenate(chunks).tolist() == index.tolist()


def test_the_documented_bytes() -> None:
    """The examples of docs/format.md: indices 0, 3, 259 of 264, and values 1, -2, 0.5, -4."""
    index = np.array([0, 3, 259])
    assert bitmap.encode_bitmap(index, 264).tolist() == [9, *[0] * 31, 8]
    assert gaps.encode_gaps(index, "u8").tolist() == [0, 2, 255, 0]
    numbers = np.array([1, -2, 0.5, -4], np.float32)
    _, parts = values.encode_sparse("w", SparseDelta((4,), np.arange(4), numbers), "ternary")
    assert parts["sign"].tolist() == [0x0A]
    assert parts["scale"].tolist() == [1.875]


@pytest.mark.parametrize(
    ("step", "numel", "index"),
    [(1, 100, "bitmap"), (9, 900, "u8"), (5_000, 500_000, "u16"), (10_000_000, 10**9, "u32")],
)
def test_auto_takes_the_fewest_bytes(tmp_path: Path, step: int, numel: int, index: str) -> None:
    """The choice is the smallest of all encodings that hold the index."""
    delta = SparseDelta((numel,), np.arange(100) * step, np.ones(100, np.float32))
    write(tmp_path / "auto", delta)
    assert read_header(tmp_path / "auto").parameters["w"].index == index
    if numel > 10**6:
        return
    sizes = {}
    for choice in INDEX_ENCODINGS[1:]:
        write(tmp_path / choice, delta, index=choice)
        sizes[choice] = read_header(tmp_path / choice).parameters["w"].nbytes
    assert sizes[index] == min(sizes.values())


def test_gaps_win_a_tie(tmp_path: Path) -> None:
    """A byte of gaps is taken before a byte of bitmap."""
    write(tmp_path / "x", sparse([8], [3], [1.0]))
    assert read_header(tmp_path / "x").parameters["w"].index == "u8"


def test_an_unknown_index_is_refused(tmp_path: Path) -> None:
    """The error lists the choices."""
    with pytest.raises(InvalidIndex, match="unsupported index 'rice'; choose auto, u8"):
        write(tmp_path / "x", sparse([3], [1], [1.0]), index="rice")


@pytest.mark.parametrize("value_dtype", ["int8", "ternary"])
def test_codes_are_for_sparse_deltas(tmp_path: Path, value_dtype: str) -> None:
    """Low-rank and dense deltas beside them are bf16."""
    parameters = {
        "a": LowRankDelta((3, 2), np.ones((1, 2), np.float32), np.ones((3, 1), np.float32), 0.5),
        "d": DenseDelta(np.ones((2, 2), np.float32)),
        "s": sparse([2, 2], [1], [1.0]),
    }
    vector = TaskVector(BaseInfo("b"), parameters)
    write_vector(vector, tmp_path / "x", value_dtype=value_dtype)
    specs = read_header(tmp_path / "x").parameters
    assert {n: (s.values, s.dtype) for n, s in specs.items()} == {
        "a": ("bf16", "BF16"),
        "d": ("bf16", "BF16"),
        "s": (value_dtype, "F32"),
    }
    for name, delta in read_vector(tmp_path / "x").parameters.items():
        assert np.array_equal(delta.to_dense(), parameters[name].to_dense())
        stored = as_stored(name, parameters[name], value_dtype)
        assert type(stored) is type(delta)
        assert np.array_equal(stored.to_dense(), delta.to_dense())


@pytest.mark.parametrize("value_dtype", ["int8", "ternary"])
@pytest.mark.parametrize(
    ("number", "error"), [(np.nan, NonFiniteValue), (np.inf, NonFiniteValue), (1e8, InvalidTensor)]
)
def test_values_without_a_code_are_refused(
    tmp_path: Path, value_dtype: str, number: float, error: type[Exception]
) -> None:
    """A value that is not finite, or a scale that no reader takes, is an error."""
    with pytest.raises(error, match="w"):
        write(tmp_path / "x", sparse([3], [0, 1], [number, number]), value_dtype=value_dtype)
    assert list(tmp_path.iterdir()) == []
