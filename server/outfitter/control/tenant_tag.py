"""What the engine is told of a tenant: a tag that names nobody, and its part of the pool. Pure."""

import hashlib

TENANT_HEADER = "x-taskvectors-tenant"
SHARE_HEADER = "x-taskvectors-share"


def engine_headers_of(tenant: str, pool_share: float | None) -> dict[str, str]:
    """The headers that go beside that of the loadout."""
    headers = {TENANT_HEADER: hashlib.sha256(tenant.encode()).hexdigest()[:16]}
    if pool_share is not None:
        headers[SHARE_HEADER] = f"{pool_share:.6f}"
    return headers
