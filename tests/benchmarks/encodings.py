"""Bytes per stored value of each encoding of a sparse parameter, beside the entropy bound.

    python -m tests.benchmarks.encodings

The parameter is 4096 × 4096 with a random support and normal values; sizes come from files that
the writer made. The figures are the same on any machine.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from taskvectors.delta import SparseDelta
from taskvectors.format import VectorWriter, read_header
from taskvectors.vector import BaseInfo

RESULTS = Path(__file__).parent / "results" / "encodings.json"
SHAPE = (4096, 4096)
DENSITIES = (0.005, 0.01, 0.05, 0.1, 0.2)
SEED = 7
VALUE_BITS = {"bf16": 16, "int8": 8, "ternary": 1}
INDICES = ("u8", "u16", "bitmap")


def random_delta(density: float, shape: tuple[int, ...] = SHAPE) -> SparseDelta:
    """round(density * elements) entries, any of them as likely, with normal float32 values."""
    rng = np.random.default_rng(SEED)
    numel = math.prod(shape)
    index = np.sort(rng.choice(numel, round(density * numel), replace=False))
    return SparseDelta(shape, index, rng.standard_normal(len(index), np.float32) * 0.001)


def entropy_bound(density: float, value_bits: int) -> float:
    """Bytes per value that no coding of a random support is below: (H(d) / d + value bits) / 8.

    H(d) = -d log2 d - (1 - d) log2 (1 - d), the entropy of "is this element in the support".
    """
    rest = 1 - density
    entropy = -density * math.log2(density) - rest * math.log2(rest)
    return (entropy / density + value_bits) / 8


def bytes_per_value(delta: SparseDelta, values: str, index: str) -> float:
    """Bytes of the parameter's tensors in a file, over its stored values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        with VectorWriter(path, BaseInfo("b"), value_dtype=values, index=index) as writer:
            writer.add("w", delta)
            writer.finish({})
        spec = read_header(path).parameters["w"]
    return spec.nbytes / spec.nnz


def measure(shape: tuple[int, ...] = SHAPE) -> Iterator[dict[str, object]]:
    """One row per encoding: its bytes per value at each density, rounded to 4 digits."""
    deltas = {density: random_delta(density, shape) for density in DENSITIES}
    for values, bits in VALUE_BITS.items():
        for index in INDICES:
            sizes = {
                f"{density:g}": round(bytes_per_value(delta, values, index), 4)
                for density, delta in deltas.items()
            }
            yield {"values": values, "index": index, "bytes_per_value": sizes}
        bounds = {f"{density:g}": round(entropy_bound(density, bits), 4) for density in DENSITIES}
        yield {"values": values, "index": "entropy bound", "bytes_per_value": bounds}


def as_table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown, for docs/format.md."""
    lines = ["| values | index | " + " | ".join(f"{d:.3g} %" for d in _percent()) + " |"]
    lines.append("|---|---|" + "---|" * len(DENSITIES))
    for row in rows:
        sizes = row["bytes_per_value"]
        assert isinstance(sizes, dict)
        cells = " | ".join(f"{size:.2f}" for size in sizes.values())
        lines.append(f"| {row['values']} | {row['index']} | {cells} |")
    return "\n".join(lines)


def _percent() -> list[float]:
    return [100 * density for density in DENSITIES]


def main() -> None:
    """Measure, write the result, print the table."""
    rows = list(measure())
    result = {
        "what": "bytes of a sparse parameter's tensors per stored value; random support",
        "command": "python -m tests.benchmarks.encodings",
        "shape": list(SHAPE),
        "seed": SEED,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(as_table(rows))


if __name__ == "__main__":
    main()
