"""`outfitter key …`: the API keys of a tenant. A key itself goes to standard output, once."""

import json
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from outfitter.commands.accounts import AccountPlace, JsonOption, at_accounts
from outfitter.commands.console import out, say
from outfitter.commands.tenants import TenantArgument, day
from outfitter.config import parse_seconds
from outfitter.control.principal import Scope

key_commands = typer.Typer(help="API keys of a tenant.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its visible part, ofk_….")]


@key_commands.command()
@at_accounts
def create(
    place: AccountPlace,
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="What people call it.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What it may be used for: {', '.join(Scope)}; repeatable.", show_default="infer"
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it lives, such as 90d.", show_default="for ever")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is printed now, and nobody can see it again."""
    fields: dict[str, Any] = {"name": name, "scopes": scope or [str(Scope.INFER)]}
    if expires is not None:
        fields["expires_s"] = parse_seconds(expires)
    made = place.create_key(tenant, fields)
    _print_new(made, as_json=as_json)


@key_commands.command("list")
@at_accounts
def list_keys(
    place: AccountPlace,
    tenant: TenantArgument,
    as_json: JsonOption = False,
) -> None:
    """List the keys of a tenant, also those that are over."""
    found = place.keys(tenant)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("key", "name", "scopes", "state", "created", "expires", "last used", box=None)
    for row in found:
        times = (day(row[f"{what}_at"]) for what in ("created", "expires", "last_used"))
        table.add_row(row["id"], row["name"], " ".join(row["scopes"]), _state(row), *times)
    out.print(table)


@key_commands.command()
@at_accounts
def rotate(
    place: AccountPlace,
    tenant: TenantArgument,
    id_: IdArgument,
    grace: Annotated[str, typer.Option(help="How long the old one lives on.")] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Make a key that replaces another; the old one lives on for a while."""
    grace_s = parse_seconds(grace)
    made = place.rotate_key(tenant, id_, grace_s)
    _print_new(made, as_json=as_json)
    if not as_json:
        say(f"{id_} ends on {day(made['replaces']['expires_at'])} UTC")


@key_commands.command()
@at_accounts
def revoke(
    place: AccountPlace,
    tenant: TenantArgument,
    id_: IdArgument,
) -> None:
    """End a key now; every gateway knows it within a second."""
    place.revoke_key(tenant, id_)
    say(f"revoked {id_}")


def _print_new(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    scopes, ends = ", ".join(made["scopes"]), made["expires_at"]
    until = f", until {day(ends)} UTC" if ends is not None else ""
    say(f"a key of {made['tenant']} for {scopes}{until}; keep it, it is not shown again:")
    typer.echo(made["key"])


def _state(row: dict[str, Any]) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    ends = row["expires_at"]
    return "expired" if ends is not None and ends <= time.time() else "active"
