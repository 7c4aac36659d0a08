"""Time and memory of merging 8 sparse vectors: ours from files, mergekit on dense tensors.

    python -m tests.benchmarks.merging --model ~/.cache/outfitter/smollm2-135m-instruct

The shapes are the model's: the embedding, the norm, and as many layers as `--layers` says. Each
vector changes 1 % of every parameter, on a random support. Ours opens the files, checks their
digests, merges and writes a file of the result; mergekit's `merge_group` runs parameter by
parameter on a float32 base and 8 dense deltas, which are made outside the clock. Both have one
thread; they take turns, and each round starts with the other one. Processor seconds are given
beside those of the clock, because the machine may be shared. Peak memory is the resident set's of a
child process that merges once, beside that of one that only imports.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.bench.machine import write_result
from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Array, Shape, SparseDelta
from taskvectors.format import VectorReader, VectorWriter, read_vector
from taskvectors.merge import MergedVector, open_files, write_merged
from taskvectors.methods import find_method
from taskvectors.vector import BaseInfo

RESULTS = Path(__file__).parent / "results" / "merging.json"
SEED = 5
NUM_VECTORS = 8
DENSITY = 0.01
WEIGHTS = tuple(1.0 / (1 + k) for k in range(NUM_VECTORS))
METHODS: dict[str, dict[str, Any]] = {"linear": {}, "ties": {"density": 0.2, "normalize": True}}
THEIR_NAME = {"linear": "task_arithmetic", "ties": "ties"}
SIDES = ("ours", "mergekit", "imports of ours", "imports of mergekit")


Seconds = tuple[float, float]
"""By the clock, and of the processor."""


def main() -> None:
    """Run the benchmark, or one merge of it in a child process."""
    options = _parse()
    shapes = _shapes(options.model, options.layers)
    if options.child:
        _run_child(*options.child, options.folder, shapes)
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        make_vectors(options.folder, shapes)
        methods = {method: measure(method, shapes, options) for method in METHODS}
        nbytes = sum(path.stat().st_size for path in options.folder.glob("?.safetensors"))
    elements = sum(math.prod(shape) for shape in shapes.values())
    result = {
        "command": "python -m tests.benchmarks.merging --model"
        f" {str(options.model).replace(str(Path.home()), '~')}"
        f" --layers {options.layers} --rounds {options.rounds}",
        "seed": SEED,
        "what": "merge of 8 sparse vectors of 1 %; medians of all rounds; peak MiB of a process",
        "threads": 1,
        "elements": elements,
        "bytes_of_files": nbytes,
        "bytes_of_dense_deltas": 4 * NUM_VECTORS * elements,
        "methods": methods,
    }
    write_result(options.out, result)


def measure(
    method: str, shapes: dict[str, Shape], options: argparse.Namespace
) -> dict[str, object]:
    """Seconds and peak memory of both sides, and the largest difference of their results."""
    times: dict[str, list[Seconds]] = {"ours": [], "mergekit": []}
    for number in range(options.rounds):
        for side in ("ours", "mergekit") if number % 2 else ("mergekit", "ours"):
            merge = merge_ours if side == "ours" else merge_theirs
            times[side].append(merge(method, options.folder, shapes))
    return {
        "parameters": METHODS[method],
        "clock_seconds": {side: _median(t[0] for t in rows) for side, rows in times.items()},
        "processor_seconds": {side: _median(t[1] for t in rows) for side, rows in times.items()},
        "peak_mib": {side: _peak_of_child(side, method, options) for side in SIDES},
        "largest_difference": _largest_difference(method, options.folder, shapes),
        "largest_value": _largest_value(options.folder),
    }


def make_vectors(folder: Path, shapes: dict[str, Shape]) -> None:
    """NUM_VECTORS files with DENSITY of each parameter, normal float32 values."""
    rng = np.random.default_rng(SEED)
    for k in range(NUM_VECTORS):
        with VectorWriter(folder / f"{k}.safetensors", BaseInfo("base")) as writer:
            for name, shape in shapes.items():
                numel = math.prod(shape)
                count = max(1, round(DENSITY * numel))
                index = np.unique(rng.integers(0, numel, count))
                values = rng.standard_normal(len(index), np.float32) * np.float32(0.001)
                writer.add(name, SparseDelta(shape, index, values))
            (folder / f"{k}.digest").write_text(writer.finish({}))


def merge_ours(method: str, folder: Path, _shapes: dict[str, Shape]) -> Seconds:
    """From files to a file."""
    files = [
        ((folder / f"{k}.digest").read_text(), folder / f"{k}.safetensors")
        for k in range(NUM_VECTORS)
    ]
    parameters = dict(find_method(method).parse(METHODS[method]))
    begin = _now()
    with open_files(files) as sources:
        merged = MergedVector(sources, WEIGHTS, method, parameters)
        write_merged(merged, folder / "merged.safetensors", {})
    return _since(begin)


def merge_theirs(method: str, folder: Path, shapes: dict[str, Shape]) -> Seconds:
    """Within mergekit, over all parameters; nothing is read or written within them."""
    clock = processor = 0.0
    for _, _, seconds in their_merges(method, folder, shapes):
        clock, processor = clock + seconds[0], processor + seconds[1]
    return clock, processor


def their_merges(
    method: str, folder: Path, shapes: dict[str, Shape]
) -> Iterator[tuple[str, Array, Seconds]]:
    """Name, merged delta and seconds of each parameter."""
    import torch

    from tests.taskvectors.merge.oracles import merge_group

    torch.set_num_threads(1)
    with ExitStack() as stack:
        paths = [folder / f"{k}.safetensors" for k in range(NUM_VECTORS)]
        readers = [stack.enter_context(VectorReader(path)) for path in paths]
        for name, shape in shapes.items():
            tensors = [torch.zeros(shape)]
            tensors += [torch.from_numpy(reader.delta(name).to_dense()) for reader in readers]
            begin = _now()
            merged = merge_group(tensors, WEIGHTS, THEIR_NAME[method], METHODS[method])
            yield name, merged.numpy(), _since(begin)


def _largest_difference(method: str, folder: Path, shapes: dict[str, Shape]) -> float:
    merge_ours(method, folder, shapes)
    ours = read_vector(folder / "merged.safetensors")
    return max(
        float(np.abs(ours.delta(name) - theirs).max())
        for name, theirs, _ in their_merges(method, folder, shapes)
    )


def _largest_value(folder: Path) -> float:
    merged = read_vector(folder / "merged.safetensors")
    return max(float(np.abs(merged.delta(name)).max()) for name in merged)


def _run_child(side: str, method: str, folder: Path, shapes: dict[str, Shape]) -> None:
    if "mergekit" in side:
        import tests.taskvectors.merge.oracles  # noqa: F401
    if side == "ours":
        merge_ours(method, folder, shapes)
    elif side == "mergekit":
        merge_theirs(method, folder, shapes)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent, too
    print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) // 1024)  # type: ignore[index]


def _peak_of_child(side: str, method: str, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.merging", "--model", str(options.model)]
    command += ["--layers", str(options.layers), "--folder", str(options.folder)]
    answer = subprocess.run(
        [*command, "--child", side, method], check=True, capture_output=True, text=True
    )
    return int(answer.stdout.splitlines()[-1])


def _shapes(model: Path, layers: int) -> dict[str, Shape]:
    """Name to shape, without the layers from number `layers` on."""
    shapes = Checkpoint.open(model).shapes
    places = {name: re.search(r"\.layers\.(\d+)\.", name) for name in shapes}
    return {n: s for n, s in shapes.items() if (m := places[n]) is None or int(m[1]) < layers}


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _since(begin: Seconds) -> Seconds:
    clock, processor = _now()
    return clock - begin[0], processor - begin[1]


def _median(values: Iterable[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, for its shapes")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "METHOD"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
