"""Hostile files with bitmaps, codes and exceptions: each way to break them has its own error."""

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskvectors.delta import Array
from taskvectors.errors import InvalidHeader, InvalidIndex, InvalidTensor, NonFiniteValue
from taskvectors.format import VectorReader, read_header, read_vector, validate_file
from tests.taskvectors.coded import EMPTY, FEW, FOLDER, NORM, ROWS, write
from tests.taskvectors.making import BF16, Forgery, sparse


def forge(tmp_path: Path, name: str) -> tuple[Path, Forgery]:
    """A golden file, to be broken."""
    path = tmp_path / "x.safetensors"
    shutil.copy(FOLDER / f"{name}.safetensors", path)
    return path, Forgery.of(path)


def rejects(path: Path, error: type[Exception], message: str) -> None:
    """Both readers reject the file in the same way."""
    for read in (read_vector, validate_file):
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert type(caught.value) is error


def rejects_exceptions(path: Path, error: type[Exception], message: str) -> None:
    """So do the validation and whoever asks for the exceptions; the deltas are fine."""
    read_vector(path)
    with pytest.raises(error, match=message) as caught:
        validate_file(path)
    assert type(caught.value) is error
    with VectorReader(path) as reader, pytest.raises(error, match=message):
        reader.exceptions(EMPTY)


def u8(*numbers: int) -> Array:
    return np.array(numbers, np.uint8)


@pytest.mark.parametrize("name", ["bitmap", "int8", "int8_bitmap", "ternary", "ternary_bitmap"])
def test_an_unchanged_forgery_is_valid(tmp_path: Path, name: str) -> None:
    """What the forger puts together rightly is read: the tests below fail for their own reason."""
    path, forgery = forge(tmp_path, name)
    expected = read_vector(path)
    found = read_vector(forgery.write(path))
    for parameter in expected:
        assert np.array_equal(found.delta(parameter), expected.delta(parameter))


# Bitmaps

BITS = f"{EMPTY}.bits"


@pytest.mark.parametrize("bit", [21, 22, 23])
def test_a_bit_beyond_the_last_element_is_rejected(tmp_path: Path, bit: int) -> None:
    """The bits that pad the last byte are zero, also where the count would be right."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.replace(BITS, u8(0, 0, 1 << bit - 16))
    forgery.replace(f"{EMPTY}.val", np.ones(1, np.float32))
    rejects(forgery.write(path), InvalidIndex, f"{BITS} has a bit set beyond its 21 elements")


@pytest.mark.parametrize(("bits", "found"), [(u8(0, 0, 0), 0), (u8(1, 2, 1), 3)])
def test_another_number_of_bits_than_values_is_rejected(
    tmp_path: Path, bits: Array, found: int
) -> None:
    """The bits are counted before anything is made of them."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.replace(BITS, bits)
    forgery.replace(f"{EMPTY}.val", np.ones(2, np.float32))
    message = f"{BITS} has {found} indices for 2 values"
    rejects(forgery.write(path), InvalidIndex, message)


@pytest.mark.parametrize(
    ("bits", "dtype", "message"),
    [
        (u8(0, 0), "U8", "has 2 bytes; 21 elements need 3"),
        (u8(0, 0, 0, 0), "U8", "has 4 bytes; 21 elements need 3"),
        (u8(), "U8", "has 0 bytes; 21 elements need 3"),
        (np.zeros(3, np.int8), "I8", "is I8; choose U8"),
        (np.zeros((1, 3), np.uint8), "U8", "it must have one dimension"),
    ],
)
def test_a_bitmap_of_another_size_is_rejected(
    tmp_path: Path, bits: Array, dtype: str, message: str
) -> None:
    """A bitmap has one bit for each element, in U8."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.replace(BITS, bits, dtype)
    rejects(forgery.write(path), InvalidTensor, f"{BITS} .*{message}")


def test_two_indices_are_rejected(tmp_path: Path) -> None:
    """Gaps and a bitmap could say two things."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.tensors[f"{FEW}.idx"] = ("U8", [5], bytes(5))
    rejects(forgery.write(path), InvalidTensor, f"has both {FEW}.idx and {FEW}.bits")


