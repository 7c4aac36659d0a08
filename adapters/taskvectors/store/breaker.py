"""A breaker: a tier that does not answer is left alone for a while, and then tried once."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskvectors.errors import TierUnavailable, VectorNotFound

log = logging.getLogger(__name__)


class Breaker:
    """Lets calls to a tier through while it answers; may be used from many threads at once.

    After `failures` in a row the tier is away for `away_s` seconds: calls raise TierUnavailable at
    once. Then one call is let through while the others still raise; whether it fails decides.
    The log has one warning when the tier goes away and one when it is back.
    """

    def __init__(
        self,
        name: str,
        failures: int = 3,
        away_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._limit, self._away_s, self._clock = name, failures, away_s, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._next_probe: float | None = None  # None while the tier is up
        self._is_probing = False

    @property
    def is_up(self) -> bool:
        """False from the failure that opened it until a call succeeds."""
        return self._next_probe is None

    @contextmanager
    def calling(self) -> Iterator[None]:
        """The block is one call. TierUnavailable is a failure, VectorNotFound an answer.

        Raises TierUnavailable instead of running the block while the tier is away. Any other error
        says nothing about the tier.
        """
        is_probe = self._enter()
        try:
            yield
        except TierUnavailable as error:
            self._failed(error, is_probe)
            raise
        except VectorNotFound:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if is_probe:
                self._is_probing = False

    def _enter(self) -> bool:
        """Whether this call is the probe."""
        with self._lock:
            if self._next_probe is None:
                return False
            if self._is_probing or self._clock() < self._next_probe:
                raise TierUnavailable(f"{self._name} did not answer lately and is left alone")
            self._is_probing = True
            return True

    def _failed(self, error: TierUnavailable, is_probe: bool) -> None:
        with self._lock:
            self._failures += 1
            opens = self._next_probe is None and self._failures >= self._limit
            if opens or is_probe:
                self._next_probe = self._clock() + self._away_s
        if opens:
            log.warning("%s is left alone until it answers again: %s", self._name, error)

    def _answered(self) -> None:
        with self._lock:
            closes = self._next_probe is not None
            self._failures, self._next_probe = 0, None
        if closes:
            log.warning("%s answers again", self._name)
