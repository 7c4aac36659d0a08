"""`outfitter access`: who may see and use a task vector, a saved loadout or an experiment."""

import json
from typing import Annotated

import typer

from outfitter.commands.accounts import AccountPlace, JsonOption, at_accounts
from outfitter.commands.console import say
from outfitter.config import InvalidConfig
from outfitter.control.rights import Kind, Visibility


@at_accounts
def access(
    place: AccountPlace,
    name: Annotated[str, typer.Argument(help="namespace/name, or a name of the library.")],
    public: Annotated[
        bool | None, typer.Option("--public/--private", help="Whether everybody may use it.")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(metavar="TENANT", help="Let it use this; repeatable.")
    ] = None,
    unshare: Annotated[
        list[str] | None, typer.Option(metavar="TENANT", help="No longer; repeatable.")
    ] = None,
    loadout: Annotated[
        bool, typer.Option("--loadout", help="A saved loadout, not a task vector.")
    ] = False,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="An experiment, not a task vector.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show or change who may use a task vector, a saved loadout or an experiment."""
    if loadout and experiment:
        raise InvalidConfig("--loadout and --experiment exclude each other; choose one")
    kind = Kind.LOADOUT if loadout else Kind.EXPERIMENT if experiment else Kind.TASK_VECTOR
    found = place.access(kind, name)
    body: dict[str, object] = {}
    if public is not None:
        body["visibility"] = str(Visibility.PUBLIC if public else Visibility.PRIVATE)
    if share or unshare:
        shared = {*found["shared_with"], *(share or [])} - set(unshare or [])
        body["shared_with"] = sorted(shared)
    if body:
        found = place.set_access(kind, name, body)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    tenants = ", ".join(found["shared_with"])
    shared_with = f", shared with {tenants}" if tenants else ""
    say(f"{found['name']} is {found['visibility']}{shared_with}")
