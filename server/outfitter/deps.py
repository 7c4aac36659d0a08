"""What the routes depend on: the gateway, who asks, and what that may see and do."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from outfitter.accounts import By
from outfitter.control.keys import sent_key
from outfitter.control.principal import Principal, Scope
from outfitter.control.rights import check_scope
from outfitter.gateway import Gateway
from outfitter.vectors import Vectors

_READING = ("GET", "HEAD", "OPTIONS")


async def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]


async def _principal(request: Request, gateway: GatewayDep) -> Principal:
    principal = await gateway.authenticate(sent_key(request.headers))
    request.state.principal = principal  # for the log
    return principal


PrincipalDep = Annotated[Principal, Depends(_principal)]


async def _vectors(gateway: GatewayDep, principal: PrincipalDep) -> Vectors:
    return gateway.vectors_for(principal)


VectorsDep = Annotated[Vectors, Depends(_vectors)]
"""The store as whoever asks may see and change it."""


async def _by(request: Request, principal: PrincipalDep) -> By:
    return By(principal, request.state.request_id)


ByDep = Annotated[By, Depends(_by)]


@dataclass(frozen=True)
class Needs:
    """A dependency of a router: the key must have one of the scopes, else ApiError (401, 403).

    read: for requests that change nothing. write: for the others.
    """

    read: tuple[Scope, ...]
    write: tuple[Scope, ...]

    async def __call__(self, request: Request, principal: PrincipalDep) -> None:
        """Raises ApiError (403)."""
        check_scope(principal, self.read if request.method in _READING else self.write)


@dataclass(frozen=True)
class Counts:
    """A dependency of a router: requests of some methods count by a limit per minute.

    limit: its name. Raises ApiError (429).
    """

    limit: str
    methods: tuple[str, ...] = _READING

    async def __call__(
        self, request: Request, gateway: GatewayDep, principal: PrincipalDep
    ) -> None:
        """Raises ApiError (429)."""
        if request.method in self.methods:
            await gateway.quotas.count(principal, self.limit)
