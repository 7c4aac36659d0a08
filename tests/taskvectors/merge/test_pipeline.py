"""From files to a merged file: against mergekit and PEFT on dense checkpoints, and golden bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft.utils.merge_utils as peft
import pytest
import torch

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.errors import BaseMismatch
from taskvectors.format import read_vector, write_vector
from taskvectors.merge import MergedVector, merge_vectors, open_files, write_merged
from taskvectors.methods import find_method
from taskvectors.selection import EVERYWHERE, Selection, parse_selection
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.making import save_checkpoint
from tests.taskvectors.merge.drawing import vector_of
from tests.taskvectors.merge.oracles import ABSOLUTE, RELATIVE, merge_group, stable_sorts

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.mlp.up_proj.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.up_proj.weight": (32, 16),
    "model.layers.1.self_attn.q_proj.bias": (16,),
    "model.norm.weight": (16,),
}
WEIGHTS = (1.0, 0.5, -0.25)
SELECTIONS: tuple[Selection, ...] = (
    EVERYWHERE,
    parse_selection({"layers": {"0": 1.0, "1": 0.5}}, "test"),
    parse_selection({"modules": {"mlp.*": 2.0, "norm": 1.0}}, "test"),
)
FACTORS = {  # of each parameter, for each vector: what the selections above mean
    "model.embed_tokens.weight": (1, 0, 0),
    "model.layers.0.mlp.up_proj.weight": (1, 1, 2),
    "model.layers.0.self_attn.q_proj.weight": (1, 1, 0),
    "model.layers.1.mlp.up_proj.weight": (1, 0.5, 2),
    "model.layers.1.self_attn.q_proj.bias": (1, 0.5, 0),
    "model.norm.weight": (1, 0, 1),
}


def grid(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Distinct nonzero multiples of 1/256 below 4, so that sums are exact."""
    size = int(np.prod(shape))
    places = rng.choice(1023, size, replace=False) + 1
    return (places * rng.choice([-1, 1], size) / 256).astype(np.float32).reshape(shape)


def delta_of(rng: np.random.Generator, name: str, kind: str) -> Delta:
    shape = SHAPES[name]
    if kind == "low rank" and len(shape) == 2:
        a, b = grid(rng, (1, shape[1])), np.ones((shape[0], 1), np.float32)
        b[:, 0] = 2.0 ** rng.integers(-3, 3, shape[0])
        return LowRankDelta(shape, a, b, 0.5)
    dense = grid(rng, shape)
    if kind == "dense":
        return DenseDelta(dense)
    index = np.flatnonzero(rng.random(dense.size) < 0.3).astype(np.int64)
    return SparseDelta(shape, index, dense.reshape(-1)[index])


def make_files(folder: Path) -> tuple[list[TaskVector], list[tuple[str, Path]]]:
    """Three vectors, each of all kinds, that lack some parameters; and their files."""
    rng = np.random.default_rng(11)
    kinds = ("sparse", "low rank", "dense", "sparse", "absent")
    vectors = []
    for k in range(3):
        chosen = {name: kinds[(k + n) % len(kinds)] for n, name in enumerate(SHAPES)}
        vectors.append(
            vector_of(
                {
                    name: delta_of(rng, name, kind)
                    for name, kind in chosen.items()
                    if kind != "absent"
                }
            )
        )
    paths = [folder / f"{k}.safetensors" for k in range(3)]
    digests = [write_vector(v, path) for v, path in zip(vectors, paths, strict=True)]
    return vectors, list(zip(digests, paths, strict=True))


