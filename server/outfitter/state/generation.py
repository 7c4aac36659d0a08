"""What is known of the catalog's generation, and since when: the clock of every cached answer."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress

from outfitter.errors import CatalogUnavailable
from outfitter.waiting import check_may_wait

log = logging.getLogger(__name__)

REFRESH_AFTER_S = 0.3
"""A generation that was confirmed so long ago is confirmed again, while others go on with it."""
BOUND_S = 0.5
"""A generation that was confirmed longer before a request than this says nothing to it."""


class _Reading:
    """A read of the generation under way. started: time.monotonic(), before it was asked for."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.result: Future[int] = Future()


class Generation:
    """The catalog's generation, read at most BOUND_S before whoever asks came.

    A read proves what was so when it *started*. Callers share reads, and no lock is held while the
    database is asked. After a failed read nobody waits for the next one: one caller tries every
    REFRESH_AFTER_S, the others are told that the catalog is away.
    """

    def __init__(self, read: Callable[[], int], executor: Executor) -> None:
        """`read` asks the catalog, and may raise CatalogUnavailable."""
        self._read = read
        self._executor = executor
        self._lock = threading.Lock()
        self._confirmed: tuple[int, float] | None = None
        self._reading: _Reading | None = None
        self._floor = 0.0
        self._failure: tuple[CatalogUnavailable, float] | None = None

    def current(self) -> int:
        """The generation now or a moment ago; raises CatalogUnavailable."""
        with self._lock:
            now = time.monotonic()
            if self._confirmed is not None and self._counts(self._confirmed[1], now):
                self._refresh_if_old(now)
                return self._confirmed[0]
            check_may_wait()
            reading, is_mine = self._join_or_start(now)
        if is_mine:
            self._finish(reading)
        return reading.result.result()

    def fresh(self) -> int | None:
        """The same if nobody has to wait for it; else None."""
        with self._lock:
            now = time.monotonic()
            if self._confirmed is None or not self._counts(self._confirmed[1], now):
                return None
            self._refresh_if_old(now)
            return self._confirmed[0]

    def last_known(self) -> int | None:
        """The generation of whenever the catalog answered last; None if it has changed since."""
        with self._lock:
            known = self._confirmed
            return known[0] if known is not None and known[1] > self._floor else None

    def changed(self) -> None:
        """Something was committed: what was read until now says nothing any more."""
        with self._lock:
            self._floor = time.monotonic()

    def heard(self, generation: int | None) -> None:
        """Somebody says that the catalog has this generation; None: it may have any."""
        with self._lock:
            known = self._confirmed
            if known is None or generation is None or generation > known[0]:
                self._floor = time.monotonic()

    def _counts(self, started: float, now: float) -> bool:
        return started > self._floor and started >= now - BOUND_S

    def _refresh_if_old(self, now: float) -> None:
        """Under the lock."""
        assert self._confirmed is not None
        is_old = now - self._confirmed[1] > REFRESH_AFTER_S
        if is_old and self._reading is None and self._may_try(now):
            reading = _Reading(now)
            with suppress(RuntimeError):  # closed: whoever still asks reads it directly
                self._executor.submit(self._finish, reading)
                self._reading = reading

    def _join_or_start(self, now: float) -> tuple[_Reading, bool]:
        """Under the lock: a read that this caller can use, and whether it has to do it."""
        reading = self._reading
        if self._failure is not None and (reading is not None or not self._may_try(now)):
            raise CatalogUnavailable(str(self._failure[0])) from self._failure[0]
        if reading is not None and self._counts(reading.started, now):
            return reading, False
        self._reading = _Reading(now)
        return self._reading, True

    def _may_try(self, now: float) -> bool:
        return self._failure is None or now - self._failure[1] > REFRESH_AFTER_S

    def _finish(self, reading: _Reading) -> None:
        """Ask the catalog, and tell everybody who waits."""
        try:
            generation = self._read()
        except BaseException as error:  # noqa: BLE001
            with self._lock:
                self._end(reading)
                if isinstance(error, CatalogUnavailable):
                    self._failure = (error, time.monotonic())
            reading.result.set_exception(error)
            return
        with self._lock:
            self._end(reading)
            self._failure = None
            if self._confirmed is None or reading.started > self._confirmed[1]:
                self._confirmed = (generation, reading.started)
        reading.result.set_result(generation)

    def _end(self, reading: _Reading) -> None:
        if self._reading is reading:
            self._reading = None
