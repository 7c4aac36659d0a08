"""How far stored task vectors disturb each other: computed in a process of its own, remembered."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from outfitter.control.resolve import ResolvedVector, parse_body
from outfitter.deps import VectorsDep
from outfitter.errors import ApiError, unavailable
from outfitter.routes.body import read_body
from outfitter.routes.documented import json_body
from outfitter.vectors import Vectors
from taskvectors import errors as tv
from taskvectors.spec import MAX_VECTORS, Reference

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**16
LIMIT_S = 300
MEMORY_BYTES = 4 << 30
MAX_RUNNING = 1
MAX_WAITING = 16
MAX_REMEMBERED = 32
_FIELDS = ("task_vectors", "per_layer")
_BODY = {
    "task_vectors": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 16},
    "per_layer": {"type": "boolean"},
}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Json = dict[str, Any]


class Comparisons:
    """Reports by digests: a few are remembered, one is computed at a time, others wait."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._running = asyncio.Semaphore(MAX_RUNNING)
        self._waiting = 0

    async def report(self, files: Mapping[str, str]) -> bytes:
        """JSON with the `report` on the files, given by digest; its vectors are in their order.

        Raises TaskVectorError, and ApiError when too many wait (503) or it takes too long (504).
        """
        key = tuple(sorted(files))
        if key not in self._known:
            if self._waiting >= MAX_WAITING:
                raise unavailable("too many comparisons are waiting", "interference_busy")
            self._waiting += 1
            try:
                async with self._running:
                    if key not in self._known:
                        self._known[key] = await _computed({name: files[name] for name in key})
            finally:
                self._waiting -= 1
        self._known.move_to_end(key)
        report = self._known[key]
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return report


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.comparisons = Comparisons()
    yield


router = APIRouter(prefix="/v1/task_vectors", lifespan=_lifespan)


@router.post("/interference", openapi_extra=json_body(_BODY, "task_vectors"))
async def interference(request: Request, vectors: VectorsDep) -> Response:
    """Figures for each pair of two to sixteen task vectors."""
    body = parse_body(await read_body(request, MAX_BODY_BYTES))
    references, per_layer = _asked(body)
    found, files = await asyncio.to_thread(_resolve, vectors, references)
    report = await request.app.state.comparisons.report(files)
    content = await asyncio.to_thread(_answer, references, found, report, per_layer)
    return Response(content, media_type="application/json")


def _asked(body: Mapping[str, object]) -> tuple[list[str], bool]:
    """The references and whether layers are wanted; raises ApiError (400)."""
    if unknown := sorted(body.keys() - set(_FIELDS)):
        message = f"unknown field {unknown[0][:200]!r}; choose {', '.join(_FIELDS)}"
        raise ApiError(400, message, "unknown_parameter", unknown[0][:200])
    references = body.get("task_vectors")
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        message = 'task_vectors must be a list of references, such as ["json", "acme/legal@3"]'
        raise ApiError(400, message, "invalid_parameter", "task_vectors")
    if not 2 <= len(references) <= MAX_VECTORS:
        message = f"a comparison needs 2 to {MAX_VECTORS} task vectors, not {len(references)}"
        raise ApiError(400, message, "invalid_parameter", "task_vectors")
    per_layer = body.get("per_layer", False)
    if not isinstance(per_layer, bool):
        raise ApiError(400, "per_layer must be true or false", "invalid_parameter", "per_layer")
    return references, per_layer


def _resolve(
    vectors: Vectors, references: Sequence[str]
) -> tuple[list[ResolvedVector], dict[str, str]]:
    """What the references stand for, and the file of each digest; may block on the disk."""
    found = [vectors.resolve(Reference.parse(reference)) for reference in references]
    by_digest: dict[str, str] = {}
    for reference, vector in zip(references, found, strict=True):
        if other := by_digest.get(vector.digest):
            message = f"{other[:200]!r} and {reference[:200]!r} are the same task vector"
            raise ApiError(400, message, "invalid_parameter", "task_vectors")
        by_digest[vector.digest] = reference
    _check_bases({by_digest[vector.digest]: vector.base_fingerprint for vector in found})
    return found, {digest: str(vectors.path(digest)) for digest in by_digest}


