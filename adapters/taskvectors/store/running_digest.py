"""The sha256 of a buffer that is still being filled, by a thread of its own."""

import hashlib
import threading
from types import TracebackType

SMALL = 1 << 20
"""A smaller buffer is hashed afterwards: a thread would cost more than it saves."""
_STEP = 4 << 20


class RunningDigest:
    """Hashes `buffer` behind whoever fills it. A context manager, to end the thread."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._digest = hashlib.sha256()
        self._ready = 0
        self._is_over = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RunningDigest":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def advance(self, nbytes: int) -> None:
        """The first `nbytes` are in place and stay as they are."""
        with self._changed:
            self._ready = max(self._ready, min(nbytes, self._buffer.nbytes))
            self._changed.notify()
            if self._thread is None and self._buffer.nbytes >= SMALL:
                self._thread = threading.Thread(target=self._follow, name="taskvectors-hash")
                self._thread.daemon = True
                self._thread.start()

    def finish(self) -> str:
        """The digest in hex; everything is in place."""
        self.advance(self._buffer.nbytes)
        if self._thread is None:
            self._digest.update(self._buffer)
        else:
            self._end(at_once=False)
        return self._digest.hexdigest()

    def _follow(self) -> None:
        at = 0
        while at < self._buffer.nbytes:
            with self._changed:
                while self._ready <= at and not self._is_over:
                    self._changed.wait()
                if self._is_over:
                    return
                end = min(self._ready, at + _STEP)
            self._digest.update(self._buffer[at:end])
            at = end

    def _end(self, *, at_once: bool = True) -> None:
        if at_once:
            with self._changed:
                self._is_over = True
                self._changed.notify()
        if self._thread is not None:
            self._thread.join()