def merged_from_files(
    folder: Path, method: str, parameters: Mapping[str, Any], weights: Sequence[float], **more: Any
) -> tuple[TaskVector, str]:
    """The merge as it is written and read again, and its digest."""
    files = make_files(folder)[1]
    complete = dict(find_method(method).parse(parameters))
    with open_files(files) as sources:
        merged = MergedVector(sources, weights, method, complete, **more)
        digest = write_merged(merged, folder / "merged.safetensors", {"license": "mit"})
    return read_vector(folder / "merged.safetensors", expected_digest=digest), digest


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"),
    [
        ("linear", "task_arithmetic", {}),
        ("ties", "ties", {"density": 0.2, "normalize": True}),
        ("ties", "ties", {"density": 0.5, "normalize": False, "lambda": 0.3}),
        ("breadcrumbs", "breadcrumbs", {"density": 0.2, "gamma": 0.05, "lambda": 1.5}),
    ],
)
def test_a_merge_of_files_is_mergekits_of_checkpoints(
    tmp_path: Path, ours: str, theirs: str, parameters: dict[str, Any], selected: bool
) -> None:
    """Base plus merge equals mergekit on base and fine-tuned checkpoints, weights per layer too."""
    rng = np.random.default_rng(12)
    base = {name: grid(rng, shape) for name, shape in SHAPES.items()}
    folder = save_checkpoint(tmp_path / "base", base)
    more = {"selections": SELECTIONS} if selected else {}
    merged, _ = merged_from_files(
        tmp_path, ours, parameters, WEIGHTS, base=Checkpoint.open(folder), **more
    )
    vectors, _ = make_files(tmp_path)
    for name, tensor in base.items():
        tuned = [torch.from_numpy(vector.apply_to(name, tensor)) for vector in vectors]
        factors = FACTORS[name] if selected else (1, 1, 1)
        weights = [w * factor for w, factor in zip(WEIGHTS, factors, strict=True)]
        with stable_sorts():
            expected = merge_group([torch.from_numpy(tensor), *tuned], weights, theirs, parameters)
        actual = merged.apply_to(name, tensor)
        np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=8 * ABSOLUTE)


def test_a_merge_of_files_is_pefts(tmp_path: Path) -> None:
    """`ties_peft` of files is PEFT's `ties` of the dense deltas."""
    merged, _ = merged_from_files(tmp_path, "ties_peft", {"density": 0.3}, WEIGHTS)
    vectors, _ = make_files(tmp_path)
    for name, shape in SHAPES.items():
        deltas = [
            torch.from_numpy(v.delta(name) if name in v else np.zeros(shape, np.float32))
            for v in vectors
        ]
        with stable_sorts():
            expected = peft.ties(deltas, torch.tensor(WEIGHTS), 0.3)
        actual = merged.delta(name) if name in merged else np.zeros(shape, np.float32)
        np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=4 * ABSOLUTE)


GOLDEN = {
    "dare_linear": "f803fdc09abf5b64c00c976b2109301c9c1c261508a6a8835495a8fba695a9fb",
    "dare_ties": "8bbe1a30e06d9b5d4a2ce1ffa985bb2d1c4ed975657fca091aed92c58510027c",
    "della": "82843ef21103903617e80bdeecca4e3b2b40b47960e91f1a502773d8e0701be8",
}


@pytest.mark.parametrize("method", GOLDEN)
def test_merged_files_are_golden(tmp_path: Path, method: str) -> None:
    """A seeded merge of three files is the same file for ever, on any machine."""
    parameters = {"density": 0.5, "seed": 1}
    assert merged_from_files(tmp_path, method, parameters, WEIGHTS)[1] == GOLDEN[method]
    again = merged_from_files(tmp_path, method, parameters, WEIGHTS)[1]
    other = merged_from_files(tmp_path, method, {**parameters, "seed": 2}, WEIGHTS)[1]
    assert again == GOLDEN[method] != other


@pytest.mark.parametrize("shape", [(2, 2), (9, 9)])
def test_a_base_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Without fingerprints names and shapes must do, for every method that is given a base."""
    save_checkpoint(tmp_path, {"w": np.ones(shape, np.float32)})
    vector = TaskVector(BaseInfo("b"), {"w": DenseDelta(np.ones((3, 3), np.float32))})
    for method in ("slerp", "ties_original", "linear"):
        with pytest.raises(BaseMismatch, match=r"w has shape \[3, 3\]"):
            merge_vectors([vector, vector], method=method, base=tmp_path)
