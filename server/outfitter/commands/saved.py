"""`outfitter loadout save`, `list`, `show`, `rollback`, `delete`: the models of a gateway."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.client import GatewayClient
from outfitter.commands.console import err, out, printable
from outfitter.commands.loadouts import MethodOption, SetOption, request_of
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig
from outfitter.state.records import FORBID, REQUEST_VECTORS

loadout = typer.Typer(
    help="Saved loadouts: models that are served by their name.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[str, typer.Argument(help="name, or namespace/name.")]
ReferenceArgument = Annotated[
    str, typer.Argument(help="name or namespace/name, for a version with @3.")
]
_COLUMNS = ("model", "vectors", "method", "request vectors", "description")


@loadout.command()
def save(
    name: NameArgument,
    vectors: Annotated[
        list[str],
        typer.Argument(metavar="VECTOR=WEIGHT...", help="Task vectors; without a weight: 1."),
    ],
    method: MethodOption = None,
    settings: SetOption = None,
    request_vectors: Annotated[
        str,
        typer.Option(help=f"What requests may add of their own: {', '.join(REQUEST_VECTORS)}."),
    ] = FORBID,
    description: Annotated[str | None, typer.Option(help="For people who choose a model.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save a mix under a name, as its next version: from then on it is a model."""
    if request_vectors not in REQUEST_VECTORS:
        right = ", ".join(REQUEST_VECTORS)
        raise InvalidConfig(f"unsupported --request-vectors {request_vectors!r}; choose {right}")
    fields: dict[str, Any] = {
        "name": name,
        "task_vectors": request_of(vectors, method, settings),
        "request_vectors": request_vectors,
        "description": description,
    }
    with GatewayClient(url or DEFAULT_URL) as client:
        _tell(client.save_loadout(fields), "saved", as_json=as_json)


@loadout.command("list")
def list_loadouts(
    name: Annotated[str | None, typer.Option(help="All versions of this one.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the saved loadouts of a gateway, or the versions of one."""
    with GatewayClient(url or DEFAULT_URL) as client:
        found = [*_pages(client, {} if name is None else {"name": name})]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column == "model")
    for saved in found:
        mark = " (latest)" if name is not None and saved.get("latest") is True else ""
        table.add_row(*(Text(printable(cell)) for cell in _cells(saved, mark)))
    out.print(table)


@loadout.command()
def show(reference: ReferenceArgument, url: UrlOption = None) -> None:
    """Print all that is known of a saved loadout, as JSON."""
    with GatewayClient(url or DEFAULT_URL) as client:
        typer.echo(json.dumps(client.loadout(reference), indent=2))


@loadout.command()
def rollback(
    name: NameArgument,
    to: Annotated[
        int | None, typer.Option(help="The version.  [default: the one before the latest]")
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a name mean another of its versions; running requests finish on the one they have."""
    with GatewayClient(url or DEFAULT_URL) as client:
        version = _before_latest(client, name) if to is None else to
        _tell(client.move_loadout(name, version), "serving", as_json=as_json)


@loadout.command()
def delete(reference: ReferenceArgument, url: UrlOption = None) -> None:
    """Forget a saved loadout, or one version of it."""
    with GatewayClient(url or DEFAULT_URL) as client:
        client.delete_loadout(reference)
    err.print(f"deleted: {printable(reference)}", highlight=False, markup=False)


def _pages(client: GatewayClient, query: Mapping[str, str | int]) -> Iterator[dict[str, Any]]:
    after: object = None
    while True:
        more = {"after": after} if isinstance(after, str) else {}
        page = client.loadouts({**query, "limit": 1000, **more})
        yield from page.get("data", [])
        after = page.get("after")
        if after is None:
            return


def _before_latest(client: GatewayClient, name: str) -> int:
    """Raises InvalidConfig where there is none."""
    versions = [*_pages(client, {"name": name})]
    latest = next((one["version"] for one in versions if one["latest"]), 0)
    older = [one["version"] for one in versions if one["version"] < latest]
    if not older:
        raise InvalidConfig(f"{name} has no version before {latest}; name one with --to")
    return int(max(older))


def _tell(saved: Mapping[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dict(saved), indent=2))
        return
    line = f"{what}: {saved.get('id')} ({saved.get('digest')})"
    err.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _cells(saved: Mapping[str, Any], mark: str) -> tuple[str, ...]:
    resolved = saved.get("resolved", {})
    return (
        f"{saved.get('id')}{mark}",
        str(len(resolved.get("vectors", []))),
        str(resolved.get("method", "-")),
        str(saved.get("request_vectors", "-")),
        str(saved.get("description") or "-"),
    )
