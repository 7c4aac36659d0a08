"""Task vector files: what is written is read, by this library and by others."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from taskvectors.delta import Array, Delta
from taskvectors.errors import (
    HeaderTooLarge,
    InvalidHeader,
    InvalidIndex,
    InvalidTensor,
    NonFiniteValue,
)
from taskvectors.format import (
    INDEX_ENCODINGS,
    VectorWriter,
    file_digest,
    gaps,
    read_header,
    read_vector,
    validate_file,
    write_vector,
)
from taskvectors.format.index import decode_index
from taskvectors.format.metadata import MAX_METADATA
from taskvectors.vector import BaseInfo, DenseDelta, LowRankDelta, SparseDelta, TaskVector
from tests.taskvectors.making import (
    BF16,
    DENSE,
    FINGERPRINT,
    LOW_RANK,
    SHAPES,
    SPARSE,
    assert_same,
    example_vector,
    sparse,
    split,
)

GOLDEN = Path(__file__).parent / "golden" / "example.safetensors"
GOLDEN_DIGEST = "d51e237c106c3bb9d3a1ebfb8b3fcafa1da0a3be95c6b9211ea057624f02dc2e"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BF16}
FEW = settings(max_examples=60, deadline=None)


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    """Any kind, shape, density and value dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(list(DTYPES.values())))

    def values(*shape: int) -> Array:
        return rng.normal(size=shape).astype(dtype)

    kind = draw(st.sampled_from(["sparse", "low_rank", "dense"]))
    if kind == "low_rank":
        rows, columns, rank = (draw(st.integers(1, 9)) for _ in range(3))
        scale = draw(st.floats(-8, 8))
        return LowRankDelta((rows, columns), values(rank, columns), values(rows, rank), scale)
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
    if kind == "dense":
        return DenseDelta(values(*shape))
    numel = int(np.prod(shape))
    count = round(numel * draw(st.floats(0, 1)))
    index = np.sort(rng.choice(numel, count, replace=False)) if numel else np.empty(0)
    return SparseDelta(shape, index.astype(np.int64), values(count))


VECTORS = st.builds(
    TaskVector,
    st.builds(BaseInfo, st.text(max_size=20), st.sampled_from([None, FINGERPRINT])),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True), deltas(), max_size=4
    ).map(lambda parameters: dict(sorted(parameters.items()))),
    st.fixed_dictionaries({}, optional={"license": st.text(), "tags": st.lists(st.text())}),
)


@FEW
@given(VECTORS, st.sampled_from(INDEX_ENCODINGS))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, vector: TaskVector, index: str
) -> None:
    """Any vector survives the file in every bit, with any encoding of the index."""
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    digest = write_vector(vector, path, index=index)
    assert_same(read_vector(path, expected_digest=digest), vector)
    assert validate_file(path).base == vector.base


@FEW
@given(VECTORS)
def test_safetensors_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, vector: TaskVector
) -> None:
    """The safetensors library finds the same values, and gaps that decode to the same indices."""
    path = tmp_path_factory.getbasetemp() / "other_reader.safetensors"
    write_vector(vector, path)
    tensors = load_file(path)
    for name, delta in vector.parameters.items():
        if isinstance(delta, SparseDelta):
            assert np.array_equal(tensors[f"{name}.val"], delta.values)
            assert stored_index(tensors, name) == delta.index.tolist()
        elif isinstance(delta, LowRankDelta):
            assert np.array_equal(tensors[f"{name}.lora_A"], delta.a)
            assert np.array_equal(tensors[f"{name}.lora_B"], delta.b)
        else:
            assert np.array_equal(tensors[f"{name}.delta"], delta.values)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "task-vector"


def stored_index(tensors: dict[str, Array], name: str) -> list[int]:
    """The definition of both codings of an index."""
    if f"{name}.idx" in tensors:
        return plain_decode(tensors[f"{name}.idx"])
    numbers = tensors[f"{name}.bits"].tolist()
    return [8 * i + k for i, byte in enumerate(numbers) for k in range(8) if byte >> k & 1]


