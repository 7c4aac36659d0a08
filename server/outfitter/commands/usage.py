"""`outfitter usage`: what each key of a gateway used."""

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from outfitter.client import GatewayClient
from outfitter.commands.console import err, out
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig

PATH = "/v1/usage"
_COUNTS = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(
    first: Annotated[
        str | None, typer.Option("--from", help="First day, such as 2026-01-31, in UTC.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day.  [default: today]")] = None,
    group_by: Annotated[
        str, typer.Option(help="Some of day, tenant, key and model, with commas.")
    ] = "day,tenant,key,model",
    url: UrlOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show requests and tokens that were used: of all tenants for the operator, else your own."""
    if as_csv and as_json:
        raise InvalidConfig("--csv and --json exclude each other; choose one")
    asked = {"from": first, "to": last, "group_by": group_by}
    params = {name: value for name, value in asked.items() if value is not None}
    with GatewayClient(url or DEFAULT_URL) as gateway:
        if as_csv:
            content = gateway.request("GET", PATH, params={**params, "format": "csv"}).content
            typer.echo(content.decode(errors="replace"), nl=False)
            return
        found = gateway.json("GET", PATH, params=params)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    groups, rows = [str(name) for name in found.get("group_by", ())], found.get("data", [])
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in groups:
        table.add_column(name, overflow="fold")
    for name in _COUNTS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [escape(str(row.get(name, ""))) for name in groups]
        table.add_row(*cells, *(f"{int(row.get(name, 0)):,}" for name in _COUNTS))
    out.print(table)
    err.print(f"{found.get('from')} to {found.get('to')}, days in UTC; {len(rows)} rows")
