"""Is the gateway alive, and can it serve?"""

from fastapi import APIRouter

from outfitter.deps import GatewayDep
from outfitter.errors import unavailable

router = APIRouter(prefix="/health")


@router.get("/live")
async def live() -> dict[str, object]:
    """The process answers."""
    return {"status": "live"}


@router.get("/ready")
async def ready(gateway: GatewayDep) -> dict[str, object]:
    """Requests can be served now; else 503 with the reason."""
    if (reason := gateway.reason_not_ready) is not None:
        raise unavailable(reason, "engine_not_ready")
    assert gateway.base is not None
    assert gateway.supervisor is not None
    return {
        "status": "ready",
        "model": gateway.config.name,
        "base_fingerprint": gateway.base.fingerprint,
        "engine_restarts": gateway.supervisor.restarts,
    }
