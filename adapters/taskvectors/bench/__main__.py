"""The benchmark without a gateway's libraries: `python -m taskvectors.bench --model DIR`."""

import argparse
import shlex
import sys
from pathlib import Path

from taskvectors.bench.machine import write_result
from taskvectors.bench.report import summary, text_table, to_json
from taskvectors.bench.run import run
from taskvectors.bench.settings import SCENARIOS, SEED, Settings
from taskvectors.errors import TaskVectorError


def main() -> int:
    """The status of the process: 0 whether or not goals are met."""
    options = _parse()
    try:
        outcome = run(_settings(options), None if options.silent else _tell)
        print(text_table(outcome), summary(outcome), sep="\n\n")
        if options.output is not None:
            write_result(options.output, to_json(outcome, _command()))
        if options.plot is not None:
            from taskvectors.bench.plot import write_png

            write_png(outcome, options.plot)
    except (TaskVectorError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m taskvectors.bench", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model's folder")
    parser.add_argument("--dtype", help="float32 on a CPU and bfloat16 on a GPU unless given")
    parser.add_argument("--batches", type=int, nargs="+", help="sizes of decode batches")
    parser.add_argument("--steps", type=int, help="rounds of decode steps at each batch")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="with commas")
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    parser.add_argument("--memory", type=float, help="share of the GPU for each engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller batches")
    parser.add_argument("--eager", action="store_true", help="without graphs and compilation")
    parser.add_argument("--silent", action="store_true", help="without progress")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    parser.add_argument("--plot", type=Path, help="a PNG file; needs matplotlib")
    return parser.parse_args()


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        model=options.model,
        dtype=options.dtype,
        batches=None if options.batches is None else tuple(options.batches),
        steps=options.steps,
        scenarios=tuple(options.scenarios.split(",")),
        dummy=options.dummy,
        memory=options.memory,
        threads=options.threads,
        eager=options.eager,
        seed=options.seed,
        quick=options.quick,
    )


def _tell(done: int, total: int, what: str) -> None:
    print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr)


def _command() -> str:
    """As anyone would type it: no home of this machine."""
    arguments = shlex.join(sys.argv[1:]).replace(str(Path.home()), "~")
    return f"python -m taskvectors.bench {arguments}"


if __name__ == "__main__":
    sys.exit(main())
