"""Lossless extraction: the fine-tuned checkpoint comes back bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.errors import BaseMismatch, IncompatibleCheckpoints, InvalidHeader
from taskvectors.extract import Restoration, difference, extract, restore
from taskvectors.extract.dtypes import describe_dtypes, dtype_of
from taskvectors.format import VectorReader, read_header, read_vector, validate_file
from taskvectors.vector import DenseDelta, SparseDelta
from tests.taskvectors.making import BF16, save_checkpoint
from tests.taskvectors.tiny_llama import tiny_config

DTYPES = {"F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": BF16, "F64": np.dtype("f8")}
EDGES = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 6e-8, 3e38, -3e38, 65504.0, 1e-30, 1e30, 1 / 3)


def check(base: Path, tuned: Path, file: Path) -> None:
    """Every tensor equals the fine-tuned one in dtype, shape and bits, and so do fingerprints."""
    after = Checkpoint.open(tuned)
    with Restoration(file, base) as restoration:
        assert restoration.names == after.names
        assert restoration.fingerprint == fingerprint(after)
        for name, array in restoration:
            expected = after.read(name)
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes(), name
        restoration.verify()


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
def test_any_dtypes_come_back(tmp_path: Path, before: str, after: str) -> None:
    """Edges of floats against each other, and updates of all sizes, for each pair of dtypes."""
    rng = np.random.default_rng(len(before) * 7 + len(after))
    grid = np.array([(a, b) for a in EDGES for b in EDGES])
    with np.errstate(over="ignore"):
        old = np.where(np.isfinite(grid.astype(DTYPES[before]).astype(float)), grid, 1.0)
        new = np.where(np.isfinite(grid.astype(DTYPES[after]).astype(float)), grid, 1.0)
    start = rng.standard_normal((50, 40))
    update = start + rng.standard_normal((50, 40)) * 10.0 ** rng.integers(-9, 1, (50, 40))
    update[rng.random((50, 40)) < 0.7] = start[0, 0]
    base = save_checkpoint(
        tmp_path / "base",
        {
            "edges": old[:, 0].astype(DTYPES[before]).reshape(13, 13),
            "walk": start.astype(DTYPES[before]),
            "same": start.astype(DTYPES[before]),
            "ids": np.arange(5),
        },
    )
    tuned = save_checkpoint(
        tmp_path / "tuned",
        {
            "edges": new[:, 1].astype(DTYPES[after]).reshape(13, 13),
            "walk": update.astype(DTYPES[after]),
            "same": start.astype(DTYPES[before]).astype(np.float32).astype(DTYPES[after]),
            "ids": np.arange(5),
        },
    )
    report = extract(base, tuned, tmp_path / "x", method="lossless")
    assert report.finetuned_fingerprint == fingerprint(tuned)
    validate_file(tmp_path / "x", base_fingerprint=fingerprint(base))
    check(base, tuned, tmp_path / "x")


floats = st.one_of(
    st.sampled_from(EDGES), st.floats(width=32, allow_nan=False, allow_infinity=False)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    hnp.arrays(np.float32, (2, 3, 5), elements=floats),
    st.sampled_from([None, "bf16", "fp16", "fp32"]),
    st.sampled_from(["F32", "BF16", "F16"]),
)
def test_any_values_come_back(
    tmp_path: Path, values: np.ndarray[Any, Any], stored: str | None, dtype: str
) -> None:
    """Whatever floats the two checkpoints hold, and however the differences are stored."""
    with np.errstate(over="ignore"):
        cast = values.astype(DTYPES[dtype])
    cast[~np.isfinite(cast.astype(np.float32))] = 0
    base = save_checkpoint(tmp_path / "base", {"w": cast[0]})
    tuned = save_checkpoint(tmp_path / "tuned", {"w": cast[1]})
    extract(base, tuned, tmp_path / "x", method="lossless", value_dtype=stored)
    check(base, tuned, tmp_path / "x")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_sharded_llama_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, dtype: torch.dtype, share: float
) -> None:
    """Tied or not, sharded or not, changed in part or everywhere, block by block."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tied=tied)).to(dtype)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape) * 0.01 * (torch.rand(parameter.shape) < share)
            parameter += step.to(dtype)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="5KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    monkeypatch.setattr(difference, "BLOCK", 100)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "x", method="lossless")
    check(tmp_path / "base", tmp_path / "tuned", tmp_path / "x")
    kinds = {type(delta) for delta in read_vector(tmp_path / "x").parameters.values()}
    assert kinds <= {SparseDelta, DenseDelta}
    assert share == 1.0 or DenseDelta not in kinds


