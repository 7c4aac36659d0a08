"""Slots: which row of the coefficient table each running loadout has."""

from collections import OrderedDict
from collections.abc import Collection, Iterator


class SlotTable:
    """Deals `num_slots` rows out to loadout ids, least recently used out first.

    Rows are 1 to `num_slots`; row 0 is the base and is never dealt out.
    """

    def __init__(self, num_slots: int) -> None:
        self._rows: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(num_slots, 0, -1))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def row(self, loadout_id: int) -> int | None:
        """The row of `loadout_id`, now the most recently used; None if it has none."""
        if loadout_id not in self._rows:
            return None
        self._rows.move_to_end(loadout_id)
        return self._rows[loadout_id]

    def assign(self, loadout_id: int, busy: Collection[int]) -> int:
        """Give `loadout_id` a row, taking it from the oldest id that is not in `busy`."""
        assert loadout_id not in self._rows
        self.make_room(busy)
        self._rows[loadout_id] = self._free.pop()
        return self._rows[loadout_id]

    def make_room(self, busy: Collection[int]) -> int | None:
        """Unless a row is free, take one back from the oldest id that is not in `busy`: which."""
        if self._free:
            return None
        oldest = next(other for other in self._rows if other not in busy)
        self.release(oldest)
        return oldest

    def release(self, loadout_id: int) -> int | None:
        """Take the row back and return it; None when the id has none."""
        row = self._rows.pop(loadout_id, None)
        if row is not None:
            self._free.append(row)
        return row
