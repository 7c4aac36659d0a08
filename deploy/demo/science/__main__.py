"""Measure and draw: `PYTHONPATH=deploy/demo python -m science evaluate`; then `report`, `plot`."""

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from make_base import default_base_dir
from skills import SPLIT_SEED

from science.analogy import analogy_cells, bound_cells
from science.cells import Bench, Cell, Journal
from science.density import coarse_cells, fine_cells, other_cells
from science.library import Library
from science.matrix import linear_cells, method_cells, pair_method_cells
from science.negation import negation_cells
from science.plots import draw_all
from science.probes import probes
from science.report import write_reports
from science.resident import Resident
from science.tables import all_tables

EXPERIMENTS = {
    "matrix": linear_cells,
    "density": coarse_cells,
    "negation": negation_cells,
    "analogy": analogy_cells,
    "methods": method_cells,
    "bound": bound_cells,
    "pairs": pair_method_cells,
    "fine": fine_cells,
    "others": other_cells,
}
"""In the order in which they are measured."""

DEMO = Path(__file__).parents[1]
ROOT = DEMO.parents[1]
LICENSE = ROOT / "LICENSE"
RESULTS = ROOT / "tests/benchmarks/results"


def evaluate(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.work / f"journal_{args.first}_{args.prompts}.jsonl")
    last = args.first + args.prompts - 1
    print(f"prompts {args.first} to {last}, split seed {SPLIT_SEED}, {journal.path}", flush=True)
    bench = Bench(Resident(args.base), probes(args.first, args.prompts), args.work, LICENSE)
    bench.measure_all(cells(args), journal)


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    library = Library(args.base, args.vectors, args.full)
    return chain.from_iterable(EXPERIMENTS[name](library) for name in args.only)


def report(args: argparse.Namespace) -> None:
    write_reports(args.work, args.vectors, args.results)


def plot(args: argparse.Namespace) -> None:
    draw_all(args.results, args.output)


def tables(args: argparse.Namespace) -> None:
    print(all_tables(args.results))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/science"), help="the journal")
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("evaluate", help="measure what the journal lacks")
    stage.set_defaults(run=evaluate)
    stage.add_argument("--base", type=Path, default=default_base_dir())
    stage.add_argument("--vectors", type=Path, default=DEMO / "vectors")
    stage.add_argument("--full", type=Path, required=True, help="--out of `train.py --full`")
    stage.add_argument("--first", type=int, default=0, help="prompt of the test split")
    stage.add_argument("--prompts", type=int, default=24, help="of each probe, from the first on")
    stage.add_argument("--threads", type=int, default=1)
    stage.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    stage = stages.add_parser("report", help="write the journal as result files")
    stage.set_defaults(run=report)
    stage.add_argument("--vectors", type=Path, default=DEMO / "vectors")
    stage.add_argument("--results", type=Path, default=RESULTS)
    stage = stages.add_parser("plot", help="draw the result files")
    stage.set_defaults(run=plot)
    stage.add_argument("--results", type=Path, default=RESULTS)
    stage.add_argument("-o", "--output", type=Path, default=ROOT / "docs/images")
    stage = stages.add_parser("tables", help="print the result files as Markdown")
    stage.set_defaults(run=tables)
    stage.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    args.run(args)