def _check_bases(fingerprints: Mapping[str, str | None]) -> None:
    """What is known from headers alone, told by the names of the request."""
    known = [(reference, found) for reference, found in fingerprints.items() if found is not None]
    for (one, first), (other, second) in itertools.pairwise(known):
        if first != second:
            raise tv.BaseMismatch(
                f"{one!r} belongs to the base {first}, but {other!r} to the base {second};"
                " compare vectors of one base"
            )


def _answer(
    references: Sequence[str], found: Sequence[ResolvedVector], computed: bytes, per_layer: bool
) -> bytes:
    """The report in the order of the request, with the names of the request."""
    report = json.loads(computed)["report"]
    rank = {vector.digest: position for position, vector in enumerate(found)}
    figures = {vector["name"]: vector for vector in report["vectors"]}
    vectors = [
        {
            "reference": reference,
            **figures[vector.digest],
            "name": vector.name,
            "version": vector.version,
            "digest": f"sha256:{vector.digest}",
        }
        for reference, vector in zip(references, found, strict=True)
    ]
    turned = [
        pair if rank[pair["left"]] < rank[pair["right"]] else _turned(pair)
        for pair in report["pairs"]
    ]
    turned.sort(key=lambda pair: (rank[pair["left"]], rank[pair["right"]]))
    pairs = [
        {**pair, "left": references[rank[pair["left"]]], "right": references[rank[pair["right"]]]}
        for pair in turned
    ]
    if not per_layer:
        pairs = [{k: v for k, v in pair.items() if k not in ("layers", "kinds")} for pair in pairs]
    fields = {
        "object": "interference",
        "base": report["base"],
        "task_vectors": vectors,
        "pairs": pairs,
        "advice": report["advice"],
    }
    return json.dumps(fields).encode()


def _turned(pair: Json) -> Json:
    """The same pair with its sides exchanged; all else is symmetric."""
    parts = {
        key: {name: _turned_figures(figures) for name, figures in pair[key].items()}
        for key in ("layers", "kinds")
    }
    return {**_turned_figures(pair), **parts, "left": pair["right"], "right": pair["left"]}


def _turned_figures(figures: Json) -> Json:
    return {**figures, "overlap_energy": figures["overlap_energy"][::-1]}


def _job(files: Mapping[str, str]) -> bytes:
    """What the process reads."""
    limits = {"seconds": LIMIT_S, "memory_bytes": MEMORY_BYTES, "parent": os.getpid()}
    return json.dumps({"files": files, **limits}).encode()


async def _computed(files: Mapping[str, str]) -> bytes:
    """Run the comparison; the process is gone when this returns or is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "taskvectors.interference"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            answer, trouble = await process.communicate(_job(files))
    except TimeoutError as error:
        message = f"the comparison took more than {LIMIT_S} s; run `outfitter interference` instead"
        raise ApiError(504, message, "interference_timeout") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    await asyncio.to_thread(_check, answer, trouble, process.returncode)
    return answer


def _check(answer: bytes, trouble: bytes, status: int | None) -> None:
    """Raise the error that a process wrote instead of a report."""
    if status == -signal.SIGKILL:  # by the kernel, for the machine's memory
        raise _too_large()
    try:
        fields = json.loads(answer)
    except ValueError:
        log.error(
            "a comparison ended with status %s: %s", status, trouble[-2000:].decode("latin-1")
        )
        message = "the comparison failed; the gateway's log says more"
        raise ApiError(500, message, "internal_error") from None
    if error := fields.get("error"):
        kind = getattr(tv, error["type"], None)
        if isinstance(kind, type) and issubclass(kind, tv.TaskVectorError):
            raise kind(error["message"])
        if error["type"] == "MemoryError":
            raise _too_large()
        if error["type"] == "FileNotFoundError":  # removed since it was resolved
            raise tv.VectorNotFound("a task vector was removed while it was being compared")
        log.error("a comparison failed: %s: %s", error["type"], error["message"])
        raise ApiError(500, "the comparison failed; the gateway's log says more", "internal_error")


def _too_large() -> ApiError:
    message = (
        f"the comparison takes more memory than the {MEMORY_BYTES >> 30} GiB that it may have here;"
        " run `outfitter interference` instead, or compare fewer vectors"
    )
    return ApiError(422, message, "interference_too_large", "task_vectors")
