"""Forgets the trail's oldest rows, a few at a time, so that nobody waits for long."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from outfitter.control.keep import Keep
from outfitter.errors import CatalogUnavailable
from outfitter.state.database import Database
from outfitter.state.models import AuditRow, LoadoutUseRow

log = logging.getLogger(__name__)

EACH_S = 3600.0
"""From one look for what is too old to the next."""
BATCH = 5000


class Retention:
    """Called now and then, it forgets what is too old once an hour; may block, never raises.

    Each server does so; what one has forgotten costs the next nothing. clock: Unix time, seconds.
    """

    def __init__(
        self, database: Database, keep: Keep, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._keep, self._clock = database, keep, clock
        self._next = 0.0

    def __call__(self) -> None:
        """Forget what is too old, unless that was done within the hour."""
        now = self._clock()
        if now < self._next:
            return
        try:
            self.forget(now)
        except CatalogUnavailable as error:
            log.warning("the trail is not shortened: %s", error)
        self._next = now + EACH_S

    def forget(self, now: float) -> int:
        """Returns how many rows are gone. Raises CatalogUnavailable."""
        gone = 0
        for seconds, some in ((self._keep.uses, _uses), (self._keep.changes, _changes)):
            while seconds is not None and (count := self._some(some, now - seconds)):
                gone += count
        return gone

    def _some(self, some: Callable[[Session, float], int], before: float) -> int:
        with self._database.changing() as session:
            return some(session, before)


def _uses(session: Session, before: float) -> int:
    """Those of the oldest hour, if it ended so long ago."""
    hour = session.scalar(select(func.min(LoadoutUseRow.hour)))
    if hour is None or hour + 3600 > before:
        return 0
    return _count(session, delete(LoadoutUseRow).where(LoadoutUseRow.hour == hour))


def _changes(session: Session, before: float) -> int:
    """The oldest ones, if they were made so long ago."""
    old = select(AuditRow.id).where(AuditRow.at < before).order_by(AuditRow.at).limit(BATCH)
    return _count(session, delete(AuditRow).where(AuditRow.id.in_(old)))


def _count(session: Session, statement: object) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[call-overload]
