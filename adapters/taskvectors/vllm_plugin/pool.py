"""The pool in the worker: which vectors are resident, filled by a thread of its own.

The engine's step thread calls `apply`, `status` and `column`; none of them waits. Files are
read, checked and staged by the loader thread, in the order in which they were asked for.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from taskvectors.errors import TaskVectorError, TierUnavailable, VectorNotFound
from taskvectors.format import VectorReader, check_against_base, read_vector
from taskvectors.store.tiered import TieredFiles
from taskvectors.vllm_plugin.sites import Site
from taskvectors.vllm_plugin.staging import Staged, Stager

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

LOADING, READY, FAILED, MISSING, AWAY = "loading", "ready", "failed: ", "missing: ", "away: "
"""States of a vector; the last three go on with the reason."""


@dataclass(frozen=True)
class Order:
    """One order to load a vector into a column. Orders are compared by identity: the same vector
    may be evicted and ordered again, into the same column, while its first load is under way.

    nbytes: what was reserved for it on the device, by a header that nobody had checked.
    """

    digest: str
    column: int
    nbytes: int

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Residence(Protocol):
    """Where staged vectors go; called by the loader thread."""

    def install(self, column: int, staged: Staged) -> None:
        """Make a staged vector ready for steps. Raises VectorLoadFailed; then nothing is kept."""

    def remove(self, column: int) -> None:
        """Forget a vector that was installed."""


class LayerDeltas:
    """The residence beside the layers: each site holds its own deltas."""

    def __init__(self) -> None:
        self._sites: dict[int, list[Site]] = {}

    def install(self, column: int, staged: Staged) -> None:
        """Hand each site its part."""
        self._sites[column] = [site for site, _ in staged]
        for site, deltas in staged:
            site.deltas = site.deltas.with_vector(column, deltas)

    def remove(self, column: int) -> None:
        """Take it back from each."""
        for site in self._sites.pop(column, []):
            site.deltas = site.deltas.without_vector(column)


class ResidentPool:
    """Resident vectors by digest; `status` tells the state of each.

    base_fingerprint: vectors of another base are refused; None accepts all. residence: where
    vectors go; by default the layers.
    """

    def __init__(
        self,
        files: TieredFiles,
        stager: Stager,
        base_fingerprint: str | None = None,
        residence: Residence | None = None,
    ) -> None:
        self._files = files
        self._stager = stager
        self._base_fingerprint = base_fingerprint
        self.num_loads, self.load_seconds = 0, 0.0
        self._orders: dict[str, Order] = {}
        self._status: dict[str, str] = {}
        self._residence = residence or LayerDeltas()
        self._installed: set[Order] = set()
        self._jobs: queue.SimpleQueue[tuple[Callable[[Order], None], Order]] = queue.SimpleQueue()
        self.stream: Any = None
        threading.Thread(target=self._work, name="taskvectors-loader", daemon=True).start()

    def apply(self, evict: list[str], load: Mapping[str, tuple[int, int]]) -> None:
        """Forget `evict` at once, and queue `load` (digest → column, bytes reserved for it)."""
        for digest in [*evict, *load]:
            self._status.pop(digest, None)
            if (order := self._orders.pop(digest, None)) is not None:
                self._jobs.put((self._uninstall, order))
        for digest, (column, nbytes) in load.items():
            self._orders[digest] = Order(digest, column, nbytes)
            self._status[digest] = LOADING
            self._jobs.put((self._load, self._orders[digest]))

    def status(self) -> dict[str, str]:
        """The state of every vector that is wanted."""
        return dict(self._status)

    def column(self, digest: str) -> int | None:
        """The column of a vector that is ready; None for any other."""
        return self._orders[digest].column if self._status.get(digest) == READY else None

    def _work(self) -> None:
        while True:
            job, order = self._jobs.get()
            with self._on_stream():
                try:
                    job(order)
                except Exception as error:
                    logger.exception("task vector sha256:%s: the loader failed", order.digest)
                    self._finish(order, failure(error))

    def _finish(self, order: Order, status: str) -> None:
        if self._is_wanted(order):
            self._status[order.digest] = status

    def _is_wanted(self, order: Order) -> bool:
        return self._orders.get(order.digest) is order

    def _load(self, order: Order) -> None:
        if not self._is_wanted(order):
            return
        begin = time.monotonic()
        try:
            data = self._files.load(order.digest)
            with VectorReader(data) as reader:
                check_against_base(reader.header, None, self._base_fingerprint)
                _check_room(order, self._stager.nbytes(reader.header))
            vector = read_vector(data)
            staged = self._stager.stage(vector, order.column)
            self._residence.install(order.column, staged)
            self._installed.add(order)
        except Exception:
            self._uninstall(order)
            raise
        self.num_loads += 1
        self.load_seconds += time.monotonic() - begin
        self._finish(order, READY)

    def _uninstall(self, order: Order) -> None:
        if order in self._installed:
            self._installed.remove(order)
            self._residence.remove(order.column)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Order copies with the steps' kernels on a GPU: one stream, so no use after free."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def _check_room(order: Order, nbytes: int) -> None:
    """The file is checked by now, so it is right. Raises TierUnavailable: another look helps."""
    if nbytes != order.nbytes:
        raise TierUnavailable(
            f"it takes {nbytes} bytes on the device, and a header that came from elsewhere"
            f" claimed {order.nbytes}; try again"
        )


def failure(error: Exception) -> str:
    """A state that says what a client may know; the texts of other libraries may hold paths."""
    if isinstance(error, VectorNotFound):
        return MISSING + str(error)
    if isinstance(error, TierUnavailable):
        return AWAY + str(error)
    if isinstance(error, TaskVectorError):
        return FAILED + str(error)
    return f"{FAILED}{type(error).__name__}; the engine's log says more"
