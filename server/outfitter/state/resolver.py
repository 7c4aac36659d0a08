"""What a reference stands for, remembered for as long as it is known to be so."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar

from outfitter.control.rights import Viewer
from outfitter.errors import CatalogUnavailable
from outfitter.state.answers import Answer, Answers, Question
from outfitter.state.changes import Changes
from outfitter.state.generation import Generation
from outfitter.state.records import SavedLoadout, Version
from taskvectors.spec import Reference

log = logging.getLogger(__name__)

T = TypeVar("T")


class Answering(Protocol):
    """What the resolver asks of a catalog."""

    def version(self, reference: Reference, viewer: Viewer | None = None) -> Version:
        """Raises VectorNotFound, CatalogUnavailable."""
        ...

    def loadout(
        self, name: str, version: int | None = None, viewer: Viewer | None = None
    ) -> SavedLoadout:
        """Raises VectorNotFound, CatalogUnavailable."""
        ...

    def generation(self) -> int:
        """Rises with every change that can alter an answer of these, in its transaction."""
        ...


class Resolver:
    """Answers as the catalog does, at most half a second late; its own replica's writes at once.

    The generation is read before the value, and rises with the value: so what is remembered under
    a generation is never older than it. Every method may be called from many threads.
    """

    def __init__(self, catalog: Answering, changes: Changes) -> None:
        self._changes = changes
        self._executor = ThreadPoolExecutor(2, "resolver")
        self._generation = Generation(catalog.generation, self._executor)
        self._versions = Answers(lambda asked: catalog.version(*asked), _weigh_version)
        self._loadouts = Answers(
            lambda asked: catalog.loadout(str(asked[0].path), asked[0].version, asked[1]),
            _weigh_loadout,
        )
        self._lock = threading.Lock()
        self._is_announcing = False
        changes.listen(self._generation.heard)

    @property
    def changes(self) -> Changes:
        """How the replicas hear of each other."""
        return self._changes

    @property
    def generation(self) -> Generation:
        """The catalog's generation, for whoever else remembers what it says."""
        return self._generation

    def version(self, reference: Reference, viewer: Viewer | None = None) -> Version:
        """What `reference` stands for, for whoever asks; raises VectorNotFound, CatalogUnavailable.

        A version by number or digest is answered from memory while the catalog is away.
        """
        return self._get(self._versions, (reference, viewer))

    def loadout(self, reference: Reference, viewer: Viewer | None = None) -> SavedLoadout:
        """The saved loadout of a name, or of a name and version; raises as `version` does."""
        return self._get(self._loadouts, (reference, viewer))

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

    def _get(self, answers: Answers[T], question: Question) -> T:
        try:
            generation = self._generation.current()
        except CatalogUnavailable:
            if (answer := self._last_known(answers, question)) is None:
                raise
            return answer.get()
        return (answers.find(question, generation) or answers.ask(question, generation)).get()

    def _last_known(self, answers: Answers[T], question: Question) -> Answer[T] | None:
        reference, generation = question[0], self._generation.last_known()
        if generation is None or (reference.version is None and reference.digest is None):
            return None
        return answers.find(question, generation)

    def _announce(self) -> None:
        with self._lock:
            self._is_announcing = False
        try:
            self._changes.publish(self._generation.current())
        except CatalogUnavailable as error:
            log.debug("a change was not announced: %s", error)


def _weigh_version(version: Version) -> int:
    details = version.details
    texts = (details.card, details.description, version.signature, *details.labels)
    return sum(len(text) for text in texts if text)


def _weigh_loadout(saved: SavedLoadout) -> int:
    """What it was asked for weighs about as much as what is said of it."""
    return 4 * len(saved.canonical) + len(saved.terms.description or "")
