"""The bytes of each encoding do not change."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskvectors.format import VectorReader, as_stored, read_header, read_vector, validate_file
from tests.taskvectors.coded import EMPTY, FEW, FOLDER, GOLDEN, NORM, ROWS, deltas, exceptions


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_of_each_encoding(tmp_path: Path, name: str) -> None:
    """The committed files are what this version writes, to the byte, and reads."""
    golden, path = GOLDEN[name], tmp_path / "x"
    assert golden.write(path) == golden.digest
    assert path.read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes()
    validate_file(path)
    vector = read_vector(path, expected_digest=golden.digest)
    for parameter, delta in deltas().items():
        stored = as_stored(parameter, delta, golden.value_dtype)
        assert np.array_equal(vector.delta(parameter), stored.to_dense())


def test_golden_bytes_by_hand() -> None:
    """What the documentation says, worked out on paper, is in the golden files."""
    bits = load_file(FOLDER / "bitmap.safetensors")[f"{FEW}.bits"]
    assert bits.tolist() == [9, 0, 2] + [0] * 29 + [8] + [0] * 4 + [8]
    int8 = load_file(FOLDER / "int8.safetensors")
    assert int8[f"{FEW}.idx"].tolist() == [0, 2, 13, 241, 39]
    assert int8[f"{FEW}.scale"] == np.float32(4) / np.float32(127)
    assert int8[f"{FEW}.val"].tolist() == [32, -64, 0, 16, -127]
    assert int8[f"{ROWS}.scale"].tolist() == [
        float(np.float32(peak) / np.float32(127)) for peak in (50 / 64, 8 * 50 / 64)
    ]
    assert int8[f"{EMPTY}.scale"].tolist() == [0.0]
    ternary = load_file(FOLDER / "ternary.safetensors")
    assert ternary[f"{FEW}.idx"].tolist() == [0, 2, 255, 39]
    assert ternary[f"{FEW}.sign"].tolist() == [0b1010]
    assert ternary[f"{FEW}.scale"].tolist() == [7.5 / 4]
    exact = load_file(FOLDER / "exceptions.safetensors")
    assert exact[f"{EMPTY}.exc_idx"].tolist() == [0, 4, 14]
    assert exact[f"{NORM}.exc"].tobytes() == b"\x00\x80"
    with VectorReader(FOLDER / "exceptions.safetensors") as reader:
        for name, expected in exceptions().items():
            found = reader.exceptions(name)
            assert found is not None
            assert found.values.tobytes() == expected.values.tobytes()
        assert reader.exceptions(ROWS) is None


def test_the_header_tells_encodings_without_reading() -> None:
    """Encodings, counts, exceptions and bytes come from the header."""
    facts = {
        (name, parameter): (spec.values, spec.index, spec.dtype, spec.nnz, spec.num_exceptions)
        for name in ("int8_bitmap", "ternary", "exceptions")
        for parameter, spec in read_header(FOLDER / f"{name}.safetensors").parameters.items()
    }
    assert facts["int8_bitmap", ROWS] == ("int8", "bitmap", "F32", 150, 0)
    assert facts["int8_bitmap", NORM] == ("bf16", "", "BF16", 7, 0)
    assert facts["ternary", FEW] == ("ternary", "u16", "F32", 4, 0)
    assert facts["exceptions", FEW] == ("bf16", "u8", "BF16", 5, 2)
    assert facts["exceptions", EMPTY] == ("fp32", "u8", "F32", 0, 3)
    header = read_header(FOLDER / "exceptions.safetensors")
    nbytes = sum(spec.nbytes for spec in header.parameters.values())
    assert nbytes == header.nbytes - header.head_nbytes
