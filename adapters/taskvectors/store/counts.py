"""Counters of a tier that many threads add to."""

from dataclasses import replace
from threading import Lock

from taskvectors.store.tier import TierStats


class Counts:
    """The counters of a TierStats. The gauges (nbytes, budget, is_up) are the tier's own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stats = TierStats()

    def add(
        self,
        *,
        hits: int = 0,
        misses: int = 0,
        errors: int = 0,
        corrupt: int = 0,
        evictions: int = 0,
        read_bytes: int = 0,
        written_bytes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Count these more."""
        with self._lock:
            old = self._stats
            self._stats = replace(
                old,
                hits=old.hits + hits,
                misses=old.misses + misses,
                errors=old.errors + errors,
                corrupt=old.corrupt + corrupt,
                evictions=old.evictions + evictions,
                read_bytes=old.read_bytes + read_bytes,
                written_bytes=old.written_bytes + written_bytes,
                seconds=old.seconds + seconds,
            )

    @property
    def stats(self) -> TierStats:
        """The counts so far."""
        return self._stats
