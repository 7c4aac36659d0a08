"""Routes on the engine's own socket, for whoever runs it: tiers, warming, and promotion.

`GET /taskvectors/stats`; `POST /taskvectors/prefetch` with `{"digests": [...], "pin": false}`;
`POST /taskvectors/promotion` with `{"loadout": "<canonical>"}`, `DELETE` to demote, and `GET` for
what is promoted, with `?checksum=true` for the sha256 of all weights, too.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request

from taskvectors.container.strict_json import loads
from taskvectors.errors import InvalidHeader, InvalidLoadout
from taskvectors.spec import Loadout

MAX_BODY = 1 << 20
MAX_DIGESTS = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Service(Protocol):
    """What the routes ask."""

    async def warm(self, digests: list[str], *, pin: bool) -> dict[str, str]:
        """The state of each digest."""
        ...

    async def stats(self) -> dict[str, Any]:
        """Tiers, pool, seconds."""
        ...

    async def promote(self, loadout: Loadout) -> dict[str, Any]:
        """The state after it."""
        ...

    async def demote(self) -> dict[str, Any]:
        """The state after it."""
        ...

    async def promotion(self, *, checksum: bool) -> dict[str, Any]:
        """The state."""
        ...


Route = Callable[[Service, Request], Awaitable[dict[str, Any]]]


def find(method: str, path: str) -> Route | None:
    """The route, if it is one of ours."""
    return _ROUTES.get((method, path))


async def _stats(service: Service, _request: Request) -> dict[str, Any]:
    return await service.stats()


async def _prefetch(service: Service, request: Request) -> dict[str, Any]:
    digests, pin = _parse(await _body(request))
    return {"states": await service.warm(digests, pin=pin)}


async def _promote(service: Service, request: Request) -> dict[str, Any]:
    return await service.promote(_parse_loadout(await _body(request)))


async def _demote(service: Service, _request: Request) -> dict[str, Any]:
    return await service.demote()


async def _promotion(service: Service, request: Request) -> dict[str, Any]:
    wanted = request.query_params.get("checksum", "false")
    if wanted not in ("true", "false"):
        raise InvalidLoadout(f"checksum must be true or false, not {wanted[:80]!r}")
    return await service.promotion(checksum=wanted == "true")


_ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/taskvectors/stats"): _stats,
    ("POST", "/taskvectors/prefetch"): _prefetch,
    ("POST", "/taskvectors/promotion"): _promote,
    ("DELETE", "/taskvectors/promotion"): _demote,
    ("GET", "/taskvectors/promotion"): _promotion,
}


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidLoadout(f"the body has more than {MAX_BODY} bytes; name fewer digests")
    return bytes(body)


def _json(body: bytes) -> Any:
    try:
        return loads(body, "the body")
    except InvalidHeader as error:
        raise InvalidLoadout(str(error)) from error


def _parse_loadout(body: bytes) -> Loadout:
    """Raises InvalidLoadout."""
    fields = _json(body)
    if not isinstance(fields, dict) or fields.keys() != {"loadout"}:
        raise InvalidLoadout('the body must be {"loadout": "<a canonical loadout>"}')
    if not isinstance(fields["loadout"], str):
        raise InvalidLoadout("loadout must be a string, the canonical form of a loadout")
    return Loadout.from_canonical(fields["loadout"])


def _parse(body: bytes) -> tuple[list[str], bool]:
    """Digests, and whether they are pinned; raises InvalidLoadout."""
    fields = _json(body)
    if not isinstance(fields, dict) or not {"digests"} <= fields.keys() <= {"digests", "pin"}:
        raise InvalidLoadout('the body must be {"digests": [...], "pin": true or false}')
    digests, pin = fields["digests"], fields.get("pin", False)
    if not isinstance(pin, bool):
        raise InvalidLoadout(f"pin must be true or false, not {str(pin)[:80]!r}")
    if not isinstance(digests, list) or len(digests) > MAX_DIGESTS:
        raise InvalidLoadout(f"digests must be a list of at most {MAX_DIGESTS}")
    for digest in digests:
        if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise InvalidLoadout(f"{str(digest)[:80]!r} is no digest; use 64 hex digits")
    return digests, pin
