"""The parts of a published task vector: its file, its card, its signature.

A path may be read in two ways: `a/file` is the file of `a`, and if there is no `a`, the vector
`file` in the namespace `a`. A pin says which: `a/file@latest` is the vector, `a@latest/file` the
file.
"""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from outfitter.deps import GatewayDep, PrincipalDep, VectorsDep
from outfitter.errors import ApiError
from outfitter.gateway import Gateway
from outfitter.schemas import describe
from outfitter.state.records import Version
from outfitter.vectors import Vectors
from taskvectors.errors import InvalidReference, TaskVectorError, VectorNotFound
from taskvectors.spec import Reference

log = logging.getLogger(__name__)

_NO_SNIFF = {"x-content-type-options": "nosniff"}
_FROM_START = re.compile(r"\s*bytes\s*=\s*0+\s*-")

router = APIRouter(prefix="/v1/task_vectors")


@router.api_route("/{reference:path}/file", methods=["GET", "HEAD"])
async def file(
    reference: str,
    request: Request,
    gateway: GatewayDep,
    vectors: VectorsDep,
    principal: PrincipalDep,
) -> Response:
    """The file, or the ranges of it that are asked for."""

    async def give(version: Version) -> Response:
        headers = _headers(version)
        if _has(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        return await _download(request, gateway, principal.tenant, version, headers)

    return await _part(vectors, reference, "file", give)


@router.api_route("/{reference:path}/card", methods=["GET", "HEAD"])
async def card(reference: str, vectors: VectorsDep) -> Response:
    """The model card, in Markdown."""

    async def give(version: Version) -> Response:
        return _text(version, version.details.card, "card", "text/markdown")

    return await _part(vectors, reference, "card", give)


@router.api_route("/{reference:path}/signature", methods=["GET", "HEAD"])
async def signature(reference: str, vectors: VectorsDep) -> Response:
    """The signature, as the JSON of its bundle."""

    async def give(version: Version) -> Response:
        return _text(version, version.signature, "signature", "application/json")

    return await _part(vectors, reference, "signature", give)


async def _part(
    vectors: Vectors, reference: str, part: str, give: Callable[[Version], Awaitable[Response]]
) -> Response:
    """What `give` says of what `reference` stands for; else the vector that is called like that."""
    try:
        version = await asyncio.to_thread(vectors.version, Reference.parse(reference))
    except VectorNotFound:
        if "/" not in reference:
            with contextlib.suppress(VectorNotFound, InvalidReference):
                whole = Reference.parse(f"{reference}/{part}")
                named = await asyncio.to_thread(vectors.version, whole)
                return JSONResponse(describe(named))
        raise
    return await give(version)


def _text(version: Version, text: str | None, what: str, media_type: str) -> Response:
    if text is None:
        message = f"{version.name}@{version.version} has no {what}"
        raise ApiError(404, message, f"no_{what}")
    return Response(text, media_type=media_type, headers=_NO_SNIFF)


def _headers(version: Version) -> dict[str, str]:
    return {
        "etag": f'"sha256:{version.digest}"',
        "last-modified": formatdate(version.created, usegmt=True),
        "cache-control": "private, no-cache",
        **_NO_SNIFF,
    }


def _has(request: Request, etag: str) -> bool:
    """Whether the client has this very file already."""
    tags = request.headers.get("if-none-match", "").split(",")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in tags)


async def _download(
    request: Request,
    gateway: Gateway,
    tenant: str,
    version: Version,
    headers: Mapping[str, str],
) -> Response:
    path, status = await _local(gateway, tenant, version.digest)
    is_counted = request.method == "GET" and _is_first(request)
    return _File(
        path,
        headers=headers,
        media_type="application/octet-stream",
        filename=f"{version.name.replace('/', '-')}-{version.version}.safetensors",
        stat_result=status,
        background=BackgroundTask(_count, gateway, version) if is_counted else None,
    )


def _is_first(request: Request) -> bool:
    """Whether the first byte is asked for: a download that goes on is not another one."""
    wanted = request.headers.get("range")
    return wanted is None or _FROM_START.match(wanted) is not None


async def _local(gateway: Gateway, tenant: str, digest: str) -> tuple[Path, os.stat_result]:
    """The file on this machine's disk; fetched first, a few at a time, where it is not."""
    try:
        path = await asyncio.to_thread(gateway.vectors.store.path, digest)
    except VectorNotFound:
        async with gateway.uploads.taken(tenant):
            path = await asyncio.to_thread(gateway.vectors.path, digest)
    try:
        return path, await asyncio.to_thread(path.stat)
    except FileNotFoundError:
        raise VectorNotFound(f"the file sha256:{digest} was removed meanwhile") from None


async def _count(gateway: Gateway, version: Version) -> None:
    try:
        count = gateway.vectors.catalog.count_download
        await asyncio.to_thread(count, version.name, version.version)
    except TaskVectorError as error:
        log.warning("a download of %s was not counted: %s", version.name, error)


class _File(FileResponse):
    """A file whose errors have OpenAI's body, too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""

        async def checked(message: Message) -> None:
            if message.get("status") in (400, 416):
                raise _wrong_range(message)
            await send(message)

        await super().__call__(scope, receive, checked)


def _wrong_range(message: Message) -> ApiError:
    found = Headers(raw=message["headers"]).get("content-range")
    if found is None:
        return ApiError(400, "the Range header is malformed", "invalid_range", "Range")
    size = found.rpartition("/")[2]
    text = f"the range is beyond the file, which has {size} bytes"
    return ApiError(416, text, "range_not_satisfiable", "Range", headers={"content-range": found})
