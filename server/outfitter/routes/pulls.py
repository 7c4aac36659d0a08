"""Publishing what lies elsewhere: only from where the operator allows it."""

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request

from outfitter.control.resolve import parse_body
from outfitter.deps import ByDep, GatewayDep, VectorsDep
from outfitter.gateway import Gateway
from outfitter.routes.body import read_body
from outfitter.routes.documented import DRAFT, json_body
from outfitter.schemas import describe, draft_of, required
from outfitter.state.records import Version
from outfitter.transfer.fetched import Fetched, no_progress
from outfitter.transfer.sources import fetch
from outfitter.vectors import Base, Draft, Vectors
from taskvectors.format import file_digest

router = APIRouter(prefix="/v1/task_vectors")

MAX_JSON_BYTES = 4 * 2**20


@router.post(
    "/pulls",
    status_code=201,
    openapi_extra=json_body({"source": {"type": "string"}, **DRAFT}, "source", "name"),
)
async def pull(
    request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Fetch a file from a source and publish it; answers when that is done."""
    body = parse_body(await read_body(request, MAX_JSON_BYTES))
    source = required(body, "source", str, '"s3://bucket/legal.safetensors"')
    draft = by.signing(draft_of(body, "source"))
    vectors.check_name(draft.name)
    base = gateway.ready_base()
    require_room = partial(gateway.quotas.require_room, by.principal)
    await asyncio.to_thread(require_room, 0)
    async with gateway.uploads.taken(by.principal.tenant):
        version, fetched = await asyncio.to_thread(
            _pull, gateway, vectors, source, draft, base, require_room
        )
    await gateway.note(by, "task_vector.publish", f"{version.name}@{version.version}")
    return {**describe(version), "source": fetched.source, "revision": fetched.revision}


def _pull(
    gateway: Gateway,
    vectors: Vectors,
    source: str,
    draft: Draft,
    base: Base,
    require_room: Callable[[int, str], None],
) -> tuple[Version, Fetched]:
    config = gateway.config
    path = vectors.store.new_upload()
    try:
        fetched = fetch(
            source,
            path,
            limit=config.max_upload_bytes,
            allowed=config.pull_from,
            progress=no_progress,
        )
        told = draft.completed(fetched.details, fetched.signature)
        digest = file_digest(path)
        require_room(path.stat().st_size, digest)
        return vectors.publish(path, digest, told, base), fetched
    finally:
        path.unlink(missing_ok=True)
