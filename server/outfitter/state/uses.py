"""Which key used which loadout: counted in memory, written by the minute, never waited for."""

import logging
import threading
import time
from collections.abc import Mapping

from sqlalchemy import Insert, case
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from outfitter.control.outcome import Outcome
from outfitter.state.models import LoadoutUseRow

log = logging.getLogger(__name__)

HOUR_S = 3600
MAX_PENDING = 100_000
"""Rows that are kept, beside those being written; what comes beyond is told in the log."""

UseKey = tuple[int, str, str, str]
"""hour, tenant, key, loadout."""
Counts = dict[UseKey, tuple[int, int, int]]
"""count, first, last."""


class UseLog:
    """Counts outcomes by hour, tenant, key and loadout, until somebody takes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Counts = {}
        self.num_lost = 0

    def observe(self, outcome: Outcome) -> None:
        """Count a request that has ended, unless it was refused before it had a loadout: then none
        was used. Never waits."""
        if not outcome.loadout:
            return
        now = int(time.time())
        who = outcome.principal
        key = (now // HOUR_S * HOUR_S, who.tenant, who.key or "", outcome.loadout)
        with self._lock:
            have = self._pending.get(key)
            if have is None and len(self._pending) >= MAX_PENDING:
                self._lose()
                return
            count, first, last = have or (0, now, now)
            self._pending[key] = (count + 1, min(first, now), max(last, now))

    def take(self) -> Counts:
        """What is pending; it is the caller's now."""
        with self._lock:
            pending, self._pending = self._pending, {}
        return pending

    def _lose(self) -> None:
        if self.num_lost == 0:
            log.warning("the trail of loadouts is full (%d rows): uses get lost", MAX_PENDING)
        self.num_lost += 1


def write(session: Session, counts: Mapping[UseKey, tuple[int, int, int]]) -> None:
    """Add counts to what other replicas wrote; in one order, so that they never wait crosswise."""
    for (hour, tenant, key, loadout), (count, first, last) in sorted(counts.items()):
        fields = {"hour": hour, "tenant": tenant, "key": key, "loadout": loadout}
        fields |= {"count": count, "first": first, "last": last}
        session.execute(_upsert(session, fields))


def _upsert(session: Session, fields: Mapping[str, object]) -> Insert:
    row = LoadoutUseRow
    insert = (
        sqlite.insert(row)
        if session.get_bind().dialect.name == "sqlite"
        else postgresql.insert(row)
    ).values(**fields)
    new = insert.excluded
    return insert.on_conflict_do_update(
        index_elements=["hour", "tenant", "key", "loadout"],
        set_={
            "count": row.count + new.count,
            "first": case((new.first < row.first, new.first), else_=row.first),
            "last": case((new.last > row.last, new.last), else_=row.last),
        },
    )
