"""Composing writes what merging in memory gives, within limits, in a process that does no harm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from taskvectors.checkpoint import Checkpoint
from taskvectors.errors import (
    BaseMismatch,
    InvalidLoadout,
    PoolTooSmall,
    TaskVectorError,
    VectorNotFound,
)
from taskvectors.footprint import resident_bytes
from taskvectors.format import read_header, read_vector, write_vector
from taskvectors.merge import MemorySource, MergedVector, merge_vectors
from taskvectors.merge.compose import Job, compose
from taskvectors.methods import METHODS
from taskvectors.selection import parse_selection
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore
from taskvectors.store.composed import ComposedStore, composed_key
from taskvectors.vector import (
    BaseInfo,
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
)
from tests.taskvectors.making import save_checkpoint

FINGERPRINT = "f" * 64
COMMAND = [sys.executable, "-P", "-m", "taskvectors.merge.compose"]
SHAPE = (40, 30)
UP, DOWN, NORM = "layers.0.up.weight", "layers.1.down.weight", "layers.1.norm.weight"


def draw(seed: int, fingerprint: str | None = FINGERPRINT) -> TaskVector:
    """Sparse, low-rank and dense deltas."""
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(SHAPE[0] * SHAPE[1], 200, replace=False))
    a, b = rng.standard_normal((2, SHAPE[1])), rng.standard_normal((SHAPE[0], 2))
    parameters: dict[str, Delta] = {
        UP: SparseDelta(SHAPE, index, rng.standard_normal(200).astype(np.float32)),
        DOWN: LowRankDelta(SHAPE, a.astype(np.float32), b.astype(np.float32), 0.5),
        NORM: DenseDelta(rng.standard_normal(SHAPE[1]).astype(np.float32)),
    }
    return TaskVector(BaseInfo("base", fingerprint), parameters)


def stored(root: Path, *vectors: TaskVector) -> list[str]:
    """The digests of vectors that are added to the store at `root`."""
    store = DirectoryStore(root)
    digests = []
    for vector in vectors:
        write_vector(vector, root / "vector")
        digests.append(store.add(root / "vector"))
    return digests


def ties(
    digests: list[str], weights: tuple[float, ...] = (1.0, 0.4), **parameters: object
) -> Loadout:
    items = [LoadoutItem(d, w) for d, w in zip(digests, weights, strict=False)]
    return Loadout.build(items, "ties", parameters)


def job(root: Path, loadout: Loadout, **limits: object) -> Job:
    made = Job(str(root), loadout.canonical, FINGERPRINT, None, 4, 4, 1 << 30, 1 << 30, 1 << 30)
    return replace(made, **limits)  # type: ignore[arg-type]


def ask(job: Job, **fields: object) -> Mapping[str, object]:
    """What a child process answers."""
    text = json.dumps({**asdict(job), "parent": os.getpid(), **fields})
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, check=True)
    answer: Mapping[str, object] = json.loads(done.stdout)
    return answer


def composed_files(root: Path) -> list[Path]:
    folder = root / "composed"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_composed_file_is_the_merge_in_memory(tmp_path: Path, density: float) -> None:
    """In float32, in the loadout's canonical order, with selections; its footprint is known."""
    vectors = [draw(1), draw(2)]
    digests = stored(tmp_path, *vectors)
    half = parse_selection({"layers": {"0": 1.0, "1": 0.5}}, "test")
    items = [LoadoutItem(digests[0], -0.7, half), LoadoutItem(digests[1], 1.0)]
    loadout = Loadout.build(items, "ties", {"density": density, "lambda": 1.5})
    made = compose(job(tmp_path, loadout))
    store = ComposedStore(tmp_path)
    assert store.find(composed_key(loadout, FINGERPRINT)) == made.digest
    read = read_vector(store.path(made.digest), expected_digest=made.digest)
    expected = _merged_by_hand(vectors, density)
    assert set(read.parameters) == set(expected.parameters)
    for name in expected.parameters:
        np.testing.assert_allclose(read.delta(name), expected.delta(name), rtol=1e-6, atol=1e-7)
    header = read_header(store.path(made.digest))
    assert made.resident_bytes == resident_bytes(header, 4, 4)
    assert made.nbytes == header.nbytes
    assert {spec.dtype for spec in header.parameters.values()} == {"F32"}


def _merged_by_hand(vectors: list[TaskVector], density: float) -> TaskVector:
    """The selection as weights per layer: each layer merged on its own."""
    merged: dict[str, Delta] = {}
    for layer, weight in (("layers.0.", -0.7), ("layers.1.", -0.35)):
        parts = [
            TaskVector(v.base, {n: d for n, d in v.parameters.items() if n.startswith(layer)})
            for v in vectors
        ]
        total = merge_vectors(parts, [weight, 1.0], "ties", density=density, **{"lambda": 1.5})
        merged |= total.parameters
    return TaskVector(vectors[0].base, merged)


def test_the_child_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """On any store, by any process."""
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        loadout = ties(stored(tmp_path / name, draw(1), draw(2)), density=0.3)
        digests.append(ask(job(tmp_path / name, loadout))["digest"])
    (tmp_path / "three").mkdir()
    loadout = ties(stored(tmp_path / "three", draw(1), draw(2)), density=0.3)
    assert digests == [compose(job(tmp_path / "three", loadout)).digest] * 2


