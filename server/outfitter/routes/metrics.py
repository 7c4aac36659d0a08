"""What the store does, in numbers for Prometheus and as JSON; and its garbage collection."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import Response

from outfitter.control.resolve import parse_body
from outfitter.deps import ByDep, GatewayDep
from outfitter.engine.metrics import kept_metrics
from outfitter.errors import ApiError, CatalogUnavailable
from outfitter.gateway import Gateway
from outfitter.observers.metrics import RequestMetrics
from outfitter.routes.body import read_body
from outfitter.routes.documented import json_body
from outfitter.schemas import check_known
from outfitter.telemetry import Snapshot, SnapshotCollector
from outfitter.vectors import Vectors
from taskvectors.errors import EngineUnavailable

router = APIRouter()

_COLLECT = {"grace_s": {"type": "number", "minimum": 0}, "dry_run": {"type": "boolean"}}

MAX_BODY_BYTES = 2**16
DEFAULT_GRACE_S = 3600.0


@router.get("/metrics")
async def metrics(gateway: GatewayDep) -> Response:
    """Prometheus' text format."""
    snapshot, engine = await asyncio.gather(_snapshot(gateway), _engine_metrics(gateway))
    content = await asyncio.to_thread(_exposition, snapshot, gateway.metrics, engine)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/store/stats")
async def stats(gateway: GatewayDep) -> dict[str, Any]:
    """The same numbers as JSON."""
    return {"object": "store.stats", **await _snapshot(gateway)}


@router.post("/v1/store/gc", openapi_extra=json_body(_COLLECT))
async def collect(request: Request, gateway: GatewayDep, by: ByDep) -> dict[str, Any]:
    """Drop the files that nothing needs. Body: `{"grace_s": 3600, "dry_run": false}`, or none."""
    raw = await read_body(request, MAX_BODY_BYTES)
    body = parse_body(raw) if raw else {}
    check_known(body, ("grace_s", "dry_run"))
    grace_s, dry_run = body.get("grace_s", DEFAULT_GRACE_S), body.get("dry_run", False)
    if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s < 1e12:
        message = f"grace_s must be seconds, 0 or more, not {str(grace_s)[:80]!r}"
        raise ApiError(400, message, "invalid_parameter", "grace_s")
    if not isinstance(dry_run, bool):
        raise ApiError(400, "dry_run must be true or false", "invalid_parameter", "dry_run")
    found = await asyncio.to_thread(gateway.vectors.collect, float(grace_s), dry_run)
    if not dry_run:
        detail = {"grace_s": grace_s, "files": len(found.digests), "nbytes": found.nbytes}
        await gateway.note(by, "store.gc", "store", detail)
    return {"object": "store.collection", "dry_run": dry_run, **asdict(found)}


async def _snapshot(gateway: Gateway) -> dict[str, Any]:
    engine, local = await asyncio.gather(
        _engine_stats(gateway), asyncio.to_thread(local_stats, gateway.vectors)
    )
    local["gateway"] |= {
        "requests_running": gateway.in_flight.requests,
        "streams_open": gateway.in_flight.streams,
        "tasks": len(asyncio.all_tasks()),
        "engine_restarts": gateway.supervisor.restarts if gateway.supervisor else 0,
    }
    usage = {"pending": gateway.usage.num_pending, "failures": gateway.usage.failures}
    shadows = {"pending": gateway.shadows.num_pending, "requests": vars(gateway.shadows.numbers)}
    quotas = gateway.quotas.stats()
    own = {"usage": usage, "shadows": shadows, "quotas": quotas}
    own["events"] = gateway.recorder.stats()
    return {**local, **own, "engine": engine}


def _exposition(snapshot: Snapshot, requests: RequestMetrics, engine: str) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot))
    return generate_latest(registry) + requests.text() + kept_metrics(engine).encode()


async def _engine_metrics(gateway: Gateway) -> str:
    """What vLLM tells; nothing while it is away."""
    if gateway.reason_not_ready is not None or gateway.relay is None:
        return ""
    try:
        return await gateway.relay.metrics()
    except EngineUnavailable:
        return ""


async def _engine_stats(gateway: Gateway) -> dict[str, Any]:
    if gateway.reason_not_ready is not None or gateway.relay is None:
        return {"is_up": False}
    try:
        return {"is_up": True, **await gateway.relay.stats()}
    except EngineUnavailable:
        return {"is_up": False}


def local_stats(vectors: Vectors) -> dict[str, Any]:
    """The numbers of this process; asks the catalog and the disk."""
    tiers = {name: asdict(stats) for name, stats in vectors.files.stats().items()}
    changes = vectors.resolver.changes
    has_redis = {"is_configured": changes.is_configured, "is_connected": changes.is_connected}
    incoming = vectors.store.root / "incoming" / "uploads"
    kept = list((vectors.store.root / "quarantine").glob("*.bin"))
    return {
        "gateway": {"tiers": tiers},
        "catalog": _catalog_stats(vectors),
        "uploads": {"in_progress": sum(1 for _ in incoming.glob("*.upload"))},
        "changes": has_redis,
        "quarantine": {"files": len(kept), "nbytes": sum(_size(path) for path in kept)},
    }


def _catalog_stats(vectors: Vectors) -> dict[str, Any]:
    try:
        return {"is_up": True, "generation": vectors.catalog.generation()}
    except CatalogUnavailable:
        return {"is_up": False, "generation": None}


def _size(path: Any) -> int:
    try:
        return int(path.stat().st_size)
    except OSError:
        return 0
