"""Reading Hugging Face checkpoints and taking their fingerprints."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from taskvectors import checkpoint as module
from taskvectors.checkpoint import (
    Checkpoint,
    cached_fingerprint,
    fingerprint,
    load_base_shapes,
)
from taskvectors.errors import InvalidCheckpoint
from tests.taskvectors.making import BF16, save_checkpoint

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.array([1.5, -2], BF16),
    "empty": np.empty((0, 4), np.float16),
    "scalar": np.array(7, np.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", TENSORS)


def shard(folder: Path) -> Path:
    """The same tensors in two shards."""
    folder.mkdir()
    names = sorted(TENSORS)
    parts = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, part in parts.items():
        save_file({name: TENSORS[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_are_read(tmp_path: Path, folder: Path, sharded: bool) -> None:
    """Names, shapes, dtypes and values come back from one file or from shards."""
    checkpoint = Checkpoint.open(shard(tmp_path / "sharded") if sharded else folder)
    assert checkpoint.names == ("a.weight", "b.weight", "empty", "scalar")
    assert checkpoint.info("a.weight") == ((2,), "BF16")
    assert len(checkpoint.files) == 1 + sharded
    for name, expected in TENSORS.items():
        array = checkpoint.read(name)
        assert array.dtype == expected.dtype
        assert not array.flags.writeable or not array.size
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "bool", "uint8"])
def test_dtypes_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    """What torch wrote has the same values here."""
    tensor = torch.tensor([[0.0, 1, -2], [0.5, 3, 1]]).abs().to(getattr(torch, dtype))
    save_torch({"x": tensor}, tmp_path / "model.safetensors")
    array = Checkpoint.open(tmp_path).read("x")
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())


def test_load_base_shapes(folder: Path) -> None:
    """Every parameter with its shape."""
    shapes = load_base_shapes(folder)
    assert shapes == {"a.weight": (2,), "b.weight": (2, 3), "empty": (0, 4), "scalar": ()}


def test_a_tied_head_is_no_parameter(tmp_path: Path) -> None:
    """Whether a stored lm_head.weight counts is decided by tie_word_embeddings."""
    tensors = {"lm_head.weight": np.ones(2, np.float32), "embed.weight": np.ones(2, np.float32)}
    tied = save_checkpoint(tmp_path / "tied", tensors, {"tie_word_embeddings": True})
    untied = save_checkpoint(tmp_path / "untied", tensors, {"tie_word_embeddings": False})
    assert Checkpoint.open(tied).names == ("embed.weight",)
    assert Checkpoint.open(untied).names == ("embed.weight", "lm_head.weight")
    assert fingerprint(tied) != fingerprint(untied)


def test_the_fingerprint_is_what_the_format_says(folder: Path) -> None:
    """One JSON line for each parameter, sorted by name, hashed together."""
    lines = b""
    for name, shape, dtype in [
        ("a.weight", "[2]", "BF16"),
        ("b.weight", "[2,3]", "F32"),
        ("empty", "[0,4]", "F16"),
        ("scalar", "[]", "I64"),
    ]:
        inner = hashlib.sha256(TENSORS[name].tobytes()).hexdigest()
        lines += f'["{name}",{shape},"{dtype}","{inner}"]\n'.encode()
    assert fingerprint(folder) == hashlib.sha256(lines).hexdigest()


def test_the_fingerprint_does_not_depend_on_shards(tmp_path: Path, folder: Path) -> None:
    """The same weights have the same fingerprint however they are split."""
    assert fingerprint(shard(tmp_path / "sharded")) == fingerprint(Checkpoint.open(folder))


def test_the_fingerprint_changes_with_one_bit(tmp_path: Path, folder: Path) -> None:
    """A base that differs anywhere is another base."""
    changed = TENSORS | {"a.weight": np.array([1.5, -2.015625], BF16)}
    assert fingerprint(save_checkpoint(tmp_path / "other", changed)) != fingerprint(folder)


def test_a_cached_fingerprint_is_computed_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a changed file is read again."""
    first = cached_fingerprint(folder, tmp_path / "cache")
    assert first == fingerprint(folder)
    with monkeypatch.context() as patch:
        patch.setattr(module, "fingerprint", lambda _: pytest.fail("computed again"))
        assert cached_fingerprint(folder, tmp_path / "cache") == first
    save_checkpoint(folder, {"x": np.ones(3, np.float32)})
    assert cached_fingerprint(folder, tmp_path / "cache") == fingerprint(folder) != first


def test_a_touched_file_is_read_again(tmp_path: Path, folder: Path) -> None:
    """mtime is part of the cache's key, and a broken entry is not believed."""
    first = cached_fingerprint(folder, tmp_path / "cache")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    cached_fingerprint(folder, tmp_path / "cache")
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_text("broken")
    assert cached_fingerprint(folder, tmp_path / "cache") == first


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """The error says which files were looked for."""
    with pytest.raises(InvalidCheckpoint, match=r"neither model.safetensors nor model.saf.*index"):
        Checkpoint.open(tmp_path)


def test_broken_weights_are_refused(folder: Path) -> None:
    """A truncated shard is named."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidCheckpoint, match=r"cannot read .*the tensors end at byte"):
        Checkpoint.open(folder)


def test_a_broken_config_is_refused(folder: Path) -> None:
    """config.json decides about tying, so it must be readable."""
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidCheckpoint, match=r"config.json is not valid JSON"):
        Checkpoint.open(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InvalidCheckpoint, match="is not a JSON object"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../model.safetensors"}, "names a file outside its folder"),
        ({"x": 3}, "names a file outside its folder"),
        ({"x": "model-2.safetensors"}, "lacks x, which the index puts there"),
        ({"x": "gone.safetensors"}, "the shard .*gone.safetensors is missing .1 of 1 are."),
        (None, "has no weight_map"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    """The index must name tensors in files of its own folder."""
    folder = shard(tmp_path / "sharded")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidCheckpoint, match=message):
        Checkpoint.open(folder)


def test_an_unknown_parameter_is_refused(folder: Path) -> None:
    """Asking for a name that is not there is a named error."""
    with pytest.raises(InvalidCheckpoint, match="has no parameter nothing"):
        Checkpoint.open(folder).read("nothing")
    with pytest.raises(InvalidCheckpoint, match="has no parameter nothing"):
        Checkpoint.open(folder).info("nothing")
