"""Hostile files: each way to break the format is rejected with its own error."""

import contextlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvectors.delta import Array
from taskvectors.errors import (
    BaseMismatch,
    ChecksumMismatch,
    HeaderTooLarge,
    InvalidFile,
    InvalidHeader,
    InvalidIndex,
    InvalidTensor,
    NonFiniteValue,
    TruncatedFile,
    UnsupportedVersion,
)
from taskvectors.format import (
    check_against_base,
    read_header,
    read_vector,
    validate_file,
    write_vector,
)
from tests.taskvectors.making import (
    BF16,
    DENSE,
    FINGERPRINT,
    LOW_RANK,
    SHAPES,
    SPARSE,
    Forgery,
    example_vector,
    join,
    split,
)

IDX, VAL = f"{SPARSE}.idx", f"{SPARSE}.val"
GOLDEN = Path(__file__).parent / "golden" / "example.safetensors"
A, B = f"{LOW_RANK}.lora_A", f"{LOW_RANK}.lora_B"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid file, for the tests to break."""
    write_vector(example_vector(), tmp_path / "vector.safetensors", index="u8")
    return tmp_path / "vector.safetensors"


@pytest.fixture
def forgery(path: Path) -> Forgery:
    return Forgery.of(path)


def rejects(path: Path, error: type[Exception], message: str) -> None:
    """Both readers reject the file in the same way."""
    for read in (read_vector, validate_file):
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert type(caught.value) is error


def forge_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Rewrite the header of a valid file with right lengths and untouched tensors."""
    head, data = split(path.read_bytes())
    fields = json.loads(head)
    change(fields)
    path.write_bytes(join(json.dumps(fields).encode(), data))
    return path


def u8(*numbers: int) -> Array:
    return np.array(numbers, np.uint8)


# Header and layout


def test_an_unchanged_forgery_is_valid(path: Path, forgery: Forgery) -> None:
    """What the forger puts together rightly is read: the tests below fail for their own reason."""
    vector = read_vector(forgery.write(path))
    assert vector.nnz == example_vector().nnz


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_truncated_length_is_rejected(path: Path, size: int) -> None:
    """A file without room for the header's length is truncated."""
    path.write_bytes(path.read_bytes()[:size])
    rejects(path, TruncatedFile, f"the file has {size} bytes")


def test_a_truncated_header_is_rejected(path: Path) -> None:
    """A header that would end after the file's end is not read."""
    path.write_bytes(path.read_bytes()[:100])
    rejects(path, TruncatedFile, "the header claims .* the file has 100")


@pytest.mark.parametrize("size", [(8 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_huge_header_is_rejected(path: Path, size: int) -> None:
    """A header length above the cap is refused before anything is read."""
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    rejects(path, HeaderTooLarge, f"the header claims {size} bytes")


def test_truncated_tensors_are_rejected(path: Path) -> None:
    """One byte less than the header says is an error."""
    path.write_bytes(path.read_bytes()[:-1])
    rejects(path, TruncatedFile, "the tensors end at byte")


def test_trailing_bytes_are_rejected(path: Path) -> None:
    """One byte more than the header says is an error, too."""
    path.write_bytes(path.read_bytes() + b"\0")
    rejects(path, TruncatedFile, "the tensors end at byte")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b" {}", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1e999}', "number out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        (b'{"a": ' + b"[" * 17, "nests 18 levels deep; at most 16"),
        (b'{"a": ' + b"[" * 1_000_000, "nests 1000001 levels deep"),
        (b'{"a[\\"[[[[[[[[[[[[[[[[[[[[": 1}', "must have exactly dtype"),
        (b'{"a": {"dtype": "F32"}}', "a must have exactly dtype, shape and data_offsets"),
        (b'{"__metadata__": []}', "__metadata__ must be an object of strings"),
        (b'{"__metadata__": {"format": 1}}', "__metadata__ must be an object of strings"),
        (b'{"": {}}', "a tensor is called ''"),
        (b'{"a\\u001b[31m": {}}', "a tensor is called"),
        (b"{}", "not a task vector file: format is 'None'"),
    ],
)
def test_a_malformed_header_is_rejected(path: Path, header: bytes, message: str) -> None:
    """A header must be plain JSON: bounded, unambiguous, finite, an object of known fields."""
    path.write_bytes(join(header, b""))
    rejects(path, InvalidHeader, message)


def test_an_unterminated_string_full_of_quotes_is_rejected_fast(path: Path) -> None:
    """Measuring the nesting takes linear time, whatever the header holds."""
    path.write_bytes(join(b'{"' + b'\\"' * (3 << 20), b""))
    rejects(path, InvalidHeader, "not valid JSON")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1 << 40, 1 << 40], "more than 281474976710656 elements"),
        ([1 << 49], "at most 8 integers"),
        ([-1, 5], "at most 8 integers"),
        ([2.0, 5], "at most 8 integers"),
        ([True, 10], "at most 8 integers"),
        ([1] * 9, "at most 8 integers"),
        ("10", "at most 8 integers"),
        ([3, 5], "is F32 .3, 5. but has 40 bytes"),
    ],
)
def test_a_wrong_shape_is_rejected(path: Path, shape: object, message: str) -> None:
    """Dimensions are bounded integers whose product is the size; nothing wraps."""
    forge_header(path, lambda fields: fields[A].update(shape=shape))
    rejects(path, InvalidTensor, message)


