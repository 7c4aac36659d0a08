"""The pool in the worker: which vectors are resident, filled by a thread of its own.

The engine's step thread calls `apply`, `status` and `column`; none of them waits. Files are
read, checked and staged by the loader thread, in the order in which they were asked for.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Mapping
from typing import Any

import torch

from taskvectors.errors import TaskVectorError
from taskvectors.format import read_vector
from taskvectors.store import DirectoryStore
from taskvectors.vllm_plugin.staging import Staged, Stager

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

LOADING, READY, FAILED = "loading", "ready", "failed: "


class ResidentPool:
    """Resident vectors by digest. `status` answers 'loading', 'ready' or 'failed: why'."""

    def __init__(self, store: DirectoryStore, stager: Stager) -> None:
        self._store = store
        self._stager = stager
        self._columns: dict[str, int] = {}
        self._status: dict[str, str] = {}
        self._installed: dict[int, Staged] = {}
        self._jobs: queue.SimpleQueue[tuple[str | None, int]] = queue.SimpleQueue()
        self.stream: Any = None
        threading.Thread(target=self._work, name="taskvectors-loader", daemon=True).start()

    def apply(self, evict: list[str], load: Mapping[str, int]) -> None:
        """Forget `evict` at once, and queue `load` (digest → column)."""
        for digest in evict:
            column = self._columns.pop(digest, None)
            self._status.pop(digest, None)
            if column is not None:
                self._jobs.put((None, column))
        for digest, column in load.items():
            self._columns[digest] = column
            self._status[digest] = LOADING
            self._jobs.put((digest, column))

    def status(self) -> dict[str, str]:
        """The state of every vector that is wanted."""
        return dict(self._status)

    def column(self, digest: str) -> int | None:
        """The column of a vector that is ready; None for any other."""
        return self._columns.get(digest) if self._status.get(digest) == READY else None

    @property
    def nbytes(self) -> int:
        """Device bytes of what is installed."""
        return sum(s.nbytes for staged in list(self._installed.values()) for _, s in staged)

    def _work(self) -> None:
        while True:
            digest, column = self._jobs.get()
            with self._on_stream():
                if digest is None:
                    self._uninstall(column)
                else:
                    self._finish(digest, column, self._load(digest, column))

    def _finish(self, digest: str, column: int, status: str) -> None:
        if self._columns.get(digest) == column:  # else it was evicted while it loaded
            self._status[digest] = status

    def _load(self, digest: str, column: int) -> str:
        try:
            vector = read_vector(self._store.path(digest), expected_digest=digest)
            self._installed[column] = self._stager.stage(vector, column)
            for site, staged in self._installed[column]:
                site.deltas = site.deltas.with_vector(column, staged)
        except (TaskVectorError, OSError, MemoryError, RuntimeError) as error:
            logger.exception("task vector sha256:%s was not loaded", digest)
            self._uninstall(column)
            return f"{FAILED}{type(error).__name__}: {error}"
        return READY

    def _uninstall(self, column: int) -> None:
        for site, _ in self._installed.pop(column, []):
            site.deltas = site.deltas.without_vector(column)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Order copies with the steps' kernels on a GPU: one stream, so no use after free."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
