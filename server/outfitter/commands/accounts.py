"""Where commands find tenants, keys and rights: at a running gateway, or in a store's database."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import quote

import typer

from outfitter.client import KEY_VARIABLE, GatewayClient
from outfitter.commands.options import LocalStore
from outfitter.commands.places import DEFAULT_URL, StoreOption, UrlOption
from outfitter.config import InvalidConfig
from outfitter.control.rights import Kind

PAGE = 1000

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", envvar=KEY_VARIABLE, show_envvar=True, help="An API key for the gateway at --url."
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(help="The catalog of the store at --store.", show_default="as for `serve`"),
]
_PLACE = {
    "url": UrlOption,
    "key": KeyOption,
    "store": StoreOption,
    "database_url": DatabaseOption,
}
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


Command = Callable[..., None]


def at_accounts(command: Command) -> Command:
    """A command that is given an `AccountPlace` first, by four options that say where that is."""

    @wraps(command)
    def found(**given: Any) -> None:
        url, key, store, database_url = (given.pop(name) for name in _PLACE)
        with open_accounts(url, store, key, database_url) as place:
            command(place, **given)

    _, *own = signature(command).parameters.values()
    more = [
        Parameter(k, Parameter.KEYWORD_ONLY, default=None, annotation=_PLACE[k]) for k in _PLACE
    ]
    told = [*(one.replace(kind=Parameter.KEYWORD_ONLY) for one in own), *more]
    found.__signature__ = Signature(told)  # type: ignore[attr-defined]
    found.__annotations__ = {one.name: one.annotation for one in told}
    return found


class AccountPlace(Protocol):
    """What commands need of either; answers are those of the gateway's routes."""

    def create_tenant(self, name: str) -> dict[str, Any]:
        """A tenant."""
        ...

    def tenants(self) -> list[dict[str, Any]]:
        """All of them."""
        ...

    def tenant(self, name: str) -> dict[str, Any]:
        """One of them."""
        ...

    def set_disabled(self, name: str, is_disabled: bool) -> dict[str, Any]:
        """Let its keys in, or not."""
        ...

    def delete_tenant(self, name: str) -> None:
        """Forget it."""
        ...

    def set_namespace(self, name: str, namespace: str, is_added: bool) -> dict[str, Any]:
        """Give it a namespace, or take it away."""
        ...

    def change_limits(self, name: str, changes: Mapping[str, object]) -> dict[str, Any]:
        """Set some of its limits."""
        ...

    def create_key(self, tenant: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A key with its text. fields: name, scopes, expires_s."""
        ...

    def keys(self, tenant: str) -> list[dict[str, Any]]:
        """All keys of a tenant."""
        ...

    def revoke_key(self, tenant: str, id_: str) -> dict[str, Any]:
        """End a key."""
        ...

    def rotate_key(self, tenant: str, id_: str, grace_s: float) -> dict[str, Any]:
        """A new key with its text, for an old one."""
        ...

    def access(self, kind: Kind, name: str) -> dict[str, Any]:
        """Who may see a name."""
        ...

    def set_access(self, kind: Kind, name: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Say so."""
        ...


@contextmanager
def open_accounts(
    url: str | None, store: Path | None, key: str | None, database_url: str | None = None
) -> Iterator[AccountPlace]:
    """The gateway or the store's database that the options name; raises InvalidConfig."""
    if url is not None and store is not None:
        raise InvalidConfig("--url and --store exclude each other; choose one")
    if database_url is not None and store is None:
        raise InvalidConfig("--database-url is for --store, the folder of the same store")
    if store is None:
        with GatewayClient(url or DEFAULT_URL, key) as client:
            yield _Remote(client)
        return
    local = LocalStore.of(store, os.environ)
    if database_url is not None:
        local = replace(local, database_url=database_url)
    from outfitter.commands.local_accounts import local_accounts  # with all that a gateway needs

    with local.open() as vectors:
        yield local_accounts(vectors)


class _Remote:
    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def create_tenant(self, name: str) -> dict[str, Any]:
        return self._client.json("POST", "/v1/tenants", json={"name": name})

    def tenants(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        params: dict[str, str | int] = {"limit": PAGE}
        while True:
            page = self._client.json("GET", "/v1/tenants", params=params)
            found += page["data"]
            if not page["has_more"]:
                return found
            params["after"] = page["after"]

    def tenant(self, name: str) -> dict[str, Any]:
        return self._client.json("GET", _path(name))

    def set_disabled(self, name: str, is_disabled: bool) -> dict[str, Any]:
        return self._client.json("PATCH", _path(name), json={"disabled": is_disabled})

    def delete_tenant(self, name: str) -> None:
        self._client.json("DELETE", _path(name))

    def set_namespace(self, name: str, namespace: str, is_added: bool) -> dict[str, Any]:
        method = "PUT" if is_added else "DELETE"
        return self._client.json(method, _path(name, "namespaces", namespace))

    def change_limits(self, name: str, changes: Mapping[str, object]) -> dict[str, Any]:
        self._client.json("PATCH", _path(name, "limits"), json=dict(changes))
        return self.tenant(name)

    def create_key(self, tenant: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._client.json("POST", _path(tenant, "keys"), json=dict(fields))

    def keys(self, tenant: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.json("GET", _path(tenant, "keys"))["data"]
        return found

    def revoke_key(self, tenant: str, id_: str) -> dict[str, Any]:
        return self._client.json("DELETE", _path(tenant, "keys", id_))

    def rotate_key(self, tenant: str, id_: str, grace_s: float) -> dict[str, Any]:
        path = _path(tenant, "keys", id_, "rotate")
        return self._client.json("POST", path, json={"grace_s": grace_s})

    def access(self, kind: Kind, name: str) -> dict[str, Any]:
        return self._client.json("GET", _access_path(kind, name))

    def set_access(self, kind: Kind, name: str, body: Mapping[str, object]) -> dict[str, Any]:
        return self._client.json("PUT", _access_path(kind, name), json=dict(body))


def _path(tenant: str, *parts: str) -> str:
    return "/".join(("/v1/tenants", *(quote(part, safe="") for part in (tenant, *parts))))


def _access_path(kind: Kind, name: str) -> str:
    return f"/v1/{kind}s/{quote(name, safe='/')}/access"
