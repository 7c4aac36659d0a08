"""Coefficients: the weight of each resident vector for each row of a step.

`C[row, column]` holds one row per slot (row 0, the base, stays zero) and one column per resident
vector. A loadout that selects layers or modules has its own weights for every *part*: one
checkpoint module, such as `model.layers.3.self_attn.q_proj`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.spec import EVERYWHERE, Selection


@dataclass(frozen=True)
class WeightedColumn:
    """One vector of a loadout, by its column in the pool."""

    column: int
    weight: float
    selection: Selection = EVERYWHERE


@dataclass
class StepCoefficients:
    """The coefficients of one step's rows, on the device.

    num_rows: T. columns: those with a nonzero weight in this step. table: [P or 1, U, K] for the
    U distinct slots of the step; inverse: [T], the position in U of each row. poisoned: [U], True
    for a slot that must not be answered from; None when there is none.
    """

    num_rows: int
    columns: tuple[int, ...]
    table: Tensor
    inverse: Tensor
    poisoned: Tensor | None = None
    _gathered: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def of_part(self, part: int, num_rows: int) -> Tensor:
        """[num_rows, K] for one part; rows beyond the step's own (padding) are zero."""
        part = part if len(self.table) > 1 else 0
        key = (part, num_rows)
        if key not in self._gathered:
            rows = self.table[part][self.inverse]
            assert num_rows >= self.num_rows, f"{num_rows} rows, {self.num_rows} coefficients"
            padding = (0, 0, 0, num_rows - self.num_rows)
            self._gathered[key] = torch.nn.functional.pad(rows, padding) if any(padding) else rows
        return self._gathered[key]

    def slice(self, start: int, stop: int) -> "StepCoefficients":
        """The same for rows start to stop."""
        inverse = self.inverse[start:stop]
        return StepCoefficients(stop - start, self.columns, self.table, inverse, self.poisoned)

    def is_uniform(self, parts: Sequence[int]) -> bool:
        """True when all `parts` have the same coefficients."""
        return len(self.table) == 1 or all(
            torch.equal(self.table[parts[0]], self.table[part]) for part in parts[1:]
        )


class CoefficientTable:
    """`C`, kept on the host: rows are written on activation and gathered once per new step."""

    def __init__(self, num_rows: int, num_columns: int, parts: Sequence[str]) -> None:
        self._weights = torch.zeros(num_rows, num_columns)
        self._by_part: dict[int, Tensor] = {}
        self._poisoned: set[int] = set()
        self._parts = parts

    def write(self, row: int, vectors: Sequence[WeightedColumn]) -> None:
        """Replace row `row` by the weights of `vectors`."""
        self.clear(row)
        for vector in vectors:
            self._weights[row, vector.column] += vector.weight
        if any(vector.selection != EVERYWHERE for vector in vectors):
            self._by_part[row] = self._part_weights(vectors)

    def poison(self, row: int) -> None:
        """Mark `row`: its logits become NaN, so that they can never pass for an answer."""
        self.clear(row)
        self._poisoned.add(row)

    def clear(self, row: int) -> None:
        """Set row `row` to zero."""
        self._weights[row] = 0
        self._by_part.pop(row, None)
        self._poisoned.discard(row)

    def gather(self, rows: npt.NDArray[np.int64], device: torch.device) -> StepCoefficients | None:
        """The coefficients of a step whose rows have table rows `rows` [T]; None for the base."""
        distinct, inverse = np.unique(rows, return_inverse=True)
        table = self._table(distinct)
        columns = (table != 0).any(dim=0).any(dim=0).nonzero().flatten().tolist()
        marked = [row in self._poisoned for row in distinct.tolist()]
        if not columns and not any(marked):
            return None
        poisoned = torch.tensor(marked, device=device) if any(marked) else None
        where = torch.from_numpy(inverse).to(device)
        return StepCoefficients(len(rows), tuple(columns), table.to(device), where, poisoned)

    def _table(self, distinct: npt.NDArray[np.int64]) -> Tensor:
        if not self._by_part.keys() & set(distinct.tolist()):
            return self._weights[torch.from_numpy(distinct)][None]
        everywhere = (len(self._parts), self._weights.shape[1])
        rows = [
            self._by_part[row] if row in self._by_part else self._weights[row].expand(everywhere)
            for row in distinct.tolist()
        ]
        return torch.stack(rows, dim=1)

    def _part_weights(self, vectors: Sequence[WeightedColumn]) -> Tensor:
        weights = torch.zeros(len(self._parts), self._weights.shape[1])
        for vector in vectors:
            factors = torch.tensor([vector.selection.factor(part) for part in self._parts])
            weights[:, vector.column] += vector.weight * factors
        return weights
