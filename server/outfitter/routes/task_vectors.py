"""The task vectors of this server: upload, list, look up, delete."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter, Request

from outfitter.deps import GatewayDep
from outfitter.errors import ApiError
from outfitter.routes.body import stream_body
from outfitter.schemas import describe
from taskvectors.spec import Reference

router = APIRouter(prefix="/v1/task_vectors")

CHUNK_BYTES = 2**20
_RAW = "application/octet-stream"


@router.post("", status_code=201)
async def upload(request: Request, gateway: GatewayDep) -> dict[str, object]:
    """Take a task vector file: its bytes are the body, its name is `?name=`."""
    name = _upload_name(request)
    base = gateway.ready_base()
    store = gateway.vectors.store
    async with gateway.uploads:
        path = await asyncio.to_thread(store.new_upload)
        try:
            body = stream_body(request, gateway.config.max_upload_bytes)
            digest = await _receive(body, path)
            taken = await asyncio.to_thread(gateway.vectors.take, path, digest, name, base)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    return describe(taken)


@router.get("")
async def list_all(gateway: GatewayDep) -> dict[str, object]:
    """Every version of every name."""
    entries = await asyncio.to_thread(gateway.vectors.entries)
    return {"object": "list", "data": [describe(entry) for entry in entries]}


@router.get("/{reference:path}")
async def get_one(reference: str, gateway: GatewayDep) -> dict[str, object]:
    """The task vector that a reference stands for now."""
    found = await asyncio.to_thread(gateway.vectors.entry, Reference.parse(reference))
    return describe(found)


@router.delete("/{reference:path}")
async def delete(reference: str, gateway: GatewayDep) -> dict[str, object]:
    """Remove a name, or one version of it."""
    await asyncio.to_thread(gateway.vectors.store.remove, Reference.parse(reference))
    return {"id": reference, "object": "task_vector", "deleted": True}


def _upload_name(request: Request) -> str:
    kind = request.headers.get("content-type", _RAW).partition(";")[0].strip().lower()
    if kind != _RAW:
        message = f"unsupported content type {kind[:100]!r}; send the file's bytes as {_RAW}"
        raise ApiError(415, message, "unsupported_media_type")
    name = request.query_params.get("name")
    if not name:
        message = "name is required: POST /v1/task_vectors?name=<name>"
        raise ApiError(400, message, "missing_name", "name")
    reference = Reference.parse(name)
    if reference.path is None or reference.path != name:
        message = f"a name for an upload has no version or digest, unlike {name[:200]!r}"
        raise ApiError(400, message, "invalid_reference", "name")
    return name


async def _receive(body: AsyncIterator[bytes], path: Path) -> str:
    """Write the body to `path`, a megabyte at a time; returns the sha256 in hex."""
    digest = hashlib.sha256()
    buffer = bytearray()
    with await asyncio.to_thread(path.open, "wb") as file:

        def flush() -> None:
            digest.update(buffer)
            file.write(buffer)
            buffer.clear()

        async for chunk in body:
            buffer += chunk
            if len(buffer) >= CHUNK_BYTES:
                await asyncio.to_thread(flush)
        await asyncio.to_thread(flush)
    return digest.hexdigest()