@pytest.mark.parametrize("offsets", [[0], [0, -40], [0.0, 40], "ab", None, [0, 1 << 60]])
def test_wrong_offsets_are_rejected(path: Path, offsets: object) -> None:
    """Offsets are two integers in bounds."""
    forge_header(path, lambda fields: fields[A].update(data_offsets=offsets))
    rejects(path, InvalidTensor, "two non-negative integers")


def test_a_hole_between_tensors_is_rejected(path: Path) -> None:
    """Every byte of the file belongs to a tensor."""

    def shift(fields: dict[str, Any]) -> None:
        for name in set(fields) - {"__metadata__", A}:
            fields[name]["data_offsets"] = [end + 8 for end in fields[name]["data_offsets"]]

    forge_header(path, shift)
    rejects(path, InvalidTensor, "a hole before")


def test_overlapping_tensors_are_rejected(path: Path) -> None:
    """No byte belongs to two tensors."""
    forge_header(path, lambda fields: fields[B].update(data_offsets=[8, 40]))
    rejects(path, InvalidTensor, "an overlap at")


@pytest.mark.parametrize("dtype", ["F128", "f32", 32, None, ["F32"]])
def test_an_unknown_dtype_is_rejected(path: Path, dtype: object) -> None:
    """A dtype must be one of the format's words."""
    forge_header(path, lambda fields: fields[A].update(dtype=dtype))
    rejects(path, InvalidTensor, "unsupported dtype")


@pytest.mark.parametrize(("key", "value"), [("version", "2"), ("kind", "replacement")])
def test_another_version_or_kind_is_rejected(
    path: Path, forgery: Forgery, key: str, value: str
) -> None:
    """What a later version means is not guessed."""
    forgery.metadata[key] = value
    rejects(forgery.write(path), UnsupportedVersion, f"unsupported {key} '{value}'; choose")


@pytest.mark.parametrize("key", ["version", "kind", "base", "parameters"])
def test_missing_metadata_is_rejected(path: Path, forgery: Forgery, key: str) -> None:
    """Required fields have no defaults."""
    del forgery.metadata[key]
    rejects(forgery.write(path), InvalidHeader, f"the metadata lacks {key}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("surprise", "1", "unknown metadata field 'surprise'"),
        ("tags", '"a"', "tags must be a list of strings"),
        ("tags", "[1]", "tags must be a list of strings"),
        ("provenance", "[]", "provenance must be an object"),
        ("extraction", "{", "extraction is not valid JSON"),
        ("provenance", '{"x": "' + "y" * 65536 + '"}', "of them in 'provenance'; at most 65536"),
        ("x" * 70000, "", "of them in 'xxx"),
        ("base", json.dumps({"name": "b" * 513, "fingerprint": None}), "at most 512 are allowed"),
        ("base", "[]", "base must be a JSON object"),
        ("base", '{"name": "x"}', "base must have exactly a name and a fingerprint"),
        ("base", '{"name": "x", "fingerprint": "AB"}', "must be 64 hex digits or null"),
        ("parameters", '{"a": 1, "a": 2}', "parameters is not valid JSON: duplicate key 'a'"),
        ("parameters", '{"a": 1}', "unsupported kind 'None' of a"),
        ("parameters", '{"../a": {}}', "invalid parameter name '../a'"),
        ("parameters", '{"": {}}', "invalid parameter name ''"),
    ],
)
def test_malformed_metadata_is_rejected(
    path: Path, forgery: Forgery, key: str, value: str, message: str
) -> None:
    """Each field is checked for what it must be."""
    forgery.metadata[key] = value
    rejects(forgery.write(path), InvalidHeader, message)


