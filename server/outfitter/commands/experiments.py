"""`outfitter experiment …`: A/B tests of a gateway, from their definition to what was shipped."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.client import GatewayClient
from outfitter.commands.console import out, printable, say
from outfitter.commands.definitions import (
    given,
    grader_of,
    metric_of,
    numbers,
    read_definition,
    settings_of,
    step_of,
    unit_of,
    variants_of,
)
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig

experiment = typer.Typer(
    help="Experiments: which mix of skills serves users best.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[str, typer.Argument(help="name, or namespace/name.")]
FileOption = Annotated[
    Path | None, typer.Option("--file", help="JSON or YAML, as POST /v1/experiments takes it.")
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="VARIANT=WEIGHT", help="Part of the traffic; repeatable."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of it, as JSON; repeatable."),
]
_MIX = "json:0.8,legal:0.2, or a model such as acme/bot@3"
_COLUMNS = ("experiment", "status", "coverage", "variants", "primary", "hypothesis")


@experiment.command()
def create(
    name: NameArgument,
    control: Annotated[
        str | None, typer.Option(metavar="MIX", help=f"What the others are compared with: {_MIX}.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=MIX", help="What is compared; repeatable."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KIND][:up|down]", help="Repeatable; the first is the primary one."
        ),
    ] = None,
    guardrail: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=MARGIN", help="How much worse it may be; repeatable."),
    ] = None,
    grader: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RULE", help="regex:PATTERN or exact:TEXT; repeatable."),
    ] = None,
    weight: WeightOption = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=SHARE", help="Only mirror this share to it; repeatable."),
    ] = None,
    ramp: Annotated[
        list[str] | None,
        typer.Option(metavar="COVERAGE[:UNITS]", help="A step of the ramp; repeatable."),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="Who is assigned: user, key or header:NAME.")
    ] = None,
    file: FileOption = None,
    settings: SettingOption = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Define an experiment; `exp:NAME` is a model once it is started."""
    graders = [grader_of(text) for text in grader or []]
    metrics = [metric_of(text, [one["name"] for one in graders]) for text in metric or []]
    rails = numbers(guardrail or [], "--guardrail").items()
    options = {
        "name": name,
        "variants": variants_of(control, variant or [], shadow or [], weight or []),
        "metrics": metrics,
        "primary": metrics[0]["name"] if metrics else None,
        "guardrails": [{"metric": key, "margin": margin} for key, margin in rails],
        "graders": graders,
        "ramp": [step_of(text) for text in ramp or []],
        "unit": None if unit is None else unit_of(unit),
    }
    fields = {**read_definition(file), **given(options), **settings_of(settings or [])}
    with GatewayClient(url or DEFAULT_URL) as client:
        found = client.define_experiment(fields)
        if start:
            found = client.act_on_experiment(name, "start")
    _tell(found, as_json=as_json)


@experiment.command("list")
def list_experiments(
    status: Annotated[str | None, typer.Option(help="Only those that stand so.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the experiments of a gateway."""
    with GatewayClient(url or DEFAULT_URL) as client:
        found = [*_pages(client, {} if status is None else {"status": status})]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _print(_COLUMNS, (_cells(one) for one in found))


@experiment.command()
def show(name: NameArgument, url: UrlOption = None) -> None:
    """Print all that is known of an experiment, as JSON."""
    with GatewayClient(url or DEFAULT_URL) as client:
        typer.echo(json.dumps(client.experiment(name), indent=2))


@experiment.command()
def versions(name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List every version: who changed what, when, and by which figures."""
    with GatewayClient(url or DEFAULT_URL) as client:
        found = client.experiment(name, "versions")["data"]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    columns = ("version", "when (UTC)", "what", "by", "status", "coverage", "cause")
    _print(columns, (_version_cells(one) for one in found))


@experiment.command()
def edit(
    name: NameArgument,
    weight: WeightOption = None,
    settings: SettingOption = None,
    file: FileOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change weights, coverage and other fields, as the experiment's next version."""
    weights = numbers(weight or [], "--weight")
    fields = {
        **read_definition(file),
        **given({"weights": weights}),
        **settings_of(settings or []),
    }
    if not fields:
        raise InvalidConfig("nothing to change; say it with --weight, --set or --file")
    with GatewayClient(url or DEFAULT_URL) as client:
        _tell(client.change_experiment(name, fields), as_json=as_json)


@experiment.command()
def start(name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Assign units and count from now on, or go on after a pause."""
    _act(name, "start", url, as_json=as_json)


@experiment.command()
def pause(name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Serve the control to everybody and count nothing, until it is started again."""
    _act(name, "pause", url, as_json=as_json)


@experiment.command()
def stop(name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Serve the control to everybody, for good."""
    _act(name, "stop", url, as_json=as_json)


@experiment.command()
def ship(
    name: NameArgument,
    variant: Annotated[
        str | None, typer.Argument(help="The winner's key.  [default: the one that has won]")
    ] = None,
    save_as: Annotated[
        str | None, typer.Option("--as", help="The saved loadout that it becomes.")
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Write it into the base, for everybody.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an experiment with a winner, which everybody gets from then on."""
    wanted = given({"variant": variant, "as": save_as, "promote": promote or None})
    _act(name, "ship", url, wanted, as_json=as_json)


@experiment.command()
def delete(name: NameArgument, url: UrlOption = None) -> None:
    """Forget an experiment that does not run, with its versions and what it measured."""
    with GatewayClient(url or DEFAULT_URL) as client:
        client.delete_experiment(name)
    say(f"deleted: {name}")


def _act(
    name: str,
    action: str,
    url: str | None,
    fields: Mapping[str, Any] | None = None,
    *,
    as_json: bool,
) -> None:
    with GatewayClient(url or DEFAULT_URL) as client:
        _tell(client.act_on_experiment(name, action, fields), as_json=as_json)


def _pages(client: GatewayClient, query: Mapping[str, str | int]) -> Iterator[dict[str, Any]]:
    after: object = None
    while True:
        more = {"after": after} if isinstance(after, str) else {}
        page = client.experiments({**query, "limit": 1000, **more})
        yield from page.get("data", [])
        after = page.get("after")
        if after is None:
            return


def _tell(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dict(found), indent=2))
        return
    line = f"{found['status']}: {found['id']}, model {found['model']}"
    say(f"{line}, everybody gets {found['winner']}" if found.get("winner") else line)


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    shares = ", ".join(_share(one) for one in found["variants"])
    return (
        str(found["id"]),
        str(found["status"]),
        f"{found['coverage_now']:.0%}",
        shares,
        str(found["primary"] or "-"),
        str(found["hypothesis"] or "-"),
    )


def _share(variant: Mapping[str, Any]) -> str:
    if "shadow" in variant:
        return f"{variant['key']} (shadow {variant['shadow']:g})"
    return f"{variant['key']} {variant['weight']:g}"


def _version_cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found["at"]))
    by = ":".join(filter(None, (found["by"]["tenant"], found["by"]["key"])))
    coverage = f"{found['coverage_now']:.0%}"
    cause = _cause(found["figures"])
    return (str(found["version"]), when, found["action"], by, found["status"], coverage, cause)


def _cause(figures: Mapping[str, Any]) -> str:
    """In words where it says so itself; `show` and `--json` tell all."""
    if isinstance(reason := figures.get("reason"), str):
        return reason
    return json.dumps(dict(figures), ensure_ascii=False) if figures else "-"


def _print(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("experiment", "version"))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)
