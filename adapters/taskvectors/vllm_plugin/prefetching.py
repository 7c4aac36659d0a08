"""Prefetching in the worker: vectors come into host memory before anybody needs them.

The engine's step thread calls `prefetch` and `states`; neither waits.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable

from taskvectors.store.settings import MEMORY
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin.pool import FAILED, LOADING, failure

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

IN_MEMORY = "memory"
MAX_QUEUED = 1024
MAX_REMEMBERED = 4096


class Prefetcher:
    """Loads files into the memory tier, one at a time, in a thread of its own."""

    def __init__(self, files: TieredFiles) -> None:
        self._files = files
        self._memory = next((tier for tier in files.tiers if tier.name == MEMORY), None)
        self._queue: deque[str] = deque()
        self._states: OrderedDict[str, str] = OrderedDict()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def prefetch(self, digests: Iterable[str]) -> None:
        """Bring these into memory sometime; what is under way already is not queued again."""
        with self._changed:
            for digest in digests:
                if self._states.get(digest) == LOADING:
                    continue
                if self._memory is None:
                    self._note(digest, FAILED + "the engine keeps no vectors in host memory")
                elif len(self._queue) >= MAX_QUEUED:
                    self._note(digest, FAILED + f"{MAX_QUEUED} vectors wait to be prefetched")
                else:
                    self._note(digest, LOADING)
                    self._queue.append(digest)
            if self._queue and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="taskvectors-prefetch")
                self._thread.daemon = True
                self._thread.start()
            self._changed.notify()

    def states(self, digests: Iterable[str]) -> dict[str, str]:
        """'loading', 'memory', or why not, as far as they were asked for and are remembered."""
        with self._changed:
            return {digest: self._states[digest] for digest in digests if digest in self._states}

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                digest = self._queue.popleft()
            state = self._load(digest)
            with self._changed:
                self._note(digest, state)

    def _load(self, digest: str) -> str:
        assert self._memory is not None
        try:
            nbytes = self._files.load(digest).nbytes
            if self._memory.size(digest) is None:
                return f"{FAILED}its {nbytes} bytes do not fit the engine's host memory"
        except Exception as error:
            logger.exception("task vector sha256:%s was not prefetched", digest)
            return failure(error)
        return IN_MEMORY

    def _note(self, digest: str, state: str) -> None:
        self._states[digest] = state
        self._states.move_to_end(digest)
        while len(self._states) > MAX_REMEMBERED:
            self._states.popitem(last=False)