def test_no_index_is_rejected(tmp_path: Path) -> None:
    """The error names both tensors that would do."""
    path, forgery = forge(tmp_path, "bitmap")
    del forgery.tensors[BITS]
    message = rf"lacks its tensor {EMPTY}.idx \(or {BITS}\)"
    rejects(forgery.write(path), InvalidTensor, message)


def test_more_values_than_bits_are_rejected(tmp_path: Path) -> None:
    """The header alone shows that there are more values than elements."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.replace(f"{EMPTY}.val", np.ones(22, np.float32))
    rejects(forgery.write(path), InvalidIndex, f"{EMPTY} has 22 values for 21 elements")


# Scales and codes


@pytest.mark.parametrize("name", ["int8", "ternary"])
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (np.nan, NonFiniteValue, "NaN or infinite"),
        (np.inf, NonFiniteValue, "NaN or infinite"),
        (-1e-30, InvalidTensor, "outside of 0 to 65536"),
        (-np.inf, NonFiniteValue, "NaN or infinite"),
        (np.nextafter(np.float32(65536), np.float32(1e9)), InvalidTensor, "outside of 0 to 65536"),
        (3.0e38, InvalidTensor, "outside of 0 to 65536"),
    ],
)
def test_a_scale_out_of_bounds_is_rejected(
    tmp_path: Path, name: str, scale: float, error: type[Exception], message: str
) -> None:
    """A scale is from 0 to 65536, so that code times scale is finite."""
    path, forgery = forge(tmp_path, name)
    forgery.replace(f"{FEW}.scale", np.array([scale], np.float32))
    rejects(forgery.write(path), error, message)


def test_one_wrong_scale_of_a_row_is_rejected(tmp_path: Path) -> None:
    """All of them are looked at."""
    path, forgery = forge(tmp_path, "int8")
    forgery.replace(f"{ROWS}.scale", np.array([1, np.nan], np.float32))
    rejects(forgery.write(path), NonFiniteValue, f"{ROWS}.scale holds")


@pytest.mark.parametrize(
    ("name", "parameter", "scale", "dtype", "message"),
    [
        ("int8", ROWS, np.ones(3, np.float32), "F32", "has 3 scales; choose 1 or 2"),
        ("int8", ROWS, np.ones(0, np.float32), "F32", "has 0 scales; choose 1 or 2"),
        ("int8", ROWS, np.ones((2, 1), np.float32), "F32", "it must have one dimension"),
        ("int8", ROWS, np.ones(2, np.float16), "F16", "is F16; choose F32"),
        ("ternary", ROWS, np.ones(2, np.float32), "F32", "has 2 scales; choose 1"),
    ],
)
def test_another_number_of_scales_is_rejected(
    tmp_path: Path, name: str, parameter: str, scale: Array, dtype: str, message: str
) -> None:
    """One scale, or one for each row of an int8 parameter; in F32."""
    path, forgery = forge(tmp_path, name)
    forgery.replace(f"{parameter}.scale", scale, dtype)
    rejects(forgery.write(path), InvalidTensor, message)


@pytest.mark.parametrize("name", ["int8", "ternary"])
def test_codes_without_a_scale_are_rejected(tmp_path: Path, name: str) -> None:
    """There is no scale by default."""
    path, forgery = forge(tmp_path, name)
    del forgery.tensors[f"{FEW}.scale"]
    rejects(forgery.write(path), InvalidTensor, f"lacks its tensor {FEW}.scale")


def test_a_scale_for_floats_is_rejected(tmp_path: Path) -> None:
    """It would be ignored."""
    path, forgery = forge(tmp_path, "bitmap")
    forgery.tensors[f"{FEW}.scale"] = ("F32", [1], bytes(4))
    rejects(forgery.write(path), InvalidTensor, f"{FEW} has a scale for BF16 values")


def test_a_code_of_minus_128_is_rejected(tmp_path: Path) -> None:
    """Codes are symmetric, so that a negated vector has codes, too."""
    path, forgery = forge(tmp_path, "int8")
    forgery.replace(f"{FEW}.val", np.array([1, -127, 127, -128, 0], np.int8))
    rejects(forgery.write(path), InvalidTensor, f"{FEW}.val holds the code -128")


@pytest.mark.parametrize("tensor", [f"{NORM}.delta", f"{FEW}.val"])
def test_codes_in_other_dtypes_are_rejected(tmp_path: Path, tensor: str) -> None:
    """Dense deltas have no codes, and codes are signed."""
    path, forgery = forge(tmp_path, "int8")
    shape = forgery.tensors[tensor][1]
    dtype = "I8" if tensor.endswith("delta") else "U8"
    forgery.replace(tensor, np.zeros(shape, np.uint8), dtype)
    rejects(forgery.write(path), InvalidTensor, f"{tensor} is {dtype}; choose")


# Signs

SIGN = f"{FEW}.sign"


@pytest.mark.parametrize("bit", [4, 7])
def test_a_sign_beyond_the_last_value_is_rejected(tmp_path: Path, bit: int) -> None:
    """The bits that pad the last byte are zero."""
    path, forgery = forge(tmp_path, "ternary")
    forgery.replace(SIGN, u8(1 << bit))
    rejects(forgery.write(path), InvalidTensor, f"{SIGN} has a bit set beyond its 4 values")


@pytest.mark.parametrize(
    ("sign", "dtype", "message"),
    [
        (u8(), "U8", "has 0 bytes; 4 signs need 1"),
        (u8(0, 0), "U8", "has 2 bytes; 4 signs need 1"),
        (np.zeros(1, np.int8), "I8", "is I8; choose U8"),
        (np.zeros((1, 1), np.uint8), "U8", "it must have one dimension"),
    ],
)
def test_signs_of_another_size_are_rejected(
    tmp_path: Path, sign: Array, dtype: str, message: str
) -> None:
    """There is one bit for each value, in U8."""
    path, forgery = forge(tmp_path, "ternary")
    forgery.replace(SIGN, sign, dtype)
    rejects(forgery.write(path), InvalidTensor, f"{SIGN} .*{message}")


@pytest.mark.parametrize("nnz", [-1, True, 4.0, "4", None, [4]])
def test_a_count_that_is_none_is_rejected(tmp_path: Path, nnz: object) -> None:
    """The metadata count the signs, for bytes cannot."""
    path, forgery = forge(tmp_path, "ternary")
    forgery.metadata["parameters"][FEW]["nnz"] = nnz
    rejects(forgery.write(path), InvalidHeader, f"the nnz of {FEW} must be a count")


def test_a_missing_count_is_rejected(tmp_path: Path) -> None:
    """Nothing is guessed."""
    path, forgery = forge(tmp_path, "ternary")
    del forgery.metadata["parameters"][FEW]["nnz"]
    rejects(forgery.write(path), InvalidHeader, "must have exactly kind, nnz, shape")


def test_a_count_beside_values_is_rejected(tmp_path: Path) -> None:
    """The values count themselves."""
    path, forgery = forge(tmp_path, "int8")
    forgery.metadata["parameters"][FEW]["nnz"] = 5
    rejects(forgery.write(path), InvalidHeader, "sparse .* must have exactly kind, shape")


@pytest.mark.parametrize(("nnz", "message"), [(3, "has 4 gaps for 3"), (5, "has 4 gaps for 5")])
def test_another_count_of_signs_than_gaps_is_rejected(
    tmp_path: Path, nnz: int, message: str
) -> None:
    """Within the same byte of signs, the index tells."""
    path, forgery = forge(tmp_path, "ternary")
    forgery.metadata["parameters"][FEW]["nnz"] = nnz
    forgery.replace(SIGN, u8(0))
    rejects(forgery.write(path), InvalidIndex, f"{FEW}.idx {message} values")


def test_another_count_of_signs_than_bits_is_rejected(tmp_path: Path) -> None:
    """The same with a bitmap, whose bits are counted."""
    path, forgery = forge(tmp_path, "ternary_bitmap")
    forgery.metadata["parameters"][FEW]["nnz"] = 5
    rejects(forgery.write(path), InvalidIndex, f"{FEW}.bits has 4 indices for 5 values")


def test_signs_beside_values_are_rejected(tmp_path: Path) -> None:
    """Values are stored in one way."""
    path, forgery = forge(tmp_path, "ternary")
    forgery.tensors[f"{FEW}.val"] = ("F16", [4], bytes(8))
    rejects(forgery.write(path), InvalidTensor, f"has both {FEW}.val and {SIGN}")


def test_a_huge_count_is_rejected(tmp_path: Path) -> None:
    """It needs as many signs, so nothing is allocated for it."""
    path, forgery = forge(tmp_path, "ternary_bitmap")
    forgery.metadata["parameters"][FEW]["nnz"] = 1 << 60
    rejects(forgery.write(path), InvalidTensor, "signs need 144115188075855872")


# Exceptions

EXC, EXC_IDX = f"{EMPTY}.exc", f"{EMPTY}.exc_idx"


@pytest.mark.parametrize(
    ("index", "dtype", "message"),
    [
        (u8(0, 4, 15), "U8", f"{EXC_IDX} has index 21, outside of 21 elements"),
        (np.full(3, 65535, "<u2"), "U16", "outside of 21 elements"),
        (np.full(3, 0xFFFFFFFF, "<u4"), "U32", "outside of 21 elements"),
    ],
)
def test_an_exception_out_of_bounds_is_rejected(
    tmp_path: Path, index: Array, dtype: str, message: str
) -> None:
    """Its index is held to what every index is held to."""
    path, forgery = forge(tmp_path, "exceptions")
    forgery.replace(EXC_IDX, index, dtype)
    rejects_exceptions(forgery.write(path), InvalidIndex, message)


def test_an_exception_that_ends_within_a_gap_is_rejected(tmp_path: Path) -> None:
    """A run of escapes in a parameter that is large enough for it."""
    path, forgery = forge(tmp_path, "exceptions")
    forgery.metadata["parameters"][EMPTY]["shape"] = [300, 7]
    forgery.replace(EXC_IDX, u8(0, 4, 14, 255))
    rejects_exceptions(forgery.write(path), InvalidIndex, f"{EXC_IDX} ends within a gap")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("dtype", "kind"), [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", BF16)]
)
def test_an_exception_that_is_not_finite_is_rejected(
    tmp_path: Path, number: float, dtype: str, kind: Any
) -> None:
    """In each dtype that a checkpoint may have."""
    path, forgery = forge(tmp_path, "exceptions")
    forgery.replace(EXC, np.array([1, 2, number]).astype(kind), dtype)
    rejects_exceptions(forgery.write(path), NonFiniteValue, f"{EXC} holds a value that is NaN")


@pytest.mark.parametrize(
    ("tensor", "array", "dtype", "error", "message"),
    [
        (
            EXC,
            np.zeros(3, np.int8),
            "I8",
            InvalidTensor,
            f"{EXC} is I8; choose BF16, F16, F32, F64",
        ),
        (EXC, np.zeros(3, np.int64), "I64", InvalidTensor, f"{EXC} is I64; choose"),
        (EXC, np.zeros((3, 1)), "F64", InvalidTensor, "it must have one dimension"),
        (EXC, np.zeros(2), "F64", InvalidIndex, f"{EXC_IDX} has 3 gaps for 2 values"),
        (EXC, np.zeros(22), "F64", InvalidIndex, "has 22 exceptions for 21 elements"),
        (EXC_IDX, np.zeros(3, np.int8), "I8", InvalidTensor, f"{EXC_IDX} is I8; choose U16"),
        (EXC_IDX, np.zeros(4, np.uint8), "U8", InvalidIndex, "has 4 gaps for 3 values"),
        (EXC_IDX, np.zeros((3, 1), np.uint8), "U8", InvalidTensor, "one dimension"),
    ],
)
def test_malformed_exceptions_are_rejected(
    tmp_path: Path, tensor: str, array: Array, dtype: str, error: type[Exception], message: str
) -> None:
    """The header alone shows dtypes, shapes and counts."""
    path, forgery = forge(tmp_path, "exceptions")
    forgery.replace(tensor, array, dtype)
    rejects(forgery.write(path), error, message)


@pytest.mark.parametrize("tensor", [EXC, EXC_IDX])
def test_half_an_exception_is_rejected(tmp_path: Path, tensor: str) -> None:
    """Index and values come together."""
    path, forgery = forge(tmp_path, "exceptions")
    del forgery.tensors[tensor]
    rejects(forgery.write(path), InvalidTensor, f"lacks its tensor {tensor}")


def test_exceptions_of_a_low_rank_parameter_are_rejected(tmp_path: Path) -> None:
    """Only what is stored entry by entry has exceptions."""
    path, forgery = forge(tmp_path, "exceptions")
    forgery.metadata["parameters"][NORM] = {"kind": "low_rank", "shape": [1, 7], "scale": 1}
    del forgery.tensors[f"{NORM}.delta"]
    forgery.tensors[f"{NORM}.lora_A"] = ("F32", [1, 7], bytes(28))
    forgery.tensors[f"{NORM}.lora_B"] = ("F32", [1, 1], bytes(4))
    rejects(forgery.write(path), InvalidTensor, f"{NORM}.exc.* belongs to no declared parameter")


# Memory


def peak_of(path: Path) -> int:
    """The most bytes that validation holds at once."""
    tracemalloc.start()
    try:
        validate_file(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_validation_does_not_expand_codes(tmp_path: Path) -> None:
    """A set bit and its sign are 12 bytes in memory, and a quarter of a byte to the validation."""
    numel = 1 << 25
    path = tmp_path / "x"
    write(path, sparse([1], [0], [1.0]), value_dtype="ternary", index="bitmap")
    forgery = Forgery.of(path)
    forgery.metadata["parameters"]["w"] = {"kind": "sparse", "shape": [numel], "nnz": numel}
    forgery.replace("w.bits", np.full(numel // 8, 255, np.uint8))
    forgery.replace("w.sign", np.full(numel // 8, 255, np.uint8))
    forgery.write(path)
    assert read_header(path).parameters["w"].nnz == numel
    assert peak_of(path) < 4 * path.stat().st_size


def test_a_wrong_count_costs_no_memory(tmp_path: Path) -> None:
    """The bits are counted before there is room made for their indices."""
    numel = 1 << 25
    path = tmp_path / "x"
    write(path, sparse([1], [0], [1.0]), value_dtype="ternary", index="bitmap")
    forgery = Forgery.of(path)
    forgery.metadata["parameters"]["w"] = {"kind": "sparse", "shape": [numel], "nnz": numel}
    forgery.replace("w.bits", np.full(numel // 8, 254, np.uint8))
    forgery.replace("w.sign", np.full(numel // 8, 255, np.uint8))
    size = forgery.write(path).stat().st_size
    tracemalloc.start()
    try:
        rejects(path, InvalidIndex, "w.bits has 29360128 indices for 33554432 values")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * size
