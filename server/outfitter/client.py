"""A client of the gateway's own routes, for the command line."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

CHUNK_BYTES = 2**20
T = TypeVar("T")


class GatewayError(Exception):
    """The gateway cannot be reached, or said no."""


class GatewayClient:
    """Speaks to the gateway at `url`; each call opens its own connection."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/v1/task_vectors"

    def push(self, file: Path, name: str, progress: Callable[[int], None]) -> dict[str, Any]:
        """Upload a file; `progress` is told the bytes of each step."""
        return _run(self._push(file, file.stat().st_size, name, progress))

    def entries(self) -> list[dict[str, Any]]:
        """Every task vector of the server."""
        answer = _run(self._request("GET", self._url))
        return list(answer["data"])

    def delete(self, reference: str) -> dict[str, Any]:
        """Remove what `reference` names."""
        return _run(self._request("DELETE", f"{self._url}/{quote(reference, safe='/@:')}"))

    async def _push(
        self, file: Path, size: int, name: str, progress: Callable[[int], None]
    ) -> dict[str, Any]:
        return await self._request(
            "POST",
            self._url,
            params={"name": name},
            data=_read(file, progress),
            headers={"content-type": "application/octet-stream", "content-length": str(size)},
            expect100=True,
        )

    async def _request(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, **options) as response,
            ):
                return _answer(response.status, await response.read())
        except (aiohttp.ClientError, ValueError, OSError) as error:
            cause = getattr(error, "os_error", error)
            raise GatewayError(f"cannot reach the gateway at {url}: {cause}") from error


def _answer(status: int, body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = {}
    if status < 400 and isinstance(fields, dict):
        return fields
    error = fields.get("error") if isinstance(fields, dict) else None
    message = error.get("message") if isinstance(error, dict) else body[:200].decode("latin-1")
    raise GatewayError(f"the gateway answered {status}: {message}")


async def _read(file: Path, progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    with file.open("rb") as handle:
        while chunk := await asyncio.to_thread(handle.read, CHUNK_BYTES):
            yield chunk
            progress(len(chunk))


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)
