"""`outfitter bench`: what mixing costs on this machine, beside plain vLLM and its own LoRA."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from outfitter.commands.console import count_progress, err, out
from outfitter.commands.interference import check_outputs
from outfitter.config import DTYPES, InvalidConfig
from taskvectors.bench.engines import EngineFailed
from taskvectors.bench.machine import write_result
from taskvectors.bench.plot import write_png
from taskvectors.bench.report import HEADS, rows, summary, to_json
from taskvectors.bench.run import Outcome, run
from taskvectors.bench.settings import SCENARIOS, SEED, Settings

STYLES = {None: "", True: "green", False: "red"}


def bench(
    model: Annotated[
        Path, typer.Option(help="A Hugging Face model's folder.", file_okay=False, exists=True)
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Of the engines; else float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Sizes of decode batches, with commas: 1,16,64.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Rounds of decode steps at each batch.")] = None,
    scenarios: Annotated[str, typer.Option(help="What to measure, with commas.")] = ",".join(
        SCENARIOS
    ),
    dummy: Annotated[
        bool, typer.Option("--dummy", help="Random weights of the shape in config.json.")
    ] = False,
    memory: Annotated[
        float | None, typer.Option(help="Share of the GPU for each of three engines.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor threads of each engine.")] = 1,
    seed: Annotated[int, typer.Option(help="Of vectors, weights and turns.")] = SEED,
    eager: Annotated[bool, typer.Option("--eager", help="Without graphs and compilation.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="About two minutes: fewer rounds, smaller batches.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG.")] = None,
) -> None:
    """Measure plain vLLM, task vectors and vLLM's own LoRA in one run, with synthetic vectors."""
    if dtype is not None and dtype not in DTYPES:
        raise InvalidConfig(f"unsupported --dtype {dtype!r}; choose {', '.join(DTYPES)}")
    check_outputs(output, plot)
    settings = Settings(
        model,
        dtype,
        None if batches is None else _numbers(batches),
        steps,
        tuple(name.strip() for name in scenarios.split(",")),
        dummy,
        memory,
        threads,
        eager,
        seed,
        quick,
    )
    outcome = _run(settings)
    out.print(_table(outcome))
    out.print(summary(outcome), highlight=False)
    if output is not None:
        write_result(output, to_json(outcome, _command()))
    if plot is not None:
        write_png(outcome, plot)


def _run(settings: Settings) -> Outcome:
    with count_progress() as bar:
        task = bar.add_task("starting", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        try:
            return run(settings, show)
        except EngineFailed as error:  # with the last lines that the engine printed
            bar.stop()
            err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


def _table(outcome: Outcome) -> Table:
    table = Table(box=None)
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="right" if i in (1, 2) else "left")
    scenario = None
    for figure, row in zip(outcome.figures, rows(outcome), strict=True):
        if scenario not in (None, figure.scenario):
            table.add_section()
        scenario = figure.scenario
        table.add_row(*row.cells[:-1], f"[{STYLES[row.is_met] or 'none'}]{row.cells[-1]}[/]")
    return table


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidConfig(f"--batches must be numbers, not {text[:80]!r}; try 1,16,64") from error


def _command() -> str:
    """As anyone would type it: no home of this machine."""
    return "outfitter " + shlex.join(sys.argv[1:]).replace(str(Path.home()), "~")
