"""The task vectors of this server: publish, list, look up, change, delete."""

import asyncio
import hashlib
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams

from outfitter.accounts import By
from outfitter.control.resolve import parse_body
from outfitter.deps import ByDep, GatewayDep, VectorsDep
from outfitter.errors import ApiError
from outfitter.gateway import Gateway
from outfitter.routes.body import announced_bytes, read_body, receive, stream_body
from outfitter.routes.documented import DETAILS, DRAFT, file_body, json_body
from outfitter.schemas import (
    changed_details,
    check_known,
    describe,
    describe_deletion,
    describe_row,
    draft_of,
    draft_of_query,
    only,
    required,
)
from outfitter.state.records import ORDERS, Query, Version
from outfitter.state.uploads import write_all
from outfitter.trust.licenses import normalize
from outfitter.vectors import Vectors, plain_name
from taskvectors.spec import Reference, parse_tag

router = APIRouter(prefix="/v1/task_vectors")

MAX_JSON_BYTES = 4 * 2**20
"""Of a body that is not a file: a card and a signature fit."""
MAX_LIMIT = 1000
_FILE, _JSON = "application/octet-stream", "application/json"
_TEXTS = {"q": "text"} | {
    name: name for name in ("namespace", "name", "base", "tag", "label", "language", "after")
}
_LISTING = (*_TEXTS, "license", "order", "versions", "limit")
_VERSIONS = ("latest", "all")


