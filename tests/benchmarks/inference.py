"""Inference by simulation: false verdicts under the null, power, mismatches, rollbacks.

`python -m tests.benchmarks.inference` writes tests/benchmarks/results/inference.json; the same
functions with fewer experiments are in tests/benchmarks/test_inference.py.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import drawing
from tests.benchmarks.adaptive import null_adaptive, null_adaptive_mean
from tests.benchmarks.simulations import (
    ALPHA_OF_ALL,
    PEEKS,
    SEED,
    mismatch,
    null_mean,
    null_proportion,
    null_returning,
    power_mean,
    power_proportion,
    rollback,
)

EXPERIMENTS = 2_000
RESULTS = Path(__file__).parent / "results" / "inference.json"


def scenarios(num: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name; num: of null experiments."""
    few = max(20, num // 10)
    return {
        "null/mean, normal": lambda: null_mean(drawing.normal(), num, 10_000),
        "null/mean, log-normal 1": lambda: null_mean(drawing.log_normal(1.0), num, 10_000),
        "null/mean, log-normal 1.5": lambda: null_mean(drawing.log_normal(1.5), num, 10_000),
        "null/mean, 4 variants": lambda: null_mean(drawing.log_normal(1.0), num, 5_000, 4),
        "null/mean, log-normal 1.5, 9 to 1": lambda: null_mean(
            drawing.log_normal(1.5), num, 3_000, controls=9
        ),
        "null/ratio of 0.02, 9 to 1": lambda: null_mean(
            drawing.ratio(0.02), num, 3_000, controls=9
        ),
        "null/mean, log-normal 1, Thompson": lambda: null_adaptive_mean(few, 5_000),
        "null/mean with a covariate": lambda: null_mean(drawing.covered(0.8), num, 5_000),
        "null/ratio of 0.3": lambda: null_mean(drawing.ratio(0.3), num, 5_000),
        "null/ratio of 0.02": lambda: null_mean(drawing.ratio(0.02), num, 5_000),
        "null/mean, units come back": lambda: null_returning("mean", num),
        "null/proportion, units come back": lambda: null_returning("proportion", num),
        "null/proportion of 0.5": lambda: null_proportion(0.5, num, 50_000),
        "null/proportion of 0.1": lambda: null_proportion(0.1, num, 50_000),
        "null/proportion of 0.001": lambda: null_proportion(0.001, num, 50_000),
        "null/proportion of 0.5, 4 variants": lambda: null_proportion(0.5, num, 50_000, 4),
        "null/proportion, half as much feedback": lambda: null_proportion(
            0.7, num, 20_000, answered=(0.4, 0.2)
        ),
        "null/proportion, Thompson": lambda: null_adaptive(0.3, few, 5_000),
        "power/mean, 5,000 units": lambda: power_mean(few, 2_500),
        "power/mean, 20,000 units": lambda: power_mean(few, 10_000),
        "power/proportion of 0.5, 5,000 units": lambda: power_proportion(0.5, num, 2_500),
        "power/proportion of 0.5, 20,000 units": lambda: power_proportion(0.5, num, 10_000),
        "power/proportion of 0.05, 20,000 units": lambda: power_proportion(0.05, num, 10_000),
        "mismatch/none": lambda: mismatch(num, 0.0, 5_000_000),
        "mismatch/1 % leak": lambda: mismatch(few, 0.01, 5_000_000),
        "mismatch/10 % leak": lambda: mismatch(few, 0.1, 5_000_000),
        "rollback/none planted": lambda: rollback(few, 5_000),
        "rollback/30 % slower": lambda: rollback(few, 5_000, slower=1.3),
        "rollback/errors from 1 to 5 %": lambda: rollback(few, 5_000, errors=0.05),
    }


def main() -> None:
    """Run all of them, and write what they found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    parser.add_argument("--only", default="")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, run in scenarios(options.experiments).items():
        if options.only in name:
            began = time.perf_counter()
            found[name] = run()
            found[name]["seconds"] = round(time.perf_counter() - began, 1)
            print(name, json.dumps(found[name]), flush=True)
    about = {
        "command": "python -m tests.benchmarks.inference",
        "seed": SEED,
        "alpha": ALPHA_OF_ALL,
        "peeks": PEEKS,
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    options.output.write_text(json.dumps({**about, "scenarios": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