# Parameters and their tensors


def test_a_tensor_of_no_parameter_is_rejected(path: Path, forgery: Forgery) -> None:
    """Bytes that nothing declares are not carried along."""
    forgery.tensors["stowaway"] = ("U8", [3], b"abc")
    rejects(forgery.write(path), InvalidTensor, "stowaway belongs to no declared parameter")


@pytest.mark.parametrize("tensor", [IDX, VAL, A, B, f"{DENSE}.delta"])
def test_a_missing_tensor_is_rejected(path: Path, forgery: Forgery, tensor: str) -> None:
    """A declared parameter has all its tensors."""
    del forgery.tensors[tensor]
    rejects(forgery.write(path), InvalidTensor, f"lacks its tensor {tensor}")


@pytest.mark.parametrize("kind", ["ternary", None, ["sparse"], 1])
def test_an_unknown_kind_of_parameter_is_rejected(
    path: Path, forgery: Forgery, kind: object
) -> None:
    """Only the three kinds exist."""
    forgery.metadata["parameters"][SPARSE]["kind"] = kind
    rejects(forgery.write(path), InvalidHeader, "unsupported kind")


def test_an_unknown_field_of_a_parameter_is_rejected(path: Path, forgery: Forgery) -> None:
    """A scale on a sparse parameter would be ignored, so it is refused."""
    forgery.metadata["parameters"][SPARSE]["scale"] = 2.0
    rejects(forgery.write(path), InvalidHeader, "must have exactly kind, shape")


@pytest.mark.parametrize(
    ("name", "array", "dtype"),
    [
        (VAL, np.ones(4, np.float64), "F64"),
        (IDX, np.zeros(4, np.int32), "I32"),
        (IDX, np.zeros((4, 1), np.uint8), "U8"),
        (VAL, np.ones((2, 2), np.float32), "F32"),
        (f"{DENSE}.delta", np.ones(7, np.int8), "I8"),
        (f"{DENSE}.delta", np.ones(6, np.float32), "F32"),
        (A, np.ones((2, 4), np.float32), "F32"),
        (B, np.ones((5, 2), np.float32), "F32"),
        (B, np.ones((4, 3), np.float32), "F32"),
        (B, np.ones((4, 2), np.float16), "F16"),
        (A, np.ones(10, np.float32), "F32"),
    ],
)
def test_a_tensor_that_does_not_fit_its_parameter_is_rejected(
    path: Path, forgery: Forgery, name: str, array: Array, dtype: str
) -> None:
    """Dtypes and shapes of the tensors follow from the parameter."""
    forgery.replace(name, array, dtype)
    rejects(forgery.write(path), InvalidTensor, ".")


@pytest.mark.parametrize("rank", [0, 4097])
def test_a_rank_out_of_bounds_is_rejected(path: Path, forgery: Forgery, rank: int) -> None:
    """A low-rank delta has 1 to 4096 ranks."""
    forgery.replace(A, np.zeros((rank, 5), np.float32))
    forgery.replace(B, np.zeros((4, rank), np.float32))
    rejects(forgery.write(path), InvalidTensor, f"has rank {rank}; it must be from 1 to 4096")


@pytest.mark.parametrize("scale", ["2", True, None, 65537.0, -1e30])
def test_a_wrong_scale_is_rejected(path: Path, forgery: Forgery, scale: object) -> None:
    """A scale is a bounded number."""
    forgery.metadata["parameters"][LOW_RANK]["scale"] = scale
    rejects(forgery.write(path), InvalidHeader, "the scale of .* must be within ±65536")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_rejected(path: Path, forgery: Forgery, scale: float) -> None:
    """NaN and infinities are no JSON."""
    forgery.metadata["parameters"][LOW_RANK]["scale"] = scale
    rejects(forgery.write(path), InvalidHeader, "is not a JSON number")


