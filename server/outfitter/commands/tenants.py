"""`outfitter tenant …`: the organisations of a gateway or a store."""

import json
import shlex
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from outfitter.commands.accounts import (
    AccountPlace,
    DatabaseOption,
    JsonOption,
    KeyOption,
    at_accounts,
    open_accounts,
)
from outfitter.commands.console import out, say
from outfitter.commands.places import StoreOption, UrlOption
from outfitter.config import InvalidConfig
from outfitter.urls import shown

tenant = typer.Typer(help="Organisations, their namespaces and limits.", no_args_is_help=True)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Its name, such as acme.")]


@tenant.command()
def create(
    name: TenantArgument,
    url: UrlOption = None,
    key: KeyOption = None,
    store: StoreOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Make a tenant, with the namespace of its own name."""
    with open_accounts(url, store, key, database_url) as place:
        made = place.create_tenant(name)
    say(f"created the tenant {made['id']}, which owns {_namespaces(made)}")
    where = f"--url {shlex.quote(shown(url))}" if url else ""
    where = f"--store {shlex.quote(str(store))}" if store is not None else where
    scopes = "--scope infer --scope publish"
    say(f"make a key for it: outfitter key create {made['id']} {scopes} {where}".rstrip())


@tenant.command("list")
@at_accounts
def list_tenants(
    place: AccountPlace,
    as_json: JsonOption = False,
) -> None:
    """List the tenants."""
    found = place.tenants()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("tenant", "namespaces", "limits", "state", "created", box=None)
    for row in found:
        state = "disabled" if row["disabled"] else "active"
        limits = json.dumps(row["limits"]) if row["limits"] else "-"
        table.add_row(row["id"], _namespaces(row), limits, state, day(row["created_at"]))
    out.print(table)


@tenant.command()
@at_accounts
def show(
    place: AccountPlace,
    name: TenantArgument,
) -> None:
    """Show one tenant, as JSON."""
    typer.echo(json.dumps(place.tenant(name), indent=2))


@tenant.command()
@at_accounts
def disable(
    place: AccountPlace,
    name: TenantArgument,
) -> None:
    """Let no key of a tenant in any more; what it has stays."""
    place.set_disabled(name, True)
    say(f"the tenant {name} is disabled")


@tenant.command()
@at_accounts
def enable(
    place: AccountPlace,
    name: TenantArgument,
) -> None:
    """Let the keys of a disabled tenant in again."""
    place.set_disabled(name, False)
    say(f"the tenant {name} is enabled")


@tenant.command()
@at_accounts
def delete(
    place: AccountPlace,
    name: TenantArgument,
) -> None:
    """Forget a tenant that has no task vectors and loadouts any more, with its keys."""
    place.delete_tenant(name)
    say(f"deleted the tenant {name} and its keys")


@tenant.command()
@at_accounts
def namespace(
    place: AccountPlace,
    name: TenantArgument,
    add: Annotated[str | None, typer.Option(help="A namespace that is nobody's.")] = None,
    remove: Annotated[str | None, typer.Option(help="A namespace to take away.")] = None,
) -> None:
    """Give a tenant a namespace, or take it away."""
    if (add is None) == (remove is None):
        raise InvalidConfig("say either --add NAMESPACE or --remove NAMESPACE")
    found = place.set_namespace(name, str(add or remove), add is not None)
    say(f"the tenant {name} owns {_namespaces(found)}")


@tenant.command()
@at_accounts
def limits(
    place: AccountPlace,
    name: TenantArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A limit; null takes it away."),
    ] = None,
) -> None:
    """Show the limits of a tenant as JSON, or set some of them."""
    changes = dict(_setting(text) for text in settings or [])
    found = place.change_limits(name, changes) if changes else place.tenant(name)
    typer.echo(json.dumps(found["limits"], indent=2))


def day(moment: int | None) -> str:
    """A date and time in UTC; `-` for none."""
    return "-" if moment is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidConfig(f"unsupported --set {text[:80]!r}; use NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _namespaces(row: dict[str, Any]) -> str:
    return ", ".join(f"{namespace}/…" for namespace in row["namespaces"])
