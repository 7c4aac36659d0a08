"""What a gateway is made of, opened as its configuration says."""

import time

from outfitter.config import GatewayConfig, cache_home
from outfitter.control.fair_queue import FairQueue
from outfitter.quotas.counters import Counters
from outfitter.quotas.quotas import Quotas
from outfitter.vectors import Base, Vectors, open_vectors
from taskvectors.checkpoint import cached_fingerprint, load_base_shapes


def open_store(config: GatewayConfig) -> Vectors:
    """The store that a gateway was told to use; raises TaskVectorError, InvalidConfig, OSError."""
    return open_vectors(
        config.store,
        database_url=config.database_url,
        tiers=config.tiers,
        trust=config.trust,
        quarantine_bytes=config.quarantine_bytes,
    )


def open_quotas(config: GatewayConfig, vectors: Vectors) -> Quotas:
    """The quotas of a gateway; what is counted is shared through Redis if it has one."""
    return Quotas(
        config.limits.of,
        Counters(config.tiers.redis_url, config.tiers.redis_prefix),
        FairQueue(config.max_running, config.max_waiting, time.monotonic),
        vectors.catalog.stored,
        max_wait_s=config.max_wait_s,
    )


def prepare_base(config: GatewayConfig) -> Base:
    """Read what task vectors are checked against; the fingerprint is cached."""
    shapes = load_base_shapes(config.model)
    return Base(cached_fingerprint(config.model, cache_home() / "fingerprints"), dict(shapes))