def test_a_merge_that_leaves_nothing_is_a_file_without_parameters(tmp_path: Path) -> None:
    """It is served like any other: as the base."""
    loadout = ties(stored(tmp_path, draw(1)), (0.0,))
    made = compose(job(tmp_path, loadout))
    assert made.resident_bytes == 0
    assert len(read_vector(ComposedStore(tmp_path).path(made.digest))) == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"pool_bytes": 1000}, r"takes \d{4} bytes on the device or more, .* the pool has 1000"),
        ({"composed_bytes": 1000}, r"bytes on disk or more, and composed loadouts have 1000"),
    ],
)
def test_a_loadout_too_large_is_refused_and_leaves_nothing(
    tmp_path: Path, limits: dict[str, int], message: str
) -> None:
    """The error says how much and what to do."""
    loadout = ties(stored(tmp_path, draw(1), draw(2)), density=0.9)
    with pytest.raises(PoolTooSmall, match=message) as caught:
        compose(job(tmp_path, loadout, **limits))
    assert "use a smaller density" in str(caught.value)
    assert composed_files(tmp_path) == []


def test_a_result_that_just_fits_is_composed(tmp_path: Path) -> None:
    """The limits are inclusive."""
    loadout = ties(stored(tmp_path, draw(1), draw(2)))
    made = compose(job(tmp_path, loadout))
    limits = {"pool_bytes": made.resident_bytes, "composed_bytes": made.nbytes}
    assert compose(job(tmp_path, loadout, **limits)) == made
    for name, value in limits.items():
        with pytest.raises(PoolTooSmall):
            compose(job(tmp_path, loadout, **{name: value - 1}))


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if not method.at_request])
def test_publish_time_methods_are_refused(name: str) -> None:
    """The error says how such a merge is made."""
    with pytest.raises(InvalidLoadout, match=rf"'{name}' .* `outfitter merge` and publish"):
        METHODS[name].check_at_request()


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if method.at_request])
def test_every_other_method_is_composed(tmp_path: Path, name: str) -> None:
    """As the merge in memory with the loadout's order and digests; the base where it counts."""
    vectors = dict(zip(stored(tmp_path, draw(1), draw(2)), (draw(1), draw(2)), strict=True))
    base_shapes = {UP: SHAPE, DOWN: SHAPE, NORM: SHAPE[1:], "embed.weight": (99, 30)}
    base = {key: np.zeros(shape, np.float32) for key, shape in base_shapes.items()}
    folder = save_checkpoint(tmp_path / "base", base)
    task = {"task": next(iter(vectors))} if name in ("tall_masks", "emr") else {}
    loadout = Loadout.build([LoadoutItem(digest, 1.0) for digest in vectors], name, task)
    made = compose(job(tmp_path, loadout, base_dir=str(folder)))
    sources = [MemorySource(item.digest, vectors[item.digest]) for item in loadout.items]
    parameters = dict(loadout.parameters)
    merged = MergedVector(sources, [1.0] * 2, name, parameters, base=Checkpoint.open(folder))
    expected = TaskVector(merged.base, dict(merged.deltas()))
    read = read_vector(ComposedStore(tmp_path).path(made.digest))
    assert set(read.parameters) == set(expected.parameters)
    assert len(expected) > 0
    for parameter in expected:
        np.testing.assert_array_equal(read.delta(parameter), expected.delta(parameter))


def test_the_size_of_the_base_is_asked_for_only_where_it_counts(tmp_path: Path) -> None:
    """Without a local folder of the base, the original TIES cannot be composed."""
    items = [LoadoutItem(digest, 1.0) for digest in stored(tmp_path, draw(1), draw(2))]
    with pytest.raises(InvalidLoadout, match="no local folder of the base"):
        compose(job(tmp_path, Loadout.build(items, "ties_original")))


@pytest.mark.parametrize(
    ("error", "message"),
    [(BaseMismatch, FINGERPRINT), (VectorNotFound, "no task vector")],
)
def test_errors_come_through_the_process(
    tmp_path: Path, error: type[TaskVectorError], message: str
) -> None:
    """By the name of their class, with their message."""
    digests = stored(tmp_path, draw(1), draw(2, fingerprint="0" * 64))
    if error is VectorNotFound:
        digests[1] = "e" * 64
    answer = ask(job(tmp_path, ties(digests)))
    assert answer["error"] == error.__name__
    assert message in str(answer["message"])
    assert composed_files(tmp_path) == []


def test_memory_is_bounded(tmp_path: Path) -> None:
    """What would take more is refused by the process itself, not by the kernel."""
    rng = np.random.default_rng(0)
    shape = (4096, 4096)
    digests = []
    for _ in range(2):
        a, b = (rng.standard_normal(size).astype(np.float32) for size in ((1, 4096), (4096, 1)))
        vector = TaskVector(BaseInfo("base"), {"up.weight": LowRankDelta(shape, a, b)})
        digests += stored(tmp_path, vector)
    answer = ask(job(tmp_path, ties(digests), memory_bytes=100 << 20))
    assert answer["error"] == "PoolTooSmall"
    assert "more than 104857600 bytes of memory" in str(answer["message"])


def test_a_process_whose_parent_is_gone_composes_nothing(tmp_path: Path) -> None:
    """It looks before it begins."""
    text = json.dumps({**asdict(job(tmp_path, ties(stored(tmp_path, draw(1))))), "parent": 1})
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert composed_files(tmp_path) == []


HARMLESS = """
import os, resource, sys, time
from taskvectors.harmless import become_harmless
become_harmless(os.getppid(), 1 << 30)
print(os.getpid(), os.nice(0), resource.getrlimit(resource.RLIMIT_DATA)[0], flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def test_the_process_yields_and_ends_with_its_parent() -> None:
    """Even when the parent is killed."""
    command = [sys.executable, "-c", PARENT, HARMLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, niceness, memory = (int(word) for word in parent.stdout.readline().split())
        child = psutil.Process(pid)
        assert niceness >= min(19, os.nice(0) + 10)
        assert memory == 1 << 30
        parent.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
