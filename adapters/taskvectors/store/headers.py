"""Headers kept in memory, within a budget: a header can be megabytes, and there are many files."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from taskvectors.format import FileHeader, read_header

BUDGET = 16 << 20
"""Bytes of header text in all; parsed, a header takes several times as much memory."""


class HeaderCache:
    """The headers read last. Blobs never change, so a path stands for one header."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._kept: OrderedDict[Path, FileHeader] = OrderedDict()
        self._lock = Lock()
        self.nbytes = 0

    def read(self, path: Path) -> FileHeader:
        """Raises what `read_header` raises."""
        with self._lock:
            if (kept := self._kept.get(path)) is not None:
                self._kept.move_to_end(path)
                return kept
        header = read_header(path)
        with self._lock:
            self._keep(path, header)
        return header

    def _keep(self, path: Path, header: FileHeader) -> None:
        if header.head_nbytes > self._budget or path in self._kept:
            return
        self._kept[path] = header
        self.nbytes += header.head_nbytes
        while self.nbytes > self._budget:
            _, gone = self._kept.popitem(last=False)
            self.nbytes -= gone.head_nbytes
