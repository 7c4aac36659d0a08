"""The book of experiments: each change is a version, and stands in the trail with its cause."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from outfitter.accounts import By
from outfitter.control import rights
from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Experiment, Made
from outfitter.control.experiments.status import Status
from outfitter.control.principal import AUTOMATIC
from outfitter.control.rights import Viewer
from outfitter.errors import CatalogConflict
from outfitter.experiments.registry import Registry
from outfitter.state import audit, experiments
from outfitter.state.database import Database
from outfitter.state.resolver import Resolver
from outfitter.vectors import plain_name

AUTOMATICALLY = By(AUTOMATIC)
"""Who makes the changes that an experiment makes by itself."""
MAX_EXPERIMENTS = 10_000
"""That are looked through at once."""

Decide = Callable[[Experiment], Experiment]
"""What becomes of an experiment; called within the transaction, and may raise."""


class Book:
    """Every method may block, and may raise CatalogUnavailable.

    viewer: for whom, None for whoever may see and change everything. What it may not see is not
    there (ExperimentNotFound); what it may see but not change raises NotYours.
    """

    def __init__(self, database: Database, resolver: Resolver) -> None:
        self._database = database
        self._resolver = resolver
        self.registry = Registry(database, resolver.generation)

    def create(self, by: By, viewer: Viewer | None, definition: Definition) -> Experiment:
        """A draft. Raises NotYours, CatalogConflict."""
        rights.check_change(viewer, definition.name)
        made = Made("create", 0, by.principal.tenant, by.principal.key)
        draft = Experiment(definition, seed=definition.name, made=made)
        with self._database.writing() as session:
            created = experiments.create(session, draft)
            self._record(session, by, created, {})
        self._resolver.changed()
        return created

    def count(self, namespaces: Sequence[str] | None) -> int:
        """How many there are in some namespaces, all of them when None."""
        with self._database.reading() as session:
            return experiments.count(session, namespaces)

    def find(self, viewer: Viewer | None, name: str) -> Experiment:
        """An experiment as it is now. Raises ExperimentNotFound."""
        with self._database.reading() as session:
            return experiments.find(session, plain_name(name), viewer)

    def owned(self, viewer: Viewer | None, name: str) -> Experiment:
        """The same for whoever may change it. Raises ExperimentNotFound, NotYours."""
        found = self.find(viewer, name)
        rights.check_change(viewer, found.name)
        return found

    def page(
        self,
        viewer: Viewer | None,
        limit: int = 100,
        after: str | None = None,
        status: Status | None = None,
    ) -> tuple[tuple[Experiment, ...], str | None]:
        """Those that may be seen, by name, and the cursor of the next page."""
        with self._database.reading() as session:
            return experiments.page(session, limit, after, viewer, status)

    def all(self, viewer: Viewer | None = None, status: Status | None = None) -> list[Experiment]:
        """The first MAX_EXPERIMENTS of them, by name."""
        found: list[Experiment] = []
        after: str | None = None
        while True:
            page, after = self.page(viewer, experiments.MAX_LIMIT, after, status)
            found += page
            if after is None or len(found) >= MAX_EXPERIMENTS:
                return found[:MAX_EXPERIMENTS]

    def versions(self, viewer: Viewer | None, name: str) -> tuple[Experiment, ...]:
        """Its versions, newest first, for whoever may change it."""
        owned = self.owned(viewer, name)
        with self._database.reading() as session:
            return experiments.versions(session, owned.name)

    def change(
        self,
        by: By,
        viewer: Viewer | None,
        name: str,
        action: str,
        decide: Decide,
        *,
        expected: int | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> Experiment:
        """Make the next version, unless `decide` changes nothing.

        Buckets are dealt anew where shares or coverage differ, so that as few as can be move.
        action: as in the trail, without `experiment.`. expected: the version that must be the
        latest, else CatalogConflict. figures: what caused the change; they are kept with it. Raises
        ExperimentNotFound, NotYours, and what `decide` raises.
        """
        told = dict(figures or {})
        owned = self.owned(viewer, name)
        with self._database.writing() as session:
            old = experiments.find(session, owned.name, viewer)
            check_version(old, expected)
            new = decide(old)
            if new == old:
                return old
            made = Made(action, 0, by.principal.tenant, by.principal.key, told)
            new = experiments.append(session, replace(new.dealt(old), made=made))
            if new.pins != old.pins:
                experiments.need(session, new)
            self._record(session, by, new, told)
        self._resolver.changed()
        return new

    def delete(self, by: By, viewer: Viewer | None, name: str) -> None:
        """Forget one that does not run. Raises ExperimentNotFound, NotYours, CatalogConflict."""
        owned = self.owned(viewer, name)
        with self._database.writing() as session:
            found = experiments.find(session, owned.name)
            if found.status in (Status.RUNNING, Status.PAUSED):
                message = f"the experiment {found.name!r} is {found.status}: stop it first"
                raise CatalogConflict(message)
            experiments.remove(session, found.name)
            subject, who = found.id, by.principal
            audit.record(session, who, "experiment.delete", subject, by.request_id)
        self._resolver.changed()

    def _record(
        self, session: Session, by: By, experiment: Experiment, figures: Mapping[str, Any]
    ) -> None:
        detail = {"figures": dict(figures)} if figures else {}
        action = f"experiment.{experiment.made.action}"
        audit.record(session, by.principal, action, experiment.id, by.request_id, detail)


def check_version(found: Experiment, expected: int | None) -> None:
    """Raise CatalogConflict unless it is the version that must be the latest, if any."""
    if expected is not None and found.version != expected:
        raise CatalogConflict(
            f"the experiment {found.name!r} has version {found.version}, not {expected}:"
            " it changed meanwhile; look at it and try again"
        )
