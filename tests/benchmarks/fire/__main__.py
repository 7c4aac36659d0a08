"""Fight for some minutes; write the result and the curves."""

import argparse
import json
import sys
from pathlib import Path

from taskvectors.bench.machine import write_result
from tests.benchmarks.fire.battle import Plan, fight
from tests.benchmarks.fire.watch import plot

RESULTS = Path(__file__).parents[1] / "results" / "fire.json"
STAND_IN = "a stand-in that answers as fast as it can (tests/outfitter/fake_engine.py)"


def main() -> int:
    """0 if nothing was found that must not be."""
    options = _parse()
    plan = Plan(60 * options.minutes, options.seed, options.clients, options.model)
    print(f"seed {plan.seed}", flush=True)
    found, book = fight(plan)
    engine = STAND_IN if options.model is None else f"vLLM with {options.model.name}"
    result = {
        "what": "requests under saturating load while engine, Valkey and PostgreSQL are killed",
        "command": f"python -m tests.benchmarks.fire --minutes {options.minutes:g}"
        f" --clients {options.clients} --seed {options.seed}",
        "seed": options.seed,
        "engine": engine,
        **found,
    }
    write_result(options.out, result)
    plot(options.out.with_suffix(".png"), found["samples"], found["killed_at"])
    shown = {k: v for k, v in found.items() if k not in ("samples", "killed_at", "settings")}
    print(json.dumps(shown, indent=1))
    return 1 if book.num_problems else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=96)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--model", type=Path, help="a checkpoint folder; else the stand-in engine")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
