"""Copies files into tiers that lack them, behind the back of whoever loaded them."""

import logging
import threading
from collections import deque
from collections.abc import Sequence

from taskvectors.errors import TierUnavailable
from taskvectors.store.tier import Tier

log = logging.getLogger(__name__)

MAX_FILES = 64
MAX_BYTES = 1 << 30

Work = tuple[str, memoryview, Sequence[Tier]]


class Spreader:
    """One thread and a bounded queue; what does not fit is left for another load to do."""

    def __init__(self) -> None:
        self._queue: deque[Work] = deque()
        self._nbytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def spread(self, digest: str, data: memoryview, tiers: Sequence[Tier]) -> bool:
        """Put a checked file into `tiers` sometime; False when there is too much to do. At once."""
        with self._changed:
            is_full = len(self._queue) >= MAX_FILES or self._nbytes + data.nbytes > MAX_BYTES
            if self._is_closed or (self._queue and is_full):
                return False
            self._queue.append((digest, data, tiers))
            self._nbytes += data.nbytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="taskvectors-spread")
                self._thread.daemon = True
                self._thread.start()
            self._changed.notify_all()
            return True

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish the file in hand, if that is quick, and forget the rest."""
        with self._changed:
            self._is_closed = True
            while len(self._queue) > 1:
                self._queue.pop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return
                digest, data, tiers = self._queue[0]  # and stays there until it is done
            for tier in tiers:
                _put(tier, digest, data)
            with self._changed:
                self._queue.popleft()
                self._nbytes -= data.nbytes
                self._changed.notify_all()
            del data


def _put(tier: Tier, digest: str, data: memoryview) -> None:
    try:
        tier.put(digest, data)
    except TierUnavailable as error:
        log.info("sha256:%s was not copied to %s: %s", digest, tier.name, error)
    except Exception:
        log.exception("sha256:%s was not copied to %s", digest, tier.name)
