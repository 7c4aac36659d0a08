"""Carries requests to the engine and its answers back, as they come."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from outfitter.errors import engine_died, unavailable
from taskvectors.errors import EngineUnavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
STATS_TIMEOUT_S = 1.0
PREFETCH_TIMEOUT_S = 600.0
ENGINE_KEEP_ALIVE_S = 30
"""The engine keeps idle connections so long; the gateway reuses younger ones only."""
_ORIGIN = "http://engine"
_KEPT_HEADERS = ("content-type", "retry-after", "x-request-id")


class Relay:
    """A client of the engine's HTTP server on its unix socket."""

    def __init__(self, socket: Path) -> None:
        connector = aiohttp.UnixConnector(
            str(socket), limit=0, keepalive_timeout=ENGINE_KEEP_ALIVE_S / 3
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            read_bufsize=2**18,
            skip_auto_headers=("user-agent", "accept-encoding"),
        )

    async def close(self) -> None:
        """Close every connection to the engine."""
        await self._session.close()

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST a JSON body; leaving the context early aborts the request in the engine."""
        headers = {"content-type": "application/json", **headers}
        try:
            response = await self._session.post(_ORIGIN + path, data=body, headers=headers)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise unavailable("the engine does not accept connections; try again") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise engine_died() from error
        try:
            yield response
        except (aiohttp.ClientError, ConnectionError) as error:
            raise engine_died() from error
        finally:
            response.close()

    async def stats(self) -> dict[str, Any]:
        """What the engine's tiers and pool have done; raises EngineUnavailable."""
        return await self._json("GET", "/taskvectors/stats", STATS_TIMEOUT_S)

    async def prefetch(self, digests: Sequence[str], *, pin: bool) -> dict[str, str]:
        """Let the engine load vectors; `ready`, `memory` or `failed: why` of each digest.

        Raises EngineUnavailable.
        """
        body = {"digests": list(digests), "pin": pin}
        fields = await self._json("POST", "/taskvectors/prefetch", PREFETCH_TIMEOUT_S, body)
        states = fields.get("states")
        if not isinstance(states, dict):
            raise EngineUnavailable("the engine does not say what became of a prefetch")
        return {digest: str(states.get(digest, "failed: not answered")) for digest in digests}

    async def _json(
        self, method: str, path: str, seconds: float, body: object = None
    ) -> dict[str, Any]:
        """Raises EngineUnavailable."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(
                method, _ORIGIN + path, json=body, timeout=timeout
            ) as response:
                fields = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            raise EngineUnavailable(f"the engine does not answer {path}: {error!r}") from error
        if response.status != 200 or not isinstance(fields, dict):
            message = (
                f"the engine answers {path} with status {response.status}: {str(fields)[:200]}"
            )
            raise EngineUnavailable(message)
        return fields

    async def openapi(self) -> Mapping[str, object]:
        """The engine's own description of its routes; empty when it cannot be read."""
        try:
            async with self._session.get(_ORIGIN + "/openapi.json") as response:
                fields = await response.json(content_type=None)
                return fields if isinstance(fields, dict) else {}
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            log.warning("the engine's schema cannot be read (%s): unknown fields pass", error)
            return {}


def kept_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The engine's headers that are the client's business."""
    return {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
