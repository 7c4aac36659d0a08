"""Carries requests to the engine and its answers back, as they come."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from outfitter.engine.hidden import Fingerprint
from outfitter.errors import (
    REFUSALS,
    ApiError,
    engine_died,
    engine_refused,
    shorten,
    unavailable,
)
from taskvectors.errors import EngineUnavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
STATS_TIMEOUT_S = 1.0
MAX_METRICS_BYTES = 4 * 2**20
PREFETCH_TIMEOUT_S = 600.0
PROMOTION_TIMEOUT_S = 1800.0
"""Running requests finish first."""
READ_BYTES = 2**16
"""Held of an answer while the client does not take it: up to twice as much, and twice again."""
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
            read_bufsize=READ_BYTES,
            skip_auto_headers=("user-agent", "accept-encoding"),
        )
        self.fingerprint = Fingerprint()

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

    async def metrics(self) -> str:
        """What vLLM itself tells Prometheus; raises EngineUnavailable."""
        timeout = aiohttp.ClientTimeout(total=STATS_TIMEOUT_S)
        try:
            async with self._session.get(_ORIGIN + "/metrics", timeout=timeout) as response:
                content = await response.content.read(MAX_METRICS_BYTES)
                while len(content) < MAX_METRICS_BYTES and not response.content.at_eof():
                    content += await response.content.read(MAX_METRICS_BYTES - len(content))
        except (TimeoutError, aiohttp.ClientError, OSError, RuntimeError) as error:
            raise EngineUnavailable(f"the engine does not answer /metrics: {error!r}") from error
        if response.status != 200:
            raise EngineUnavailable(f"the engine answers /metrics with {response.status}")
        return content.decode(errors="replace")

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

    async def promotion(
        self, method: str, canonical: str | None = None, *, checksum: bool = False
    ) -> dict[str, Any]:
        """GET what is promoted, POST a loadout to promote it, or DELETE to demote it.

        Raises ApiError with what the engine says, EngineUnavailable.
        """
        path = "/taskvectors/promotion" + ("?checksum=true" if checksum else "")
        body = None if canonical is None else {"loadout": canonical}
        status, fields = await self._exchange(method, path, PROMOTION_TIMEOUT_S, body)
        if status == 200:
            return fields
        told = fields.get("error")
        error = told if isinstance(told, dict) else {}
        message = shorten(str(error.get("message", f"the engine answers {path} with {status}")))
        if status in REFUSALS:
            raise engine_refused(status, message)
        headers = {"retry-after": "5"} if status == 503 else {}
        raise ApiError(status, message, error.get("code"), error.get("param"), headers=headers)

    async def _json(
        self, method: str, path: str, seconds: float, body: object = None
    ) -> dict[str, Any]:
        """Raises EngineUnavailable, for an error of the engine's, too."""
        status, fields = await self._exchange(method, path, seconds, body)
        if status != 200:
            message = f"the engine answers {path} with status {status}: {str(fields)[:200]}"
            raise EngineUnavailable(message)
        return fields

    async def _exchange(
        self, method: str, path: str, seconds: float, body: object
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer. Raises EngineUnavailable."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(
                method, _ORIGIN + path, json=body, timeout=timeout
            ) as response:
                fields = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            raise EngineUnavailable(f"the engine does not answer {path}: {error!r}") from error
        if not isinstance(fields, dict):
            message = (
                f"the engine answers {path} with status {response.status}: {str(fields)[:200]}"
            )
            raise EngineUnavailable(message)
        return response.status, fields

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
