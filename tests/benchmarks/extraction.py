"""Time, memory and bytes of an extraction, beside a plain torch script and mergekit's own.

    python -m tests.benchmarks.extraction --model DIR --folder BIG -o FILE.json

Contenders take turns on one pair, round after round, each in a process of its own; medians are
reported. Then a synthetic pair of 1.5 billion parameters, made shard by shard in --folder (12 GB,
deleted afterwards), shows how memory grows with the model. Outfitter's times include the sha256 of
the base (lossless: of both), which the others have no equal of.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taskvectors.bench.machine import write_result
from taskvectors.extract import Size, size_of
from taskvectors.format import FileHeader, read_header
from tests.benchmarks.pairs import UPDATE, finetune, synthesize
from tests.benchmarks.processes import Usage, watch

SEED = 3
SHIRA_BYTES = 12
TIMEOUT = 900.0
PROGRAMS = Path(sys.executable).parent
OURS: Mapping[str, Sequence[str]] = {
    "outfitter, magnitude 1 %": ("--density", "0.01"),
    "outfitter, low rank 16": ("--method", "low-rank", "--rank", "16"),
    "outfitter, lossless": ("--lossless",),
}
TORCH: Mapping[str, Sequence[str]] = {
    "plain torch, top 1 %": ("--density", "0.01"),
    "plain torch, dense bf16": ("--dense",),
}
MERGEKIT_LAYERS = 6
MERGEKIT = f"mergekit-extract-lora, rank 16, first {MERGEKIT_LAYERS} layers only"


def main() -> None:
    """Run the parts of the benchmark that the command line names; keep the others' results."""
    options = _parse()
    environment = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    for part in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            fields = PARTS[part](options, Path(name), environment)
        known = json.loads(options.output.read_text()) if options.output.exists() else {}
        write_result(options.output, {**known, **_about(options), part: fields})


def _about(options: argparse.Namespace) -> dict[str, object]:
    return {
        "command": "python -m tests.benchmarks.extraction --model DIR --folder BIG -o FILE.json"
        f" --rounds {options.rounds} --threads {options.threads}",
        "seed": SEED,
        "mergekit": importlib.metadata.version("mergekit"),
        "what": "medians over the runs of seconds, CPU seconds and peak memory of each process",
        "update": f"random normal, of {UPDATE} on every weight, rounded to bf16",
    }


def _small(
    options: argparse.Namespace, folder: Path, environment: Mapping[str, str]
) -> dict[str, object]:
    """Usages of ours and plain torch on the small pair, in turns, and the sizes of our files."""
    tuned, out = finetune(options.model, folder / "tuned", SEED), folder / "out.safetensors"
    usages: dict[str, list[Usage]] = {}
    sizes: dict[str, object] = {}
    for turn in range(options.rounds):
        for name in (*OURS, *TORCH):
            command = _command(name, options.model, tuned, out)
            _note(usages, name, watch(command, environment, TIMEOUT))
            if name in OURS and not turn and out.exists():
                sizes[name] = _sizes(read_header(out))
            out.unlink(missing_ok=True)
    return {"contenders": _medians(usages), "bytes": sizes}


def _mergekit(
    options: argparse.Namespace, folder: Path, environment: Mapping[str, str]
) -> dict[str, object]:
    """Usage of mergekit's own extraction, a full decomposition of every matrix, once."""
    tuned = finetune(options.model, folder / "tuned", SEED)
    sides = ["--model", str(tuned), "--base-model", str(options.model)]
    few = ["--include-regex", rf"layers\.[0-{MERGEKIT_LAYERS - 1}]\."]
    command = [str(PROGRAMS / "mergekit-extract-lora"), *sides, "--out-path", str(folder / "lora")]
    usages: dict[str, list[Usage]] = {}
    _note(usages, MERGEKIT, watch([*command, "--max-rank", "16", *few], environment, TIMEOUT))
    return {"contenders": _medians(usages)}


def _large(
    options: argparse.Namespace, folder: Path, environment: Mapping[str, str]
) -> dict[str, object]:
    """Usages on the large pair, once each."""
    base, tuned, elements = synthesize(folder / "pair", SEED)
    out = folder / "out.safetensors"
    usages: dict[str, list[Usage]] = {}
    for name in (*OURS, *TORCH)[: options.large]:
        _note(usages, name, watch(_command(name, base, tuned, out), environment, TIMEOUT))
        out.unlink(missing_ok=True)
    return {"parameters": elements, "contenders": _medians(usages)}


PARTS: Mapping[str, Callable[..., dict[str, object]]] = {
    "small": _small,
    "mergekit": _mergekit,
    "large": _large,
}


def _note(usages: dict[str, list[Usage]], name: str, usage: Usage | None) -> None:
    shown = f"took longer than {TIMEOUT:.0f} s" if usage is None else usage.fields()
    print(f"{name}: {shown}", flush=True)
    if usage is not None:
        usages.setdefault(name, []).append(usage)


def _median(usages: Sequence[Usage]) -> dict[str, float | int]:
    fields = [usage.fields() for usage in usages]
    medians = {key: round(statistics.median(f[key] for f in fields), 2) for key in fields[0]}
    return {**medians, "runs": len(usages)}


def _medians(usages: Mapping[str, Sequence[Usage]]) -> dict[str, object]:
    return {name: _median(values) for name, values in usages.items()}


def _command(name: str, base: Path, tuned: Path, out: Path) -> list[str]:
    sides = [str(base), str(tuned)]
    if name in OURS:
        return [str(PROGRAMS / "outfitter"), "extract", *sides, "-o", str(out), *OURS[name]]
    return [sys.executable, "-m", "tests.benchmarks.plain_torch", *sides, str(out), *TORCH[name]]


def _sizes(header: FileHeader) -> dict[str, object]:
    """Bytes of our file, and of the same values in other layouts."""
    total = sum((size_of(header, name) for name in header.parameters), Size())
    sparse = [spec for spec in header.parameters.values() if spec.kind == "sparse"]
    others = total.nbytes - sum(spec.nbytes for spec in sparse)
    fields: dict[str, object] = {
        "file": header.nbytes,
        "entropy_bound": round(total.bound),
        "bf16_dense": 2 * total.numel,
        "exceptions": total.exceptions,
    }
    if sparse:
        fields["peft_shira_layout"] = SHIRA_BYTES * sum(spec.nnz for spec in sparse) + others
        fields["bytes_per_nonzero"] = round(
            sum(spec.nbytes for spec in sparse) / sum(spec.nnz for spec in sparse), 3
        )
    return fields


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--large", type=int, default=len(OURS) + 1, help="contenders on it")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