# Indices


@pytest.mark.parametrize(
    ("name", "array", "dtype", "message"),
    [
        ("beyond the last element", u8(0, 2, 255, 0, 40), "U8", "index 300, outside of 300"),
        ("far beyond", np.array([0, 2, 255, 60_000], "<u2"), "U16", "outside of 300 elements"),
        ("giant gaps", np.full(4, 0xFFFFFFFF, "<u4"), "U32", "outside of 300 elements"),
        ("too few gaps", u8(0, 2, 7), "U8", "has 3 gaps for 4 values"),
        ("too many gaps", u8(0, 2, 7, 7, 7), "U8", "has 5 indices for 4 values"),
        ("too many u16 gaps", np.zeros(5, "<u2"), "U16", "has 5 gaps for 4 values"),
        ("an escape at the end", u8(0, 2, 7, 7, 255), "U8", "ends within a gap"),
        ("fewer ends than values", u8(0, 255, 7, 7), "U8", "has 3 indices for 4 values"),
        ("more escapes than elements", u8(*[255] * 50, 0, 0, 0, 0), "U8", "has 54 gaps"),
    ],
)
def test_a_wrong_index_is_rejected(
    path: Path, forgery: Forgery, name: str, array: Array, dtype: str, message: str
) -> None:
    """Every index is in bounds, and there is one for each value."""
    forgery.replace(IDX, array, dtype)
    rejects(forgery.write(path), InvalidIndex, message)


@pytest.mark.parametrize("width", [2, 4])
def test_an_unsorted_index_is_rejected(path: Path, forgery: Forgery, width: int) -> None:
    """A step backwards can only be said by a gap that wraps around; none does."""
    backwards = (np.array([10, 20, 5, 30]) - np.array([0, 11, 21, 6])).astype(f"<u{width}")
    forgery.replace(IDX, backwards, f"U{8 * width}")
    rejects(forgery.write(path), InvalidIndex, "outside of 300 elements")


def test_gaps_that_add_up_past_64_bits_are_rejected(path: Path, forgery: Forgery) -> None:
    """Arithmetic stops at the first chunk that leaves the parameter, so it cannot wrap."""
    count = 3 << 20
    forgery.metadata["parameters"][SPARSE]["shape"] = [1 << 24, 1 << 24]
    forgery.replace(IDX, np.full(count, 0xFFFFFFFF, "<u4"), "U32")
    forgery.replace(VAL, np.ones(count, np.float16), "F16")
    rejects(forgery.write(path), InvalidIndex, "outside of 281474976710656 elements")


def test_more_values_than_elements_are_rejected(path: Path, forgery: Forgery) -> None:
    """Distinct indices are at most as many as elements."""
    forgery.replace(IDX, np.zeros(301, np.uint8))
    forgery.replace(VAL, np.ones(301, np.float16), "F16")
    rejects(forgery.write(path), InvalidIndex, "301 values for 300 elements")


@pytest.mark.parametrize("byte", [255, 254])
def test_zip_bomb_gaps_cost_no_memory(path: Path, forgery: Forgery, byte: int) -> None:
    """Long runs of escapes or of gaps are refused within a small multiple of the file's size."""
    raw = np.full(4 << 20, byte, np.uint8)
    raw[-1] = 0
    forgery.metadata["parameters"][SPARSE]["shape"] = [1 << 20, 100]
    forgery.replace(IDX, raw)
    forgery.replace(VAL, np.ones(4 if byte == 255 else len(raw), np.float16), "F16")
    size = forgery.write(path).stat().st_size
    tracemalloc.start()
    try:
        rejects(path, InvalidIndex, "gaps for|outside of")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size


def test_a_huge_claimed_shape_costs_no_memory(path: Path, forgery: Forgery) -> None:
    """A valid little file over 2^48 elements is read without room for the elements."""
    forgery.metadata["parameters"][SPARSE]["shape"] = [1 << 24, 1 << 24]
    assert read_vector(forgery.write(path)).nnz == example_vector().nnz