def test_what_bfloat16_cannot_hold_is_an_exception(tmp_path: Path) -> None:
    """The exact fine-tuned values are listed only where base plus delta does not give them."""
    before = np.array([[1.0, 1.0, 1.0, 0.0, 2.0]], np.float32)
    after = np.array([[1.5, 1.0 + 2**-20, 1.0, -0.0, 2.0 + 1 / 3]], np.float32)
    base = save_checkpoint(tmp_path / "base", {"w": before})
    tuned = save_checkpoint(tmp_path / "tuned", {"w": after})
    report = extract(base, tuned, tmp_path / "x", method="lossless", value_dtype="bf16")
    with VectorReader(tmp_path / "x") as reader:
        exceptions, delta = reader.exceptions("w"), reader.delta("w")
    assert exceptions is not None
    assert isinstance(delta, SparseDelta)
    assert exceptions.index.tolist() == [3, 4]
    assert exceptions.values.tobytes() == after[0, 3:].tobytes()
    assert delta.index.tolist() == [0, 1, 4]
    assert report.parameters[0].size.exceptions == 2
    check(base, tuned, tmp_path / "x")


def test_bfloat16_stores_what_it_restores(tmp_path: Path) -> None:
    """Updates of a float32 checkpoint that bf16 holds take 2 bytes, others 4."""
    rng = np.random.default_rng(9)
    before = rng.standard_normal((30, 40)).astype(np.float32)
    update = rng.standard_normal((30, 40)).astype(BF16).astype(np.float32) / 64
    base = save_checkpoint(tmp_path / "base", {"coarse": before, "fine": before})
    tuned = save_checkpoint(
        tmp_path / "tuned", {"coarse": before + update, "fine": before + update * np.float32(1.01)}
    )
    extract(base, tuned, tmp_path / "x", method="lossless")
    parameters = read_header(tmp_path / "x").parameters
    assert {name: spec.values for name, spec in parameters.items()} == {
        "coarse": "bf16",
        "fine": "fp32",
    }
    check(base, tuned, tmp_path / "x")


def test_dtypes_of_their_own_are_said_in_few_words(tmp_path: Path) -> None:
    """One word where all differ alike, kinds where layers do, names where one does."""
    ones = np.ones((2, 2), np.float32)
    names = [f"layers.{i}.{part}.weight" for i in range(30) for part in ("up", "down")]
    base = save_checkpoint(tmp_path / "base", {n: ones.astype(BF16) for n in names})
    mixes: dict[str, dict[str, Any]] = {
        "same": dict.fromkeys(names, BF16),
        "all": dict.fromkeys(names, "f4"),
        "kind": {n: "f4" if ".up." in n else BF16 for n in names},
        "one": {n: "f4" if n == "layers.3.up.weight" else BF16 for n in names},
    }
    expected: dict[str, object] = {
        "same": {},
        "all": {"*": "F32"},
        "kind": {"layers.*.up.weight": "F32", "layers.*.down.weight": "BF16"},
        "one": {"layers.3.up.weight": "F32", "layers.*.down.weight": "BF16"},
    }
    before = Checkpoint.open(base)
    for mix, kinds in mixes.items():
        tuned = save_checkpoint(tmp_path / mix, {n: ones.astype(k) for n, k in kinds.items()})
        after = Checkpoint.open(tuned)
        dtypes = describe_dtypes(before, after)
        assert dtypes == expected[mix]
        for name in names:
            assert dtype_of(dtypes, name, "BF16") == after.info(name)[1]
        extract(base, tuned, tmp_path / "x", method="lossless")
        assert read_header(tmp_path / "x").metadata["extraction"].get("dtypes", {}) == dtypes
        check(base, tuned, tmp_path / "x")


