"""Extraction: fine-tuned minus base, streamed, sparse, and applied again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.errors import IncompatibleCheckpoints, NonFiniteValue
from taskvectors.extract import extract
from taskvectors.format import read_vector, validate_file
from taskvectors.vector import DenseDelta, SparseDelta
from tests.taskvectors.making import BF16, save_checkpoint
from tests.taskvectors.tiny_llama import tiny_config


def tiny_llama(folder: Path, *, tied: bool, dtype: torch.dtype) -> tuple[Path, Path]:
    """A random Llama of two layers and a fine-tuned copy of it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tied=tied)).to(dtype)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (torch.randn(parameter.shape) * 0.01).to(dtype)
    model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_kept_gives_the_fine_tuned_model(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    """At density 1 in fp32, base plus vector is the fine-tuned checkpoint; for bf16 bit for bit."""
    base, tuned = tiny_llama(tmp_path, tied=tied, dtype=dtype)
    report = extract(base, tuned, tmp_path / "x", density=1.0, value_dtype="fp32")
    vector = read_vector(tmp_path / "x", expected_digest=report.digest)
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    assert ("lm_head.weight" in before.names) is not tied
    assert set(vector) <= set(before.names)
    for name in before.names:
        restored = vector.apply_to(name, before.read(name))
        tolerance = 2**-22 if dtype == torch.float32 else 0.0  # x + (y - x) rounds in fp32
        np.testing.assert_allclose(
            restored.astype(np.float32), after.read(name).astype(np.float32), tolerance, tolerance
        )


def test_the_largest_entries_are_kept(tmp_path: Path) -> None:
    """At a density below 1 each matrix keeps its top share, norms stay whole, and it is counted."""
    base, tuned = tiny_llama(tmp_path, tied=True, dtype=torch.float32)
    report = extract(base, tuned, tmp_path / "x", density=0.05, value_dtype="fp32")
    vector = read_vector(tmp_path / "x")
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    assert [parameter.name for parameter in report.parameters] == list(vector)
    for parameter in report.parameters:
        full = after.read(parameter.name) - before.read(parameter.name)
        delta = vector.parameters[parameter.name]
        if full.ndim == 1:
            assert isinstance(delta, DenseDelta)
            np.testing.assert_array_equal(delta.values, full)
            continue
        assert isinstance(delta, SparseDelta)
        assert delta.nnz == parameter.nnz == round(0.05 * full.size)
        order = np.sort(np.abs(full).ravel())[::-1]
        assert np.abs(delta.values).min() == order[delta.nnz - 1]
        np.testing.assert_array_equal(full.ravel()[delta.index], delta.values)
        expected = float((delta.values.astype(float) ** 2).sum() / (full.astype(float) ** 2).sum())
        assert parameter.kept == pytest.approx(expected)
        assert parameter.density == delta.nnz / full.size
    assert 0.05 < report.kept < 1
    assert report.nnz == vector.nnz
    assert report.density == pytest.approx(vector.density)
    assert report.nbytes == (tmp_path / "x").stat().st_size


def test_the_file_fits_its_base(tmp_path: Path) -> None:
    """Fingerprint, shapes and card fields are in the header."""
    base, tuned = tiny_llama(tmp_path, tied=True, dtype=torch.bfloat16)
    extract(
        base,
        tuned,
        tmp_path / "x",
        license="apache-2.0",
        base_model="org/base",
        tags=("test",),
        language=("en",),
        provenance={"seed": 1},
    )
    shapes = Checkpoint.open(base).shapes
    header = validate_file(tmp_path / "x", base_shapes=shapes, base_fingerprint=fingerprint(base))
    assert header.base.name == "org/base"
    assert header.metadata == {
        "license": "apache-2.0",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "tags": ["test"],
        "language": ["en"],
        "extraction": {"method": "magnitude", "density": 0.01},
        "provenance": {"seed": 1},
    }
    assert {spec.dtype for spec in header.parameters.values()} == {"BF16"}


def pair(folder: Path, base: dict[str, Any], tuned: dict[str, Any]) -> tuple[Path, Path]:
    return save_checkpoint(folder / "base", base), save_checkpoint(folder / "tuned", tuned)


def test_equal_parameters_are_left_out(tmp_path: Path) -> None:
    """What did not change, and a change of the dtype or of zero's sign only, takes no room."""
    ones, zeros = np.ones((4, 4), np.float32), np.zeros(3, np.float32)
    base, tuned = pair(
        tmp_path,
        {"same": ones, "cast": ones, "sign": zeros, "new": ones},
        {
            "same": ones,
            "cast": ones.astype(BF16),
            "sign": -zeros,
            "new": ones * 2,
        },
    )
    report = extract(base, tuned, tmp_path / "x")
    assert report.unchanged == ("cast", "same", "sign")
    assert list(read_vector(tmp_path / "x")) == ["new"]


@pytest.mark.parametrize(
    ("options", "of_all", "of_matrices", "stages"),
    [
        ({}, 3, 0, ["fingerprint of base", "difference"]),
        ({"scope": "global"}, 3, 4, ["fingerprint of base", "global threshold", "difference"]),
        (
            {"method": "lossless"},
            4,
            0,
            ["fingerprint of base", "fingerprint of fine-tuned", "difference"],
        ),
    ],
)
def test_progress_counts_bytes_of_the_checkpoints(
    tmp_path: Path, options: dict[str, Any], of_all: int, of_matrices: int, stages: list[str]
) -> None:
    """Every stage moves the bar, which ends where it should; the text says what is done."""
    base, tuned = tiny_llama(tmp_path, tied=True, dtype=torch.bfloat16)
    infos = [info for _, info in Checkpoint.open(base).tensors.values()]
    nbytes = sum(info.nbytes for info in infos)
    matrices = sum(info.nbytes for info in infos if len(info.shape) > 1)
    calls: list[tuple[int, int, str]] = []
    extract(base, tuned, tmp_path / "x", progress=lambda *call: calls.append(call), **options)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    total = of_all * nbytes + of_matrices * matrices
    assert (done[-1], {call[1] for call in calls}) == (total, {total})
    assert list(dict.fromkeys(call[2].partition(":")[0] for call in calls)) == stages


def test_equal_checkpoints_give_an_empty_vector(tmp_path: Path) -> None:
    """The difference of a checkpoint and itself is zero, not an error."""
    base, tuned = pair(tmp_path, {"w": np.ones((2, 2), BF16)}, {"w": np.ones((2, 2), BF16)})
    report = extract(base, tuned, tmp_path / "x")
    assert (report.nnz, report.density, report.kept) == (0, 0.0, 1.0)
    assert len(read_vector(tmp_path / "x")) == 0


def test_at_least_one_entry_of_a_changed_matrix_is_kept(tmp_path: Path) -> None:
    """A density too small for a matrix still keeps its largest entry."""
    changed = np.zeros((5, 5), np.float32)
    changed[2, 3], changed[4, 4] = -3, 2
    base, tuned = pair(tmp_path, {"w": np.zeros((5, 5), np.float32)}, {"w": changed})
    extract(base, tuned, tmp_path / "x", density=0.001)
    delta = read_vector(tmp_path / "x").parameters["w"]
    assert isinstance(delta, SparseDelta)
    assert (delta.index.tolist(), delta.values.astype(float).tolist()) == ([13], [-3.0])


def test_entries_that_round_to_zero_are_not_kept(tmp_path: Path) -> None:
    """What fp16 cannot tell from zero is left out, and so is a parameter of nothing else."""
    tiny = np.full((2, 2), 1e-12, np.float32)
    mixed = np.array([[1e-12, 0.5]], np.float32)
    base, tuned = pair(
        tmp_path,
        {"tiny": tiny * 0, "mixed": mixed * 0, "bias": tiny[0] * 0},
        {"tiny": tiny, "mixed": mixed, "bias": tiny[0]},
    )
    extract(base, tuned, tmp_path / "x", density=1.0, value_dtype="fp16")
    vector = read_vector(tmp_path / "x")
    assert list(vector) == ["mixed"]
    assert vector.nnz == 1


def test_a_difference_that_overflows_is_refused(tmp_path: Path) -> None:
    """A value that fp16 cannot hold is an error that names the parameter."""
    base, tuned = pair(
        tmp_path, {"w": np.zeros((2, 2), np.float32)}, {"w": np.full((2, 2), 1e6, np.float32)}
    )
    with pytest.raises(NonFiniteValue, match="w holds a value"):
        extract(base, tuned, tmp_path / "x", value_dtype="fp16")
    assert not (tmp_path / "x").exists()


def test_a_difference_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """NaN in a checkpoint has no task vector."""
    base, tuned = pair(
        tmp_path, {"w": np.zeros((1, 2), np.float32)}, {"w": np.array([[1, np.nan]], np.float32)}
    )
    with pytest.raises(IncompatibleCheckpoints, match="the difference of w is not finite"):
        extract(base, tuned, tmp_path / "x")


def test_integers_are_not_subtracted(tmp_path: Path) -> None:
    """Equal buffers pass; changed ones have no meaning as a delta."""
    same = {"ids": np.arange(3)}
    base, tuned = pair(tmp_path / "a", same, same)
    extract(base, tuned, tmp_path / "x")
    base, tuned = pair(tmp_path / "b", same, {"ids": np.arange(3) + 1})
    with pytest.raises(IncompatibleCheckpoints, match="ids is I64"):
        extract(base, tuned, tmp_path / "x")


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    """Both sides must have the same parameters."""
    w = np.ones((2, 2), np.float32)
    base, tuned = pair(tmp_path, {"w": w, "old": w}, {"w": w, "new": w})
    with pytest.raises(
        IncompatibleCheckpoints,
        match=r"new is missing in the base; old is missing in the fine-tuned one$",
    ):
        extract(base, tuned, tmp_path / "x")


def test_a_parameter_of_another_shape_is_named(tmp_path: Path) -> None:
    """A resized embedding cannot be subtracted."""
    base, tuned = pair(
        tmp_path, {"w": np.ones((2, 2), np.float32)}, {"w": np.ones((3, 2), np.float32)}
    )
    with pytest.raises(IncompatibleCheckpoints, match=r"w is \[2, 2\] in the base, \[3, 2\]"):
        extract(base, tuned, tmp_path / "x")


def test_many_problems_are_counted(tmp_path: Path) -> None:
    """The first five are named."""
    w = np.ones(2, np.float32)
    base, tuned = pair(tmp_path, {f"w{n}": w for n in range(8)}, {"v": w})
    with pytest.raises(IncompatibleCheckpoints, match=r"v is .*w3 is missing.*; and 4 more$"):
        extract(base, tuned, tmp_path / "x")


@pytest.mark.parametrize("density", [0.0, -1.0, 1.01, float("nan")])
def test_density_is_a_share(tmp_path: Path, density: float) -> None:
    """Above 0, at most 1."""
    with pytest.raises(ValueError, match="`density` must be above 0 and at most 1"):
        extract(tmp_path, tmp_path, tmp_path / "x", density=density)


def test_the_same_checkpoints_give_the_same_bytes(tmp_path: Path) -> None:
    """Extraction is deterministic, ties included."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-2, 3, (40, 40)).astype(np.float32)
    base, tuned = pair(tmp_path, {"w": steps * 0}, {"w": steps})
    digests = {extract(base, tuned, tmp_path / name).digest for name in "ab"}
    assert len(digests) == 1