# Values and checksums


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [("F32", np.float32), ("F16", np.float16), ("BF16", BF16)])
@pytest.mark.parametrize("tensor", [VAL, f"{DENSE}.delta"])
def test_a_value_that_is_not_finite_is_rejected(
    path: Path, forgery: Forgery, value: float, dtype: tuple[str, Any], tensor: str
) -> None:
    """One NaN would spoil every answer it touches."""
    array = np.ones(forgery.tensors[tensor][1]).astype(dtype[1])
    array[-1] = value
    forgery.replace(tensor, array, dtype[0])
    rejects(forgery.write(path), NonFiniteValue, "NaN or infinite")


@pytest.mark.parametrize("tensor", [A, B])
def test_a_factor_that_is_not_finite_is_rejected(path: Path, forgery: Forgery, tensor: str) -> None:
    """Both factors are looked at."""
    forgery.replace(tensor, np.full(forgery.tensors[tensor][1], np.nan, np.float32))
    rejects(forgery.write(path), NonFiniteValue, "NaN or infinite")


@pytest.mark.parametrize("position", [-1, -40, -90])
def test_a_flipped_bit_is_rejected(path: Path, position: int) -> None:
    """Each tensor has its sha256."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    rejects(path, ChecksumMismatch, "has sha256")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sums: sums.pop(VAL), f"sha256 lacks the tensor {VAL}"),
        (lambda sums: sums.update(other="0" * 64), "sha256 names an unknown tensor 'other'"),
        (lambda sums: sums.update({VAL: "0"}), f"sha256 of {VAL} must be 64 hex digits"),
        (lambda sums: sums.update({VAL: None}), f"sha256 of {VAL} must be 64 hex digits"),
    ],
)
def test_malformed_checksums_are_rejected(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A tensor without a checksum is not taken on trust."""

    def edit(fields: dict[str, Any]) -> None:
        sums = json.loads(fields["__metadata__"]["sha256"])
        change(sums)
        fields["__metadata__"]["sha256"] = json.dumps(sums)

    rejects(forge_header(path, edit), InvalidHeader, message)


def test_another_digest_is_rejected(path: Path) -> None:
    """Whoever asks for a digest gets exactly those bytes."""
    with pytest.raises(ChecksumMismatch, match=f"not {'0' * 64}"):
        read_vector(path, expected_digest="0" * 64)


# The base


def test_a_vector_of_another_base_is_rejected(path: Path) -> None:
    """The fingerprint decides, whatever the shapes."""
    with pytest.raises(BaseMismatch, match=f"not to the one with fingerprint {'0' * 64}"):
        validate_file(path, base_shapes=SHAPES, base_fingerprint="0" * 64)


def test_a_parameter_that_the_base_lacks_is_rejected(path: Path) -> None:
    """The error names the parameter and its shape."""
    shapes = {name: shape for name, shape in SHAPES.items() if name != DENSE}
    with pytest.raises(BaseMismatch, match=rf"no parameter {DENSE} \(of shape \[7\]\)"):
        validate_file(path, base_shapes=shapes)


def test_a_parameter_of_another_shape_is_rejected(path: Path) -> None:
    """The error names both shapes."""
    with pytest.raises(BaseMismatch, match=r"\[4, 5\] in the task vector and \[5, 4\] in the base"):
        check_against_base(read_header(path), SHAPES | {LOW_RANK: (5, 4)}, None)


def test_the_right_base_is_accepted(path: Path, forgery: Forgery) -> None:
    """A matching base passes, and so does an unverified vector of matching shapes."""
    validate_file(path, base_shapes=SHAPES, base_fingerprint=FINGERPRINT)
    forgery.metadata["base"]["fingerprint"] = None
    validate_file(forgery.write(path), base_shapes=SHAPES, base_fingerprint=FINGERPRINT)


# Whatever else


def test_what_is_no_regular_file_is_rejected(tmp_path: Path) -> None:
    """A folder or a pipe is not opened for reading, and nothing waits for it."""
    os.mkfifo(tmp_path / "pipe")
    rejects(tmp_path / "pipe", InvalidFile, "pipe is not a regular file")
    rejects(tmp_path, InvalidFile, "is not a regular file")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_random_damage_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: bool
) -> None:
    """Any bytes are either a valid file or an InvalidFile."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(GOLDEN.read_bytes())
    for position, byte in edits:
        content[position % len(content)] = byte
    path.write_bytes(content[: edits[0][0]] if cut else content)
    with contextlib.suppress(InvalidFile):
        read_vector(path)
