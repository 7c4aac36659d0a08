"""Which tiers a store has, in which order, and how large they may be."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from taskvectors.errors import UnsupportedEngine

MEMORY, REDIS, DISK, ORIGIN = "memory", "redis", "disk", "origin"
TIERS = (MEMORY, REDIS, DISK, ORIGIN)
REDIS_VARIABLE, ORIGIN_VARIABLE = "TASKVECTORS_REDIS_URL", "TASKVECTORS_ORIGIN_URL"
"""How the engine is told URLs: they may hold a password, and a command line is public."""


@dataclass(frozen=True)
class TierSettings:
    """The tiers in front of and behind the directory store.

    order: in which a load asks them; those without a URL or budget are left out. memory_bytes: of
    the host's memory for files. redis_prefix: of every key. redis_bytes: for chunks, all replicas
    together. redis_ttl_s: a file that nobody reads for so long is forgotten there. redis_timeout_s:
    of each round trip. origin_url: an fsspec URL of a folder that all replicas share.
    """

    order: tuple[str, ...] = TIERS
    memory_bytes: int = 1 << 30
    redis_url: str | None = field(default=None, repr=False)
    redis_prefix: str = "outfitter"
    redis_bytes: int = 4 << 30
    redis_ttl_s: int = 7 * 24 * 3600
    redis_timeout_s: float = 2.0
    origin_url: str | None = field(default=None, repr=False)

    def public(self) -> dict[str, object]:
        """What may stand on a command line: everything but the URLs."""
        return {k: v for k, v in asdict(self).items() if k not in ("redis_url", "origin_url")}

    @classmethod
    def parse(cls, given: Mapping[str, Any], environment: Mapping[str, str]) -> "TierSettings":
        """The inverse of `public`, with the URLs of the environment. Raises UnsupportedEngine."""
        known = {item.name for item in fields(cls)} - {"redis_url", "origin_url"}
        if unknown := sorted(set(given) - known):
            raise UnsupportedEngine(
                f"unknown tier setting {unknown[0]!r}; choose {', '.join(sorted(known))}"
            )
        order = tuple(given.get("order", TIERS))
        if wrong := [name for name in order if name not in TIERS]:
            raise UnsupportedEngine(f"unknown tier {wrong[0]!r}; choose {', '.join(TIERS)}")
        urls = (environment.get(REDIS_VARIABLE), environment.get(ORIGIN_VARIABLE))
        return replace(
            cls(**{**given, "order": order}), redis_url=urls[0] or None, origin_url=urls[1] or None
        )
