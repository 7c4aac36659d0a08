"""What `outfitter tune` tells: a table with a sentence, JSON, a picture."""

import json
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.commands.console import out, printable, say
from outfitter.tuning.intervals import Interval
from outfitter.tuning.plot import write_plot
from outfitter.tuning.report import Report


def tell(
    report: Report,
    fields: dict[str, Any],
    output: Path | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print the report, and write what is wanted of it. fields: all of it, as JSON.

    Raises OSError.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    if output is not None:
        partial = output.with_name(f".{output.name}.part")
        partial.write_text(text + "\n")
        partial.replace(output)
    if plot is not None:
        write_plot(report, plot)
    if as_json:
        typer.echo(text)
        return
    out.print(_table(report))
    rate = fields["run"]["evaluations_per_minute"]
    say(report.sentence + (f"; {rate:g} evaluations a minute" if rate else ""))


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("", "loadout"):
        table.add_column(head, overflow="fold")
    heads = (
        f"search ({report.num_search})",
        f"held out ({report.num_held_out})",
        "tuned is better by",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        lead = "" if row.lead is None else _shown(row.lead, "+.3f")
        cells = (
            row.what,
            row.loadout,
            f"{row.search:.3f}",
            _shown(row.held_out, ".3f"),
            lead,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _shown(interval: Interval, form: str) -> str:
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
