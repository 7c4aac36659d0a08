"""Time a decode step: plain vLLM, the plugin, and vLLM's own LoRA, side by side in one run.

    python -m tests.benchmarks.decode --model DIR --dtype float32 -o tests/benchmarks/results/X.json

All engines are up at once and take turns, round after round; a ratio compares two engines within
one round, and the median over the rounds is reported.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.format import file_digest
from taskvectors.store import DirectoryStore
from tests.benchmarks.adapters import write_lora
from tests.benchmarks.engines import Adapter, Engine, EngineSpec, Kind, loadout, write_result
from tests.end_to_end.synthetic import Maker

SEED = 3
DISTINCT = 16


@dataclass(frozen=True)
class Scenario:
    """One way to serve the batch."""

    name: str
    engine: Kind
    adapters: Sequence[Adapter]


def main() -> None:
    """Run the benchmark of the command line."""
    options = _parse()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scenarios, store = _scenarios(_shapes(options), Path(folder))
        extra = _engine_arguments(options)
        specs = [
            EngineSpec(kind, options.model, options.dtype, store, slots=DISTINCT, extra=extra)
            for kind in ("plain", "plugin", "stock")
        ]
        engines = {spec.kind: stack.enter_context(Engine(spec)) for spec in specs}
        seconds = {batch: _measure(engines, scenarios, batch, options) for batch in options.batch}
    result = {
        "command": _command(),
        "seed": SEED,
        "what": "median seconds of a decode step; ratios are plain / scenario within a round",
        "dtype": options.dtype,
        "rounds": options.rounds,
        "steps": options.steps,
        "prompt_tokens": options.prompt,
        "vectors": "4 low-rank (r8, r16), 4 sparse (1 %); each loadout mixes two",
        "batches": {str(batch): _summary(times) for batch, times in seconds.items()},
    }
    write_result(options.output, result)
    _print(result["batches"])


def _command() -> str:
    """The command line as anyone would type it: no path of this machine."""
    arguments = " ".join(sys.argv[1:]).replace(str(Path.home()), "~")
    return f"python -m tests.benchmarks.decode {arguments}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--memory", type=float, help="share of the GPU for each of three engines")
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def _engine_arguments(options: argparse.Namespace) -> dict[str, object]:
    arguments: dict[str, object] = {}
    if options.dummy:
        arguments |= {"load_format": "dummy", "skip_tokenizer_init": True}
    if options.memory is not None:
        arguments["gpu_memory_utilization"] = options.memory
    return arguments


def _shapes(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Parameter shapes; of a model without weights, from its config."""
    if not options.dummy:
        return dict(Checkpoint.open(options.model).shapes)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _scenarios(shapes: dict[str, tuple[int, ...]], folder: Path) -> tuple[list[Scenario], Path]:
    """Eight vectors in a store, sixteen PEFT adapters, and the batches that use them."""
    maker = Maker(shapes, None, folder)
    store = DirectoryStore(folder / "store")
    vectors = [maker.low_rank(f"l{i}", i, rank=8 * (1 + i % 2), size=0.02) for i in range(4)]
    vectors += [maker.sparse(f"s{i}", i, size=0.02) for i in range(4)]
    digests = [store.add(vector.path) for vector in vectors]
    assert digests == [file_digest(vector.path) for vector in vectors]
    generator = np.random.default_rng(SEED)
    loadouts = []
    for i in range(DISTINCT):
        pair = digests[i % 4], digests[4 + (i // 4 + i) % 4]
        loadouts.append(loadout({d: float(generator.uniform(0.2, 1.0)) for d in pair}))
    stock = [write_lora(folder / f"a{i}", shapes, rank=8, seed=i) for i in range(DISTINCT)]
    return [
        Scenario("plain", "plain", [None]),
        Scenario("plugin, base only", "plugin", [None]),
        Scenario("plugin, one loadout", "plugin", loadouts[:1]),
        Scenario(f"plugin, {DISTINCT} loadouts", "plugin", loadouts),
        Scenario("stock LoRA, base only", "stock", [None]),
        Scenario("stock LoRA r8, one adapter", "stock", stock[:1]),
        Scenario(f"stock LoRA r8, {DISTINCT} adapters", "stock", stock),
    ], folder / "store"


def _measure(
    engines: dict[Kind, Engine], scenarios: list[Scenario], batch: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    fitting = [s for s in scenarios if len(s.adapters) <= batch]
    times: dict[str, list[float]] = {scenario.name: [] for scenario in fitting}
    for turn in range(options.rounds + 1):
        for scenario in fitting:
            seconds = engines[scenario.engine].decode(
                batch, scenario.adapters, options.steps, options.prompt
            )
            if turn:  # the first round warms up
                times[scenario.name].append(seconds)
    return times


def _summary(times: dict[str, list[float]]) -> dict[str, object]:
    return {
        name: {
            "median_seconds": statistics.median(values),
            "plain_over_this": statistics.median(
                plain / own for plain, own in zip(times["plain"], values, strict=True)
            ),
            "seconds": values,
        }
        for name, values in times.items()
    }


def _print(batches: object) -> None:
    assert isinstance(batches, dict)
    for batch, rows in batches.items():
        print(f"batch {batch}: plain's step time over each one's (1.00 = as fast as plain)")
        for name, row in rows.items():
            ms = 1000 * row["median_seconds"]
            print(f"  {name:32s} {row['plain_over_this']:6.2f}   {ms:8.1f} ms")


if __name__ == "__main__":
    main()
