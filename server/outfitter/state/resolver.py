"""What a reference stands for, remembered for as long as it is known to be so."""

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from outfitter.errors import CatalogUnavailable
from outfitter.state.changes import Changes
from outfitter.state.generation import Generation
from outfitter.state.records import Version
from outfitter.waiting import check_may_wait
from taskvectors.errors import VectorNotFound
from taskvectors.spec import Reference

log = logging.getLogger(__name__)

MAX_ANSWERS = 4096
MAX_BYTES = 64 << 20
"""For the texts of remembered versions, such as cards."""


class Versions(Protocol):
    """What the resolver asks of a catalog."""

    def version(self, reference: Reference) -> Version:
        """Raises VectorNotFound, CatalogUnavailable."""
        ...

    def generation(self) -> int:
        """Rises with every change that can alter an answer of `version`, in its transaction."""
        ...


@dataclass(frozen=True)
class _Answer:
    """What the catalog said at `generation`, or after it: a version, or why there is none."""

    generation: int
    version: Version | None
    problem: str = ""

    @property
    def nbytes(self) -> int:
        if self.version is None:
            return len(self.problem)
        details = self.version.details
        texts = (details.card, details.description, self.version.signature, *details.labels)
        return sum(len(text) for text in texts if text)

    def get(self) -> Version:
        if self.version is None:
            raise VectorNotFound(self.problem)
        return self.version


class Resolver:
    """Answers as the catalog does, at most half a second late; its own replica's writes at once.

    The generation is read before the value, and rises with the value: so what is remembered under
    a generation is never older than it. Every method may be called from many threads.
    """

    def __init__(self, catalog: Versions, changes: Changes) -> None:
        self._catalog = catalog
        self._changes = changes
        self._executor = ThreadPoolExecutor(2, "resolver")
        self._generation = Generation(catalog.generation, self._executor)
        self._answers = _Answers()
        self._lock = threading.Lock()
        self._asking: dict[tuple[Reference, int], Future[_Answer]] = {}
        self._is_announcing = False
        changes.listen(self._generation.heard)

    @property
    def changes(self) -> Changes:
        """How the replicas hear of each other."""
        return self._changes

    def version(self, reference: Reference) -> Version:
        """What `reference` stands for; raises VectorNotFound, CatalogUnavailable.

        A version by number or digest is answered from memory while the catalog is away.
        """
        try:
            generation = self._generation.current()
        except CatalogUnavailable:
            if (answer := self._last_known(reference)) is None:
                raise
            return answer.get()
        answer = self._answers.find(reference, generation)
        return (answer or self._ask_once(reference, generation)).get()

    def changed(self) -> None:
        """To be called when a write is committed, before it is acknowledged."""
        self._generation.changed()
        if not self._changes.is_configured:
            return
        with self._lock:
            if self._is_announcing:  # it has not read the generation yet
                return
            self._is_announcing = True
        with suppress(RuntimeError):  # closed
            self._executor.submit(self._announce)

    def close(self) -> None:
        """Stop listening. What is being asked may still be answered."""
        self._changes.close()
        self._executor.shutdown(wait=False)

    def _last_known(self, reference: Reference) -> _Answer | None:
        generation = self._generation.last_known()
        if generation is None or (reference.version is None and reference.digest is None):
            return None
        return self._answers.find(reference, generation)

    def _ask_once(self, reference: Reference, generation: int) -> _Answer:
        """Callers who know the same generation share one question."""
        check_may_wait()
        key = (reference, generation)
        with self._lock:
            future = self._asking.get(key)
            is_mine = future is None
            if future is None:
                future = self._asking[key] = Future()
        if is_mine:
            try:
                future.set_result(self._ask(reference, generation))
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._asking[key]
        return future.result()

    def _ask(self, reference: Reference, generation: int) -> _Answer:
        try:
            answer = _Answer(generation, self._catalog.version(reference))
        except VectorNotFound as error:
            answer = _Answer(generation, None, str(error))
        self._answers.keep(reference, answer)
        return answer

    def _announce(self) -> None:
        with self._lock:
            self._is_announcing = False
        try:
            self._changes.publish(self._generation.current())
        except CatalogUnavailable as error:
            log.debug("a change was not announced: %s", error)


class _Answers:
    """The answers that were asked for last, within MAX_ANSWERS and MAX_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[Reference, _Answer] = OrderedDict()
        self._nbytes = 0

    def find(self, reference: Reference, generation: int) -> _Answer | None:
        """The answer of exactly this generation."""
        with self._lock:
            answer = self._answers.get(reference)
            if answer is None or answer.generation != generation:
                return None
            self._answers.move_to_end(reference)
            return answer

    def keep(self, reference: Reference, answer: _Answer) -> None:
        """Remember an answer, instead of the one that is there."""
        with self._lock:
            old = self._answers.get(reference)
            self._nbytes += answer.nbytes - (old.nbytes if old is not None else 0)
            self._answers[reference] = answer
            self._answers.move_to_end(reference)
            while len(self._answers) > MAX_ANSWERS or self._nbytes > MAX_BYTES:
                _, gone = self._answers.popitem(last=False)
                self._nbytes -= gone.nbytes