def plain_decode(raw: Array) -> list[int]:
    """The definition of the gap coding, one byte at a time."""
    index, gap, position = [], 0, -1
    for number in raw.tolist():
        gap += number
        if raw.dtype == np.uint8 and number == 255:
            continue
        position += gap + 1
        index.append(position)
        gap = 0
    return index


@pytest.mark.parametrize("width", ["u8", "u16", "u32"])
def test_gaps_at_the_limits_of_a_width(width: str) -> None:
    """Gaps of 0, 254 to 256, 509 to 511, 65534 and 65535 survive each width."""
    steps = [0, 254, 255, 256, 509, 510, 511, 65534, 65535, 0]
    index = np.cumsum(np.array(steps, np.int64) + 1) - 1
    raw = gaps.encode_gaps(index, width)
    assert plain_decode(raw) == index.tolist()
    numel = int(index[-1]) + 1
    assert np.array_equal(decode_index("idx", raw, len(index), numel, "x"), index)


def test_gaps_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding in chunks gives the same indices, also where a chunk ends within a gap."""
    monkeypatch.setattr(gaps, "_CHUNK", 7)
    rng = np.random.default_rng(1)
    index = np.sort(rng.choice(20_000, 60, replace=False)).astype(np.int64)
    for width in ("u8", "u16", "u32"):
        raw = gaps.encode_gaps(index, width)
        assert np.array_equal(decode_index("idx", raw, 60, 20_000, "x"), index)


def test_auto_takes_the_smallest_width() -> None:
    """Dense supports get bytes, sparse ones 16 or 32 bits."""
    for step, dtype in ((10, np.uint8), (5_000, np.uint16), (10_000_000, np.uint32)):
        assert gaps.encode_gaps(np.arange(1, 9, dtype=np.int64) * step).dtype == dtype


def test_a_gap_too_large_for_the_width_is_refused() -> None:
    """Asking for u16 where a gap needs more is an error, not a wrong file."""
    with pytest.raises(InvalidIndex, match="gap of 70000 does not fit u16; choose auto"):
        gaps.encode_gaps(np.array([70_000]), "u16")
    with pytest.raises(InvalidIndex, match="unsupported index width 'u64'"):
        gaps.encode_gaps(np.array([7]), "u64")


def test_golden_bytes(tmp_path: Path) -> None:
    """The committed example is what this version writes, to the byte, and reads."""
    path = tmp_path / "example.safetensors"
    assert write_vector(example_vector(), path) == GOLDEN_DIGEST
    assert path.read_bytes() == GOLDEN.read_bytes()
    expected = example_vector()
    expected = TaskVector(
        expected.base, dict(sorted(expected.parameters.items())), expected.metadata
    )
    assert_same(read_vector(GOLDEN, expected_digest=GOLDEN_DIGEST), expected)


def test_the_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    """Whoever has the file can check its name with sha256sum."""
    path = tmp_path / "x.safetensors"
    digest = write_vector(example_vector(), path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == file_digest(path)


def test_order_of_parameters_does_not_matter(tmp_path: Path) -> None:
    """Equal vectors are equal files, in whatever order their parameters come."""
    vector = example_vector()
    turned = TaskVector(vector.base, dict(reversed(vector.parameters.items())), vector.metadata)
    assert write_vector(vector, tmp_path / "a") == write_vector(turned, tmp_path / "b")


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    """The header is padded to 8 bytes and wide dtypes come first."""
    write_vector(example_vector(), tmp_path / "x")
    header = read_header(tmp_path / "x")
    widths = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "U16": 2}
    assert len(split((tmp_path / "x").read_bytes())[0]) % 8 == 0
    assert all(info.begin % widths[info.dtype] == 0 for info in header.tensors.values())


def test_the_header_tells_sizes_without_reading(tmp_path: Path) -> None:
    """Kinds, shapes, dtypes, counts, ranks and scales come from the header."""
    write_vector(example_vector(), tmp_path / "x")
    header = read_header(tmp_path / "x")
    assert header.base == BaseInfo("example/base", FINGERPRINT)
    assert header.nbytes == (tmp_path / "x").stat().st_size
    assert {name: spec.shape for name, spec in header.parameters.items()} == SHAPES
    facts = {n: (s.kind, s.dtype, s.nnz, s.rank, s.scale) for n, s in header.parameters.items()}
    assert facts == {
        SPARSE: ("sparse", "BF16", 4, 0, 1.0),
        LOW_RANK: ("low_rank", "F32", 20, 2, 2.0),
        DENSE: ("dense", "F16", 7, 0, 1.0),
    }
    assert header.metadata["extraction"] == {"density": 0.01}


@pytest.mark.parametrize(("word", "dtype"), [("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16")])
def test_values_are_cast_on_request(tmp_path: Path, word: str, dtype: str) -> None:
    """`value_dtype` decides the dtype of every value; the index stays."""
    write_vector(example_vector(), tmp_path / "x", value_dtype=word)
    vector = read_vector(tmp_path / "x")
    assert {spec.dtype for spec in read_header(tmp_path / "x").parameters.values()} == {dtype}
    for name in vector:
        assert np.array_equal(vector.delta(name), example_vector().delta(name))


def test_an_overflow_in_fp16_is_refused(tmp_path: Path) -> None:
    """A value that the dtype cannot hold is an error that names the parameter."""
    vector = TaskVector(BaseInfo("b"), {"w": sparse([2, 2], [1], [1e6])})
    with pytest.raises(NonFiniteValue, match="w holds a value that is no finite F16"):
        write_vector(vector, tmp_path / "x", value_dtype="fp16")
    with pytest.raises(InvalidTensor, match="unsupported value dtype 'fp8'; choose fp32"):
        write_vector(vector, tmp_path / "x", value_dtype="fp8")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"licence": "mit"}, "unknown metadata field 'licence'"),
        ({"license": 3}, "license must be a string"),
        ({"tags": "a"}, "tags must be a list of strings"),
        ({"provenance": []}, "provenance must be an object"),
        ({"extraction": {"x": float("nan")}}, "cannot be written as JSON"),
        ({"license": "\ud800"}, "cannot be written as JSON"),
    ],
)
def test_metadata_that_no_reader_takes_is_refused(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    """The writer never makes a file that the reader rejects."""
    with pytest.raises(InvalidHeader, match=message):
        write_vector(TaskVector(BaseInfo("b"), {}, metadata), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_header_too_large_is_not_written(tmp_path: Path) -> None:
    """The cap holds for the writer, too."""
    with pytest.raises(HeaderTooLarge):
        write_vector(TaskVector(BaseInfo("b" * (9 << 20)), {}), tmp_path / "x")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An error on the way changes nothing under the file's name and leaves nothing beside it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with VectorWriter(path, BaseInfo("b")) as writer:
        writer.add("w", DenseDelta(np.ones(3, np.float32)))
        with pytest.raises(InvalidHeader):
            writer.finish({"unknown": 1})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_vector_without_parameters_is_a_file(tmp_path: Path) -> None:
    """The zero of the algebra can be written and read."""
    write_vector(TaskVector(BaseInfo("b"), {}), tmp_path / "x")
    assert len(read_vector(tmp_path / "x")) == 0


def test_optional_metadata_is_bounded(tmp_path: Path) -> None:
    """64 KiB in all can be written and read back; the error names the field, size and limit."""
    room = MAX_METADATA - len("license") - len("provenance") - len('{"x":""}')
    metadata = {"license": "é" * 500, "provenance": {"x": "y" * (room - 1000)}}
    write_vector(TaskVector(BaseInfo("b"), {}, metadata), tmp_path / "x")
    assert read_header(tmp_path / "x").metadata == metadata
    metadata["provenance"] = {"x": "y" * (room - 999)}
    with pytest.raises(
        InvalidHeader, match=r"65537 bytes, \d+ of them in 'provenance'; at most 65"
    ):
        write_vector(TaskVector(BaseInfo("b"), {}, metadata), tmp_path / "y")
    assert os.listdir(tmp_path) == ["x"]
