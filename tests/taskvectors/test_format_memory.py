"""A vector that is read from memory is the one of its file, and so are its errors."""

import random
from pathlib import Path

import numpy as np
import pytest

from taskvectors.delta import Delta, LowRankDelta, SparseDelta
from taskvectors.errors import ChecksumMismatch, InvalidFile
from taskvectors.format import VectorReader, file_digest, read_vector
from tests.fuzz.mutation import mutated
from tests.taskvectors.coded import FOLDER

SEED = 23
GOLDEN = sorted(FOLDER.glob("*.safetensors"))
CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").iterdir())


def outcome(source: Path | memoryview) -> object:
    """What reading gives, in plain values, or the error."""
    try:
        vector = read_vector(source)
        with VectorReader(source) as reader:
            found = {}
            for name in reader.header.parameters:
                reader.check(name)
                exact = reader.exceptions(name)
                parts = None if exact is None else (exact.index.tobytes(), exact.values.tobytes())
                found[name] = (plain(vector.parameters[name]), plain(reader.delta(name)), parts)
            return vector.base, vector.metadata, reader.header, found
    except InvalidFile as error:
        return type(error), str(error)


def plain(delta: Delta) -> tuple[object, ...]:
    if isinstance(delta, LowRankDelta):
        return delta.shape, delta.a.tobytes(), delta.b.tobytes(), delta.scale
    if isinstance(delta, SparseDelta):
        return delta.shape, delta.index.tobytes(), delta.values.tobytes(), str(delta.values.dtype)
    return delta.shape, delta.values.tobytes(), str(delta.values.dtype)


def in_memory(path: Path) -> memoryview:
    return memoryview(path.read_bytes())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_each_encoding_reads_the_same(path: Path) -> None:
    from_file = outcome(path)
    assert len(from_file) == 4  # type: ignore[arg-type]
    assert outcome(in_memory(path)) == from_file


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_writable_buffer_and_one_of_other_items_read_the_same(path: Path) -> None:
    data = path.read_bytes()
    assert outcome(memoryview(bytearray(data))) == outcome(path)
    if len(data) % 2 == 0:
        assert outcome(memoryview(data).cast("H")) == outcome(path)
    assert outcome(memoryview(b"x" + data)[1:]) == outcome(path), "at an odd address"


def test_hostile_files_are_refused_with_the_same_words() -> None:
    """All that the fuzzer kept."""
    outcomes = [outcome(path) for path in CORPUS]
    assert [outcome(in_memory(path)) for path in CORPUS] == outcomes
    assert any(isinstance(found[0], type) for found in outcomes)  # type: ignore[index]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_mutations_and_truncations_are_refused_with_the_same_words(
    path: Path, tmp_path: Path
) -> None:
    """Changed within the header and the tensors, with checksums made right; and cut anywhere."""
    rng, data, target, num_refused = random.Random(SEED), path.read_bytes(), tmp_path / "x", 0
    changed = [mutated(data, 1 << 16, rng, flipped) for _ in range(60)]
    changed += [data[: rng.randrange(len(data))] for _ in range(20)] + [data + b"\0", b""]
    for each in changed:
        target.write_bytes(each)
        from_file = outcome(target)
        assert outcome(memoryview(each)) == from_file, f"seed {SEED}"
        num_refused += isinstance(from_file[0], type)  # type: ignore[index]
    assert num_refused >= 22


def flipped(data: bytes, most: int) -> bytes:
    """In place of libFuzzer: the first byte changes."""
    return (bytes([data[0] ^ 1]) + data[1:])[:most] if data else b"\0"


def test_the_digest_is_checked_in_memory_too() -> None:
    data, digest = in_memory(GOLDEN[0]), file_digest(GOLDEN[0])
    assert len(read_vector(data, expected_digest=digest)) > 0
    for source in (data, GOLDEN[0]):
        with pytest.raises(ChecksumMismatch, match=f"the file has digest {digest}, not 0000"):
            read_vector(source, expected_digest="0" * 64)


def test_nothing_that_was_read_can_be_written() -> None:
    """The buffer may be another load's, too."""
    data = bytearray((FOLDER / "example.safetensors").read_bytes())
    before = bytes(data)
    for delta in read_vector(memoryview(data)).parameters.values():
        arrays = [delta.a, delta.b] if isinstance(delta, LowRankDelta) else [delta.values]
        for array in arrays:
            if np.shares_memory(array, np.frombuffer(data, np.uint8)):
                assert not array.flags.writeable
    assert bytes(data) == before