def test_one_parameter_is_restored_alone(tmp_path: Path) -> None:
    """`restore` reads what it needs."""
    base = save_checkpoint(tmp_path / "base", {"v": np.ones(3, BF16), "w": np.ones(4, BF16)})
    tuned = save_checkpoint(tmp_path / "tuned", {"v": np.ones(3, BF16), "w": np.zeros(4, BF16)})
    extract(base, tuned, tmp_path / "x", method="lossless")
    assert restore(tmp_path / "x", base, "w").astype(float).tolist() == [0.0] * 4
    assert restore(tmp_path / "x", base, "v").astype(float).tolist() == [1.0] * 3


def test_a_wrong_base_is_found(tmp_path: Path) -> None:
    """Other shapes at once, other values by the fingerprint of what comes out."""
    base = save_checkpoint(tmp_path / "base", {"w": np.ones((2, 2), BF16)})
    tuned = save_checkpoint(tmp_path / "tuned", {"w": np.full((2, 2), 2, BF16)})
    extract(base, tuned, tmp_path / "x", method="lossless")
    other = save_checkpoint(tmp_path / "other", {"w": np.full((2, 2), 3, BF16)})
    with (
        Restoration(tmp_path / "x", other) as restoration,
        pytest.raises(BaseMismatch, match="what is restored has fingerprint"),
    ):
        restoration.verify()
    small = save_checkpoint(tmp_path / "small", {"w": np.ones(2, BF16)})
    with pytest.raises(BaseMismatch, match="w has shape"):
        Restoration(tmp_path / "x", small)


def test_a_lossy_vector_restores_nothing(tmp_path: Path) -> None:
    """The error says how to extract one that does."""
    base = save_checkpoint(tmp_path / "base", {"w": np.ones((2, 2), BF16)})
    tuned = save_checkpoint(tmp_path / "tuned", {"w": np.full((2, 2), 2, BF16)})
    extract(base, tuned, tmp_path / "x")
    with pytest.raises(InvalidHeader, match=r"made by magnitude, .* extract it with --lossless"):
        Restoration(tmp_path / "x", base)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_change_to_no_number_is_refused(tmp_path: Path, value: float) -> None:
    """NaN and infinity are named with their place; unchanged ones come back."""
    before, after = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    before[0, 0] = after[0, 0] = value
    after[1, 1] = 2
    base = save_checkpoint(tmp_path / "base", {"w": before})
    tuned = save_checkpoint(tmp_path / "tuned", {"w": after})
    extract(base, tuned, tmp_path / "x", method="lossless")
    check(base, tuned, tmp_path / "x")
    after[2, 1] = value
    tuned = save_checkpoint(tmp_path / "tuned", {"w": after})
    with pytest.raises(IncompatibleCheckpoints, match="element 9 of w is not finite"):
        extract(base, tuned, tmp_path / "x", method="lossless")


def test_a_killed_extraction_can_simply_be_run_again(tmp_path: Path) -> None:
    """Nothing is at the output's name until it is whole, and what is left is in nobody's way."""
    rng = np.random.default_rng(1)
    for side in ("base", "tuned"):
        tensors = {f"w{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(40)}
        save_checkpoint(tmp_path / side, tensors)
    code = (
        "import sys, time; from taskvectors.extract import extract\n"
        "def progress(done, total, what):\n"
        "    print(what, flush=True); time.sleep(0.02)\n"
        "extract(*sys.argv[1:], method='lossless', progress=progress)\n"
    )
    out = tmp_path / "out" / "x"
    out.parent.mkdir()
    arguments = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "tuned"), out]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "difference: w20\n":
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert list(out.parent.iterdir()) == []
    first = extract(tmp_path / "base", tmp_path / "tuned", out, method="lossless")
    again = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "y", method="lossless")
    assert first.digest == again.digest
    check(tmp_path / "base", tmp_path / "tuned", out)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    """Which file, and what to do."""
    w = {"w": np.ones((2, 2), np.float32)}
    base = save_checkpoint(tmp_path / "base", w)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {"v": names[0], "w": names[1]}
    save_file(w, tuned / names[1])
    (tuned / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(Exception, match=rf"the shard .*{names[0]} is missing .* download or copy"):
        extract(base, tuned, tmp_path / "x")
