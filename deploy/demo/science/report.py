"""From the journal to result files: rates with intervals, and where and how they were measured."""

import json
import os
import platform
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from skills import SKILLS

from science.cells import rounds
from science.conflict import KEPT_BY, against_linear, conflict, figures_of, kept
from science.intervals import rate_of

Facts = dict[str, Any]

FILES = {
    "matrix": "science_matrix.json",
    "density": "science_density.json",
    "negation": "science_negation.json",
    "analogy": "science_analogy.json",
    "bound": "science_bound.json",
}
COMMAND = "PYTHONPATH=deploy/demo python -m science report"
CONFLICT_FILE = "science_conflict.json"
KEEP = ("size", "nll", "examples", "build_seconds", "seconds")
PACKAGES = ("outfitter", "torch", "transformers", "numpy", "peft")


def write_reports(work: Path, vectors: Path, out: Path) -> None:
    """One file an experiment; a pair needs its singles, so conflict waits for the whole matrix."""
    out.mkdir(parents=True, exist_ok=True)
    head, cells = provenance(), rounds(work)
    for experiment, file in FILES.items():
        rows = [reported(r) for r in cells.values() if r["experiment"] == experiment]
        if rows:
            more = {"against_linear": against_linear(cells)} if experiment == "matrix" else {}
            write(out / file, {**head, "experiment": experiment, **more, "rows": rows})
    if all(f"{'+'.join(pair)} by linear" in cells for pair in combinations(SKILLS, 2)):
        figures = figures_of(vectors, work / "interference.json")
        write(out / CONFLICT_FILE, {**head, "experiment": "conflict", **conflict(cells, figures)})


def reported(row: Facts) -> Facts:
    """The journal's row with rates in place of strings; `kept` counts mixed styles, too."""
    asked = row["passes"]
    rates = {column: rate_of(passes) for column, passes in asked.items()}
    complete = [skill for skill, columns in KEPT_BY.items() if asked.keys() >= set(columns)]
    others = {k: v for k, v in row.items() if k not in ("passes", "experiment", *KEEP)}
    return {
        **others,
        "rates": rates,
        "kept": {skill: rate_of(kept(row, skill)) for skill in complete},
        **{key: row[key] for key in KEEP},
    }


def provenance() -> Facts:
    """Command, versions and machine."""
    return {
        "command": COMMAND,
        "precision": "float32, greedy, base weights + dense delta, transformers",
        "interval": "95 %, Wilson",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": 1},
    }


def write(path: Path, value: Facts) -> None:
    """In one step."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
