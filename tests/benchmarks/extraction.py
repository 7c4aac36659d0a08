"""Time, memory and bytes of an extraction, beside a plain torch script and mergekit's own.

    python -m tests.benchmarks.extraction --model DIR --folder BIG -o FILE.json

Contenders take turns on one pair, round after round, each in a process of its own; medians are
reported. Then a synthetic pair of 1.5 billion parameters, made shard by shard in --folder (12 GB,
deleted afterwards), shows how memory grows with the model. Outfitter's times include the sha256 of
the base (lossless: of both), which the others have no equal of.
"""

import argparse
import importlib.metadata
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvectors.extract import Size, size_of
from taskvectors.format import FileHeader, read_header
from tests.benchmarks.engines import write_result
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
    """Run the benchmark of the command line."""
    options = _parse()
    environment = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tuned = finetune(options.model, folder / "tuned", SEED)
        small, sizes = _compare(options, tuned, folder, environment)
        shutil.rmtree(tuned)
        result = _result(options, small, sizes)
        write_result(options.output, result)
        large, elements = _grow(folder, environment)
    result["synthetic"] = {"parameters": elements, "contenders": large}
    write_result(options.output, result)


def _result(
    options: argparse.Namespace, small: Mapping[str, object], sizes: Mapping[str, object]
) -> dict[str, object]:
    return {
        "command": _command(),
        "seed": SEED,
        "mergekit": importlib.metadata.version("mergekit"),
        "threads": options.threads,
        "rounds": options.rounds,
        "what": "medians over the rounds of seconds, CPU seconds and peak memory of each process",
        "pair": f"{options.model.name} and a copy with a random dense update of {UPDATE}",
        "contenders": small,
        "sizes": sizes,
    }


def _compare(
    options: argparse.Namespace, tuned: Path, folder: Path, environment: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, object]]:
    """Usages of every contender on the small pair, and the sizes of our files."""
    usages: dict[str, list[Usage]] = {}
    sizes: dict[str, object] = {}
    commands = {name: _ours(arguments) for name, arguments in OURS.items()}
    commands |= {name: _torch(arguments) for name, arguments in TORCH.items()}
    for turn in range(options.rounds):
        for name, command in commands.items():
            out = folder / "out.safetensors"
            paths = [str(options.model), str(tuned), "-o", str(out)]
            if name in TORCH:
                paths.remove("-o")
            _note(usages, name, watch([*command, *paths], environment, TIMEOUT))
            if name in OURS and not turn:
                sizes[name] = _sizes(read_header(out))
            out.unlink()
    if options.mergekit:
        command = _mergekit(options.model, tuned, folder / "lora")
        _note(usages, MERGEKIT, watch(command, environment, TIMEOUT))
        file = folder / "lora" / "adapter_model.safetensors"
        sizes[MERGEKIT] = {"file": file.stat().st_size if file.exists() else None}
        shutil.rmtree(folder / "lora", ignore_errors=True)
    return {name: _median(values) for name, values in usages.items()}, sizes


def _grow(folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, object], int]:
    """Usages on the large pair, once each, and its elements."""
    base, tuned, elements = synthesize(folder / "large", SEED)
    usages: dict[str, list[Usage]] = {}
    for name, arguments in OURS.items():
        out = folder / "out.safetensors"
        command = [*_ours(arguments), str(base), str(tuned), "-o", str(out)]
        _note(usages, name, watch(command, environment, TIMEOUT))
        out.unlink(missing_ok=True)
    name = next(iter(TORCH))
    out = folder / "out.safetensors"
    command = [*_torch(TORCH[name]), str(base), str(tuned), str(out)]
    _note(usages, name, watch(command, environment, TIMEOUT))
    return {name: _median(values) for name, values in usages.items()}, elements


def _note(usages: dict[str, list[Usage]], name: str, usage: Usage | None) -> None:
    shown = f"took longer than {TIMEOUT:.0f} s" if usage is None else usage.fields()
    print(f"{name}: {shown}", flush=True)
    if usage is not None:
        usages.setdefault(name, []).append(usage)


def _median(usages: Sequence[Usage]) -> dict[str, float | int]:
    fields = [usage.fields() for usage in usages]
    medians = {key: round(statistics.median(f[key] for f in fields), 2) for key in fields[0]}
    return {**medians, "runs": len(usages)}


def _ours(arguments: Sequence[str]) -> list[str]:
    return [str(PROGRAMS / "outfitter"), "extract", *arguments]


def _torch(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.plain_torch", *arguments]


def _mergekit(base: Path, tuned: Path, out: Path) -> list[str]:
    sides = ["--model", str(tuned), "--base-model", str(base), "--out-path", str(out)]
    few = ["--include-regex", rf"layers\.[0-{MERGEKIT_LAYERS - 1}]\."]
    return [str(PROGRAMS / "mergekit-extract-lora"), *sides, "--max-rank", "16", *few]


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


def _command() -> str:
    """The command line as anyone would type it: no path of this machine."""
    return (
        "python -m tests.benchmarks.extraction --model smollm2-135m-instruct --folder BIG -o FILE"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-mergekit", dest="mergekit", action="store_false")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
