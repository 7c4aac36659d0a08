"""Leases: what one process of many does at a time, and another one goes on with when it dies."""

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from outfitter.state.database import Database
from outfitter.state.experiment_rows import LeaseRow


class Lease:
    """name: of what is done. holder: this process. seconds: it is free so long after `take`.

    The clocks of processes may differ by less than `seconds`; where they differ by more, two may
    hold it, so what is done under it has to bear that. Every method may block, and raises
    CatalogUnavailable.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        holder: str,
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._clock = database, clock
        self.name, self.holder, self.seconds = name, holder, seconds

    def take(self) -> bool:
        """Whether it is ours from now on; renews it where it is already."""
        now = self._clock()
        row, until = LeaseRow, now + self.seconds
        is_free = or_(row.holder == self.holder, row.until < now)
        taken = update(row).where(row.name == self.name, is_free)
        with self._database.changing() as session:
            insert = self._insert(row).values(name=self.name, holder=self.holder, until=until)
            session.execute(insert.on_conflict_do_nothing(index_elements=["name"]))
            session.execute(taken.values(holder=self.holder, until=until))
            found = session.scalar(select(row.holder).where(row.name == self.name))
            return found == self.holder

    def give_back(self) -> None:
        """Let another one have it at once, if it is ours."""
        row = LeaseRow
        with self._database.changing() as session:
            session.execute(delete(row).where(row.name == self.name, row.holder == self.holder))

    def _insert(self, row: type[Any]) -> Any:
        return sqlite.insert(row) if self._database.is_sqlite else postgresql.insert(row)
