"""Headers kept in memory, within a budget: a header can be megabytes, and there are many files."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from taskvectors.format import FileHeader

BUDGET = 16 << 20
"""Bytes of header text in all; parsed, a header takes several times as much memory."""


class HeaderCache:
    """The headers read last, by digest: the same digest is the same header for ever."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._kept: OrderedDict[str, FileHeader] = OrderedDict()
        self._lock = Lock()
        self.nbytes = 0

    def get(self, digest: str, read: Callable[[], FileHeader]) -> FileHeader:
        """The header of a digest, from `read()` the first time; raises what that raises."""
        with self._lock:
            if (kept := self._kept.get(digest)) is not None:
                self._kept.move_to_end(digest)
                return kept
        header = read()
        with self._lock:
            self._keep(digest, header)
        return header

    def forget(self, digest: str) -> None:
        """Read it again the next time."""
        with self._lock:
            if (gone := self._kept.pop(digest, None)) is not None:
                self.nbytes -= gone.head_nbytes

    def _keep(self, digest: str, header: FileHeader) -> None:
        if header.head_nbytes > self._budget or digest in self._kept:
            return
        self._kept[digest] = header
        self.nbytes += header.head_nbytes
        while self.nbytes > self._budget:
            _, gone = self._kept.popitem(last=False)
            self.nbytes -= gone.head_nbytes
