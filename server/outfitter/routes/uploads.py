"""Uploads that survive a broken connection or a restart: the tus protocol, version 1.0.

What was uploaded is published by `POST /v1/task_vectors?upload=<id>`.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from outfitter.deps import GatewayDep, PrincipalDep, VectorsDep
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.gateway import Gateway
from outfitter.routes.body import receive, stream_body
from outfitter.routes.documented import file_body
from outfitter.state.uploads import Upload, Uploads
from taskvectors.errors import TaskVectorError

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,termination,checksum"
ALGORITHMS = ("sha1", "sha256")
CHECKSUM_MISMATCH = 460
"""The status that tus gives to a checksum that does not match."""
MAX_METADATA = 4096
_RESUMABLE = {"tus-resumable": VERSION}
_BYTES = "application/offset+octet-stream"


class TusRoute(APIRoute):
    """A route whose requests and answers, errors too, say that they speak tus."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler within what all of the protocol has in common."""
        handle = super().get_route_handler()

        async def speak(request: Request) -> Response:
            try:
                _check_version(request)
                response = await handle(request)
            except (ApiError, TaskVectorError) as error:
                told = error if isinstance(error, ApiError) else from_task_vector_error(error)
                told.headers = {**told.headers, **_RESUMABLE}
                raise told from error
            response.headers.update(_RESUMABLE)
            return response

        return speak


router = APIRouter(prefix="/v1/uploads", route_class=TusRoute)


@router.options("")
@router.options("/{upload_id}")
async def options(gateway: GatewayDep) -> Response:
    """What this server knows of the protocol."""
    headers = {
        "tus-version": VERSION,
        "tus-extension": EXTENSIONS,
        "tus-max-size": str(gateway.config.max_upload_bytes),
        "tus-checksum-algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.post("", openapi_extra=file_body(_BYTES))
async def create(
    request: Request, gateway: GatewayDep, vectors: VectorsDep, principal: PrincipalDep
) -> Response:
    """A new upload of a known length; the body may bring its first bytes."""
    length, metadata = _announced(request, gateway.config.max_upload_bytes)
    await asyncio.to_thread(gateway.quotas.require_room, principal, length)
    uploads, limit = vectors.uploads, gateway.config.max_upload_bytes
    upload = await asyncio.to_thread(uploads.create, length, limit, metadata)
    if request.headers.get("content-type") == _BYTES:
        upload = await _append(request, gateway, principal.tenant, uploads, upload.id, 0)
    headers = {"location": f"{router.prefix}/{upload.id}", **_progress(upload)}
    return Response(status_code=201, headers=headers)


@router.head("/{upload_id}")
async def head(upload_id: str, vectors: VectorsDep) -> Response:
    """How far an upload is."""
    upload = await asyncio.to_thread(vectors.uploads.find, upload_id)
    headers = {"upload-length": str(upload.length), "cache-control": "no-store"}
    if upload.metadata:
        headers["upload-metadata"] = upload.metadata
    return Response(headers={**headers, **_progress(upload)})


@router.patch("/{upload_id}", openapi_extra=file_body(_BYTES))
async def patch(
    upload_id: str,
    request: Request,
    gateway: GatewayDep,
    vectors: VectorsDep,
    principal: PrincipalDep,
) -> Response:
    """Go on; what arrives before the connection breaks is kept."""
    kind = request.headers.get("content-type", "")
    if kind != _BYTES:
        message = f"unsupported content type {kind[:100]!r}; send {_BYTES}"
        raise ApiError(415, message, "unsupported_media_type")
    offset = _number(request, "upload-offset")
    upload = await _append(request, gateway, principal.tenant, vectors.uploads, upload_id, offset)
    return Response(status_code=204, headers=_progress(upload))


@router.delete("/{upload_id}")
async def terminate(upload_id: str, vectors: VectorsDep) -> Response:
    """Forget an upload."""
    await asyncio.to_thread(vectors.uploads.terminate, upload_id)
    return Response(status_code=204)


async def _append(
    request: Request,
    gateway: Gateway,
    tenant: str,
    uploads: Uploads,
    upload_id: str,
    offset: int,
) -> Upload:
    checksum = Checksum.of(request)
    async with gateway.uploads.taken(tenant):
        appending = await asyncio.to_thread(uploads.append, upload_id, offset)

        def write(piece: bytearray) -> None:
            appending.write(piece)
            checksum.update(piece)

        try:
            limit = appending.upload.length - offset
            await receive(stream_body(request, limit), write)
            checksum.check()
        except BaseException:
            if checksum.is_given:
                await asyncio.to_thread(appending.take_back)
            raise
        finally:
            await asyncio.to_thread(appending.close)
    return await asyncio.to_thread(uploads.find, upload_id)


class Checksum:
    """What the client says of a body: an algorithm and a digest, or nothing."""

    def __init__(self, algorithm: str | None, expected: bytes) -> None:
        self._hash = None if algorithm is None else hashlib.new(algorithm, usedforsecurity=False)
        self._expected = expected

    @classmethod
    def of(cls, request: Request) -> "Checksum":
        """Read the header; raises ApiError (400)."""
        header = request.headers.get("upload-checksum")
        if header is None:
            return cls(None, b"")
        algorithm, _, digest = header.partition(" ")
        if algorithm not in ALGORITHMS:
            choices = ", ".join(ALGORITHMS)
            raise _wrong("upload-checksum", f"{choices} and a digest in Base64", header)
        try:
            return cls(algorithm, base64.b64decode(digest, validate=True))
        except (binascii.Error, ValueError):
            raise _wrong("upload-checksum", "a digest in Base64", header) from None

    @property
    def is_given(self) -> bool:
        """Whether there is anything to check."""
        return self._hash is not None

    def update(self, piece: bytearray) -> None:
        """Add a piece of the body."""
        if self._hash is not None:
            self._hash.update(piece)

    def check(self) -> None:
        """Raise ApiError (460) unless the body was what the client said."""
        if self._hash is not None and self._hash.digest() != self._expected:
            message = "the bytes do not have the checksum that was said; send them again"
            raise ApiError(CHECKSUM_MISMATCH, message, "checksum_mismatch", "upload-checksum")


def _check_version(request: Request) -> None:
    said = request.headers.get("tus-resumable")
    if request.method != "OPTIONS" and said != VERSION:
        message = f"unsupported Tus-Resumable {str(said)[:40]!r}; this server speaks {VERSION}"
        headers = {"tus-version": VERSION}
        raise ApiError(412, message, "unsupported_tus_version", "tus-resumable", headers=headers)


def _announced(request: Request, limit: int) -> tuple[int, str]:
    """Upload-Length and Upload-Metadata; raises ApiError."""
    length = _number(request, "upload-length")
    if length > limit:
        message = f"a file may have {limit} bytes, not {length}"
        raise ApiError(413, message, "body_too_large", "upload-length")
    metadata = request.headers.get("upload-metadata", "").strip()
    if len(metadata) > MAX_METADATA:
        raise _wrong("upload-metadata", f"at most {MAX_METADATA} characters", metadata)
    return length, metadata


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise _wrong(header, "a number of bytes", text)
    return int(text)


def _progress(upload: Upload) -> dict[str, str]:
    expires = formatdate(upload.expires, usegmt=True)
    return {"upload-offset": str(upload.offset), "upload-expires": expires}


def _wrong(header: str, right: str, value: str) -> ApiError:
    message = f"{header} must be {right}, not {value[:80]!r}"
    return ApiError(400, message, "invalid_parameter", header)
