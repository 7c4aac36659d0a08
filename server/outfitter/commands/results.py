"""`outfitter experiment results`, `veto` and `events`: what it found, and what it may do."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.client import GatewayClient
from outfitter.commands.console import out, printable, say
from outfitter.commands.experiments import JsonOption, NameArgument, experiment
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig

__all__ = ["experiment"]

_COLUMNS = ("metric", "role", "variant", "units", "value", "difference", "interval", "lift", "p")


@experiment.command()
def results(
    name: NameArgument,
    url: UrlOption = None,
    as_json: JsonOption = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a row per metric and variant.")
    ] = False,
) -> None:
    """Print what an experiment found, valid at any time, and what follows."""
    if as_json and as_csv:
        raise InvalidConfig("--json and --csv exclude each other; choose one")
    with GatewayClient(url or DEFAULT_URL) as client:
        if as_csv:
            typer.echo(client.experiment_text(name, "results?format=csv"), nl=False)
            return
        found = client.experiment(name, "results")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    verdict, units = found["verdict"], found["units"]
    say(f"{verdict['kind'].replace('_', ' ')}: {verdict['reason']}")
    out.print(_table(found))
    for rail in found["guardrails"]:
        say(_rail(rail))
    for shadow in found["shadows"]:
        say(_shadow(shadow))
    if found["metrics"] and found["metrics"][0]["comparisons"]:
        alpha = found["metrics"][0]["comparisons"][0]["alpha"]
        say(f"each interval holds at all looks together, but for a chance of {alpha:.3g}")
    say(f"units came as planned with p = {units['p_value_any_time']:.3g} (at any time)")
    if found["pending"]:
        say(f"pending: {found['pending']['act']}; `outfitter experiment veto {name}` forbids it")


@experiment.command()
def veto(
    name: NameArgument,
    act: Annotated[
        str | None,
        typer.Argument(help="rollback, drop, ramp, ship, weights, or one act such as ramp:2."),
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Allow it again.")] = False,
    url: UrlOption = None,
) -> None:
    """Forbid what an experiment would do by itself: what is pending, or what is named."""
    wanted = {**({} if act is None else {"act": act}), **({"lift": True} if lift else {})}
    with GatewayClient(url or DEFAULT_URL) as client:
        found = client.act_on_experiment(name, "veto", wanted)
    say(f"{found['id']} must not do by itself: {', '.join(found['forbidden']) or 'nothing'}")


@experiment.command()
def events(name: NameArgument, url: UrlOption = None) -> None:
    """Print every request that was recorded, with its feedback, as CSV."""
    with GatewayClient(url or DEFAULT_URL) as client:
        typer.echo(client.experiment_text(name, "events"), nl=False)


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        is_number = column not in ("metric", "role", "variant")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    for metric in found["metrics"]:
        for row in _rows(metric):
            table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _rows(metric: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    compared = {one["variant"]: one for one in metric["comparisons"]}
    for key, arm in metric["variants"].items():
        one = compared.get(key, {})
        is_known = one.get("lower") is not None
        span = f"{one['lower']:.4g} to {one['upper']:.4g}" if is_known else one.get("waits_for")
        yield (
            metric["name"],
            metric["role"],
            key,
            f"{arm['units']:,}",
            _number(arm["value"]),
            _number(one.get("effect")),
            f"waits for {span}" if one and not is_known else str(span or "-"),
            f"{one['lift']:+.1%}" if one.get("lift") is not None else "-",
            _number(one.get("p_value"), ".2g"),
        )


def _rail(rail: Mapping[str, Any]) -> str:
    line = f"guardrail {rail['metric']}, {rail['variant']}: {rail['state']}"
    if rail["lower"] is None:
        return f"{line}, waits for {rail['waits_for']}"
    span = f"{rail['lower']:.4g} to {rail['upper']:.4g}"
    return f"{line}; variant − {rail['factor']:.4g} × control is {span}"


def _shadow(shadow: Mapping[str, Any]) -> str:
    line = f"shadow {shadow['variant']}: {shadow['requests']:,} requests mirrored"
    told = [
        f"{one['name']} {_number(one['value'])} against {_number(one['original'])}"
        for one in shadow["metrics"]
        if one["pairs"]
    ]
    return f"{line}; {', '.join(told)}" if told else line


def _number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)