@router.post(
    "",
    status_code=201,
    openapi_extra=file_body("application/octet-stream", draft=json_body(DRAFT, "name")),
)
async def publish(
    request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Publish a file: the body is its bytes, or says what an upload shall be called."""
    is_upload = "upload" in request.query_params
    publish_ = _publish_upload if is_upload else _publish_body
    version = await publish_(request, gateway, vectors, by)
    await gateway.note(by, "task_vector.publish", f"{version.name}@{version.version}")
    return describe(version)


@router.get("")
async def find(request: Request, vectors: VectorsDep) -> dict[str, object]:
    """A page of what is here: the latest version of each name, or all of them."""
    page = await asyncio.to_thread(vectors.find, query_of(request.query_params))
    return {
        "object": "list",
        "data": [describe_row(version) for version in page.versions],
        "has_more": page.after is not None,
        "after": page.after,
    }


@router.put(
    "/{name:path}/tags/{tag}",
    openapi_extra=json_body({"version": {"type": "integer", "minimum": 1}}, "version"),
)
async def put_tag(
    name: str, tag: str, request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Let a tag point at a version."""
    body = parse_body(await read_body(request, MAX_JSON_BYTES))
    check_known(body, ("version",))
    number = required(body, "version", int, "3")
    reference = Reference.parse(f"{plain_name(name)}@{number}")
    version = await asyncio.to_thread(vectors.tag, reference, tag)
    await gateway.note(by, "task_vector.tag", f"{name}@{tag}", {"version": number})
    return describe(version)


@router.delete("/{name:path}/tags/{tag}")
async def delete_tag(
    name: str, tag: str, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Take a tag away."""
    await asyncio.to_thread(vectors.untag, name, tag)
    await gateway.note(by, "task_vector.untag", f"{name}@{tag}")
    return {"id": f"{name}@{tag}", "object": "tag", "deleted": True}


@router.get("/{reference:path}")
async def get_one(reference: str, vectors: VectorsDep) -> dict[str, object]:
    """The task vector that a reference stands for now."""
    return describe(await asyncio.to_thread(vectors.look_up, Reference.parse(reference)))


@router.patch("/{reference:path}", openapi_extra=json_body(DETAILS))
async def update(
    reference: str, request: Request, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Change what is said of a version; fields that are not given stay."""
    changes = parse_body(await read_body(request, MAX_JSON_BYTES))
    version = await asyncio.to_thread(_update, vectors, reference, changes)
    subject, fields = f"{version.name}@{version.version}", sorted(changes)
    await gateway.note(by, "task_vector.update", subject, {"fields": fields})
    return describe(version)


@router.delete("/{reference:path}")
async def delete(
    reference: str, gateway: GatewayDep, vectors: VectorsDep, by: ByDep
) -> dict[str, object]:
    """Remove a name, or one version of it."""
    deletion = await asyncio.to_thread(vectors.delete, Reference.parse(reference))
    await gateway.note(by, "task_vector.delete", reference)
    return describe_deletion(reference, deletion)


def query_of(params: QueryParams) -> Query:
    """The query of a listing; raises ApiError (400), InvalidReference, InvalidDetails."""
    check_known(params.keys(), _LISTING, "query parameter")
    given = {key: value for key in _LISTING if (value := only(params, key)) is not None}
    order, versions = given.get("order", "name"), given.get("versions", _VERSIONS[0])
    _choose("order", order.removeprefix("-"), ORDERS)
    _choose("versions", versions, _VERSIONS)
    if "tag" in given:
        parse_tag(given["tag"])
    return Query(
        **{field: given[key] for key, field in _TEXTS.items() if key in given},
        license=normalize(given["license"]) if "license" in given else None,
        order=order,
        every_version=versions == "all",
        limit=limit_of(given.get("limit", "100")),
    )


def limit_of(text: str) -> int:
    """The number of rows that is asked for; raises ApiError (400)."""
    if text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    message = f"limit must be 1 to {MAX_LIMIT}, not {text[:40]!r}"
    raise ApiError(400, message, "invalid_parameter", "limit")


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        message = f"unknown {key} {value[:80]!r}; choose {', '.join(choices)}"
        raise ApiError(400, message, "invalid_parameter", key)


def _update(vectors: Vectors, reference: str, changes: dict[str, object]) -> Version:
    parsed = Reference.parse(reference)
    found = vectors.look_up(parsed)
    pinned = Reference.parse(f"{found.name}@{found.version}")
    return vectors.update(pinned, lambda details: changed_details(details, changes))


async def _publish_body(request: Request, gateway: Gateway, vectors: Vectors, by: By) -> Version:
    _check_content_type(request, _FILE)
    draft = by.signing(draft_of_query(request.query_params))
    vectors.check_name(draft.name)
    base, store = gateway.ready_base(), vectors.store
    require_room = partial(gateway.quotas.require_room, by.principal)
    await asyncio.to_thread(require_room, announced_bytes(request))
    async with gateway.uploads.taken(by.principal.tenant):
        path = await asyncio.to_thread(store.new_upload)
        try:
            digest = await _write(request, gateway.config.max_upload_bytes, path)
            await asyncio.to_thread(lambda: require_room(path.stat().st_size, digest))
            return await asyncio.to_thread(vectors.publish, path, digest, draft, base)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)


async def _publish_upload(request: Request, gateway: Gateway, vectors: Vectors, by: By) -> Version:
    _check_content_type(request, _JSON)
    check_known(request.query_params.keys(), ("upload",), "query parameter")
    upload = only(request.query_params, "upload") or ""
    draft = by.signing(draft_of(parse_body(await read_body(request, MAX_JSON_BYTES))))
    vectors.check_name(draft.name)
    base = gateway.ready_base()
    length = (await asyncio.to_thread(vectors.uploads.find, upload)).length
    await asyncio.to_thread(gateway.quotas.require_room, by.principal, length)
    async with gateway.uploads.taken(by.principal.tenant):
        return await asyncio.to_thread(vectors.publish_upload, upload, draft, base)


def _check_content_type(request: Request, right: str) -> None:
    kind = request.headers.get("content-type", right).partition(";")[0].strip().lower()
    if kind != right:
        what = "the file's bytes" if right == _FILE else "what the upload shall be called"
        message = f"unsupported content type {kind[:100]!r}; send {what} as {right}"
        raise ApiError(415, message, "unsupported_media_type")


async def _write(request: Request, limit: int, path: Path) -> str:
    """Write the body to `path`; returns the sha256 in hex. Raises ApiError, StoreFull."""
    digest = hashlib.sha256()
    with await asyncio.to_thread(path.open, "wb", buffering=0) as file:

        def write(piece: bytearray) -> None:
            digest.update(piece)
            write_all(file.fileno(), piece)

        await receive(stream_body(request, limit), write)
    return digest.hexdigest()
