"""Extents: which bytes of a buffer are taken."""

import bisect

from taskvectors.errors import VectorLoadFailed

ALIGNMENT = 16
"""Bytes; what the widest load of a kernel asks for."""


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to whole units of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Extents:
    """First fit over the holes of `capacity` bytes; neighbours are joined when freed."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // ALIGNMENT * ALIGNMENT
        self._holes = [(0, self.capacity)] if self.capacity else []
        self._taken: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Bytes that are not taken."""
        return sum(size for _, size in self._holes)

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest extent that could be taken."""
        return max((size for _, size in self._holes), default=0)

    def take(self, nbytes: int) -> int:
        """Where `nbytes` bytes now belong to the caller. Raises VectorLoadFailed."""
        assert nbytes > 0
        size = aligned(nbytes)
        for i, (start, room) in enumerate(self._holes):
            if room >= size:
                self._holes[i : i + 1] = [(start + size, room - size)] if room > size else []
                self._taken[start] = size
                return start
        raise VectorLoadFailed(
            f"no room for {size} bytes in one piece: {self.num_free} of {self.capacity} are free,"
            f" {self.largest_hole} in the largest hole; reserve a larger pool"
        )

    def compact(self) -> list[tuple[int, int, int]]:
        """Move all that is taken to the front: (from, to, bytes), in the order to move them."""
        moves, end = [], 0
        for start, size in sorted(self._taken.items()):
            moves.append((start, end, size))
            end += size
        self._taken = {to: size for _, to, size in moves}
        self._holes = [(end, self.capacity - end)] if end < self.capacity else []
        return moves

    def free(self, start: int) -> None:
        """Give back what `take` answered with `start`."""
        size = self._taken.pop(start)
        i = bisect.bisect(self._holes, (start, 0))
        if i < len(self._holes) and start + size == self._holes[i][0]:
            size += self._holes.pop(i)[1]
        if i and sum(self._holes[i - 1]) == start:
            start, before = self._holes.pop(i - 1)
            i, size = i - 1, size + before
        self._holes.insert(i, (start, size))
