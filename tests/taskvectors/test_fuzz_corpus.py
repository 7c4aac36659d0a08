"""The files that the fuzzer kept, read again; and the mutations that made them."""

import json
import random
from pathlib import Path

import pytest

from taskvectors.errors import InvalidFile
from taskvectors.format import read_header
from tests.fuzz.mutation import CHANGES, mutated, taken_apart
from tests.fuzz.reading import read_everything
from tests.taskvectors.coded import FOLDER, GOLDEN
from tests.taskvectors.making import join

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
FILES = sorted(CORPUS.iterdir())
SEED = 11


def test_every_file_of_the_corpus_is_read_or_refused() -> None:
    """Each one is valid in all ways of reading or an InvalidFile in all; some are either."""
    valid = [read_everything(path) for path in FILES]
    assert any(valid)
    assert not all(valid)


def test_the_corpus_is_small() -> None:
    """It is part of the repository, so it stays below 300 KB."""
    assert sum(path.stat().st_size for path in FILES) < 300_000


def flipped(data: bytes, most: int) -> bytes:
    """In place of libFuzzer: the first byte changes."""
    return (bytes([data[0] ^ 1]) + data[1:])[:most] if data else b"\0"


@pytest.mark.parametrize("name", GOLDEN)
def test_mutations_get_past_the_checksums(tmp_path: Path, name: str) -> None:
    """Some reach the tensors, and none is refused for a checksum that the header lacks."""
    rng = random.Random(SEED)
    data = (FOLDER / f"{name}.safetensors").read_bytes()
    path, messages = tmp_path / "x", []
    for _ in range(60):
        path.write_bytes(mutated(data, 1 << 16, rng, flipped))
        read_everything(path)
        try:
            read_header(path)
        except InvalidFile as error:
            messages.append(str(error))
    assert len(messages) < 60, "no mutation got past the header"
    assert not any("sha256" in message for message in messages)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_changes(change: object) -> None:
    """Each change makes another file of a golden one, at least once in forty times."""
    data = (FOLDER / "exceptions.safetensors").read_bytes()
    rng = random.Random(SEED)
    whole = taken_apart(data)
    assert whole is not None
    results = set()
    for _ in range(40):
        forgery = taken_apart(data)
        assert forgery is not None
        assert callable(change)
        change(forgery, rng, flipped)
        results.add(join(json.dumps(forgery.header()).encode(), forgery.data()))
    assert results - {join(json.dumps(whole.header()).encode(), whole.data())}
