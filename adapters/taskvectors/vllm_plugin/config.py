"""What the plugin is told at start, through vLLM's `--additional-config`."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskvectors.errors import UnsupportedEngine
from taskvectors.kernel_choice import KERNELS
from taskvectors.store.settings import TIERS, TierSettings

KEY = "task_vectors"
_INTEGERS: Mapping[str, int] = {
    "pool_bytes": 1,
    "max_vectors": 1,
    "max_waiting": 0,
    "composed_bytes": 1,
    "compose_memory_bytes": 1,
    "max_rank": 1,
    "max_mixed": 1,
}
"""The least value of each."""
_TIER_INTEGERS: Mapping[str, int] = {"memory_bytes": 0, "redis_bytes": 1, "redis_ttl_s": 1}
PLACEMENTS = ("auto", "off")
_SECONDS = ("admission_timeout_s", "compose_timeout_s")


@dataclass(frozen=True)
class PluginConfig:
    """The `task_vectors` object of vLLM's additional config.

    store: the directory store. pool_bytes: budget for resident vectors on the device.
    max_vectors: columns of the coefficient table, so how many vectors can be resident at once.
    base_fingerprint: vectors with another fingerprint are refused; None accepts all.
    admission_timeout_s: how long a request may wait for room in the pool.
    max_waiting: how many requests may wait for room, and how many for a composition.
    composed_bytes: budget for composed loadouts in the store.
    compose_memory_bytes: most memory of a process that composes.
    compose_timeout_s: how long a composition may take, and how long it may wait for its turn.
    placement: auto composes hot loadouts in the background where that pays, off never does.
    kernels: auto, cpu, triton or torch; see `kernel_choice`.
    compiled: on a CPU, let vLLM compile the model as it does without LoRA.
    max_rank, max_mixed: for Triton, the highest rank of a vector, and most vectors of a loadout.
    tiers: where files come from; their URLs come from the environment.
    """

    store: Path
    pool_bytes: int = 2 << 30
    max_vectors: int = 64
    base_fingerprint: str | None = None
    admission_timeout_s: float = 30.0
    max_waiting: int = 1024
    composed_bytes: int = 8 << 30
    compose_memory_bytes: int = 8 << 30
    compose_timeout_s: float = 300.0
    placement: str = "off"
    kernels: str = "auto"
    compiled: bool = False
    max_rank: int = 64
    max_mixed: int = 16
    tiers: TierSettings = field(default_factory=TierSettings)

    @classmethod
    def from_additional_config(cls, additional: object) -> "PluginConfig | None":
        """Read vLLM's additional config; None when it has no `task_vectors`."""
        fields = additional.get(KEY) if isinstance(additional, Mapping) else None
        if fields is None:
            return None
        if not isinstance(fields, Mapping):
            raise UnsupportedEngine(f"additional_config.{KEY} must be an object")
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(fields) - known):
            raise UnsupportedEngine(
                f"unknown key {unknown[0]!r} in additional_config.{KEY};"
                f" choose {', '.join(sorted(known))}"
            )
        if not isinstance(fields.get("store"), (str, Path)):
            raise UnsupportedEngine(f"additional_config.{KEY} needs 'store', a directory")
        tiers = fields.get("tiers", {})
        if not isinstance(tiers, Mapping):
            raise UnsupportedEngine(f"additional_config.{KEY}.tiers must be an object")
        _check_order(tiers.get("order", TIERS))
        settings = TierSettings.parse(tiers, os.environ)
        return cls(**{**fields, "store": Path(fields["store"]), "tiers": settings})._validated()

    def _validated(self) -> "PluginConfig":
        for name, least in _INTEGERS.items():
            _check_integer(name, getattr(self, name), least)
        for name, least in _TIER_INTEGERS.items():
            _check_integer(f"tiers.{name}", getattr(self.tiers, name), least)
        for name in _SECONDS:
            _check_seconds(name, getattr(self, name))
        if self.kernels not in KERNELS:
            raise UnsupportedEngine(
                f"additional_config.{KEY}.kernels must be one of {', '.join(KERNELS)}"
            )
        if not isinstance(self.compiled, bool):
            raise UnsupportedEngine(
                f"additional_config.{KEY}.compiled must be true or false,"
                f" not {_shown(self.compiled)}"
            )
        if self.placement not in PLACEMENTS:
            raise UnsupportedEngine(
                f"additional_config.{KEY}.placement must be one of {', '.join(PLACEMENTS)}"
            )
        _check_seconds("tiers.redis_timeout_s", self.tiers.redis_timeout_s)
        if not isinstance(self.tiers.redis_prefix, str):
            raise UnsupportedEngine(f"additional_config.{KEY}.tiers.redis_prefix must be a string")
        return self


def _check_order(order: object) -> None:
    if not isinstance(order, (list, tuple)) or not all(isinstance(name, str) for name in order):
        raise UnsupportedEngine(
            f"additional_config.{KEY}.tiers.order must be a list; choose {', '.join(TIERS)}"
        )
    if len(set(order)) < len(order):
        raise UnsupportedEngine(f"additional_config.{KEY}.tiers.order names a tier twice")


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UnsupportedEngine(
            f"additional_config.{KEY}.{name} must be an integer ≥ {least}, not {_shown(value)}"
        )


def _check_seconds(name: str, value: object) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:  # type: ignore[operator]
        raise UnsupportedEngine(
            f"additional_config.{KEY}.{name} must be a number > 0, not {_shown(value)}"
        )


def _shown(value: object) -> str:
    """A number as it is; of all else its kind, as a text in the wrong place may be a secret."""
    return repr(value) if isinstance(value, (int, float)) else type(value).__name__
