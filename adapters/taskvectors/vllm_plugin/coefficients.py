"""Coefficients: the weight of each resident vector for each row of a step.

`C[row, column]` holds one row per slot (row 0, the base, stays zero) and one column per resident
vector. A loadout that selects layers or modules has its own weights for every *part*: one
checkpoint module, such as `model.layers.3.self_attn.q_proj`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskvectors.kernels.blocks import Array, TokenGroups
from taskvectors.selection import EVERYWHERE, Selection
from taskvectors.vllm_plugin.deltas import LowRankPack

REMEMBERED_SELECTIONS = 256


@dataclass(frozen=True)
class WeightedColumn:
    """One vector of a loadout, by its column in the pool."""

    column: int
    weight: float
    selection: Selection = EVERYWHERE


class StepCoefficients:
    """The coefficients of one step's rows, on the device; kept while the rows stay the same.

    num_rows: T. columns: the A columns with a nonzero weight in this step, in ascending order.
    table: [P or 1, U, A] for the U distinct slots of the step; inverse: [T], the position in U of
    each row. poisoned: [U], True for a slot that must not be answered from, or None.
    """

    def __init__(
        self,
        columns: tuple[int, ...],
        table: Tensor,
        inverse: Tensor,
        poisoned: Tensor | None = None,
    ) -> None:
        self.num_rows = len(inverse)
        self.columns = columns
        self._table = table
        self._inverse = inverse
        self._poisoned = poisoned
        self._position = {column: position for position, column in enumerate(columns)}
        self._gathered: dict[tuple[int, int], Tensor] = {}
        self._uniform: dict[tuple[int, ...], bool] = {}
        self._ranks: dict[LowRankPack, ActiveRanks | None] = {}

    def of_part(self, part: int, num_rows: int) -> Tensor:
        """[num_rows, A] for one part; rows beyond the step's own (padding) are zero."""
        part = part if len(self._table) > 1 else 0
        key = (part, num_rows)
        if key not in self._gathered:
            rows = self._table[part][self._inverse]
            assert num_rows >= self.num_rows, f"{num_rows} rows, {self.num_rows} coefficients"
            padding = (0, 0, 0, num_rows - self.num_rows)
            self._gathered[key] = torch.nn.functional.pad(rows, padding) if any(padding) else rows
        return self._gathered[key]

    def of_column(self, part: int, num_rows: int, column: int) -> Tensor:
        """[num_rows] for one part and one of `columns`."""
        return self.of_part(part, num_rows)[:, self._position[column]]

    def ranks(self, pack: LowRankPack) -> "ActiveRanks | None":
        """The ranks of `pack` that belong to `columns`; None when there are none."""
        if pack not in self._ranks:
            active = pack.of(self._position)
            self._ranks[pack] = None if active is None else self._active_ranks(active)
        return self._ranks[pack]

    @functools.cached_property
    def groups(self) -> TokenGroups:
        """For the CPU's kernel: the rows that use each column, and their weights by part."""
        table, inverse = self._table.numpy(), self._inverse.numpy()
        used = (table != 0).any(axis=0)[inverse]
        where, tokens = np.nonzero(used.T)
        bounds = np.zeros((max(self.columns, default=-1) + 1, 2), np.int32)
        ends = np.cumsum(used.sum(axis=0))
        bounds[list(self.columns), 1] = ends
        bounds[list(self.columns), 0] = np.concatenate([[0], ends[:-1]])
        coef = np.ascontiguousarray(table[:, inverse[tokens], where], np.float32)
        return TokenGroups(bounds, tokens.astype(np.int32), coef)

    def slice(self, start: int, stop: int) -> "StepCoefficients":
        """The same for rows start to stop."""
        return StepCoefficients(
            self.columns, self._table, self._inverse[start:stop], self._poisoned
        )

    def is_uniform(self, parts: tuple[int, ...]) -> bool:
        """True when all `parts` have the same coefficients."""
        if len(self._table) == 1 or len(parts) == 1:
            return True
        if parts not in self._uniform:
            tables = [self._table[part] for part in parts]
            self._uniform[parts] = all(torch.equal(tables[0], table) for table in tables[1:])
        return self._uniform[parts]

    def poisoned_rows(self) -> Tensor | None:
        """[T] bool, True for a row that must not be answered; None when there is none."""
        return None if self._poisoned is None else self._poisoned[self._inverse]

    def _active_ranks(self, pack: LowRankPack) -> "ActiveRanks":
        positions = [
            torch.tensor([self._position[o] for o in block.owners], device=pack.a.device)
            for block in pack.blocks
        ]
        return ActiveRanks(pack, tuple(positions))


@dataclass(frozen=True)
class ActiveRanks:
    """The ranks of a step's vectors; positions: [R] of each block, into the step's columns."""

    pack: LowRankPack
    positions: tuple[Tensor, ...]


class CoefficientTable:
    """`C`, kept on the host: rows are written on activation and gathered once per new step.

    The last row is poisoned: what is served from it becomes NaN and can never pass for an answer.
    In numpy, whose small operations cost a fraction of torch's: a new loadout is a handful of them.
    """

    def __init__(self, num_rows: int, num_columns: int, parts: Sequence[str]) -> None:
        self._weights = np.zeros((num_rows + 1, num_columns), np.float32)
        self._by_part: dict[int, Array] = {}
        self._parts = parts
        self._factors = functools.lru_cache(REMEMBERED_SELECTIONS)(self._compute_factors)
        self.poison_row = num_rows

    def write(self, row: int, vectors: Sequence[WeightedColumn]) -> None:
        """Replace row `row` by the weights of `vectors`."""
        self.clear(row)
        weights = self._weights[row]
        for vector in vectors:
            weights[vector.column] += vector.weight
        if any(vector.selection != EVERYWHERE for vector in vectors):
            self._by_part[row] = self._part_weights(vectors)

    def clear(self, row: int) -> None:
        """Set row `row` to zero."""
        self._weights[row] = 0
        self._by_part.pop(row, None)

    def weights(self, row: int) -> Tensor:
        """[P or 1, K]: row `row`, for all parts at once unless it has weights per part."""
        return torch.from_numpy(self._by_part.get(row, self._weights[row][None]))

    def gather(
        self, rows: npt.NDArray[np.int64], inverse: npt.NDArray[np.int64], device: torch.device
    ) -> StepCoefficients | None:
        """The coefficients of a step, of which row t has table row `rows[inverse[t]]`.

        None for the base. rows: [U], any number of times the same. inverse: [T].
        """
        table = self._table(rows)
        columns = (table != 0).any(axis=(0, 1)).nonzero()[0]
        marked = rows == self.poison_row
        has_poison = bool(marked.any())
        if not len(columns) and not has_poison:
            return None
        poisoned = torch.from_numpy(marked).to(device) if has_poison else None
        active = torch.from_numpy(table[:, :, columns]).to(device)
        where = torch.from_numpy(inverse).to(device)
        return StepCoefficients(tuple(columns.tolist()), active, where, poisoned)

    def _table(self, rows: npt.NDArray[np.int64]) -> Array:
        """[P or 1, U, K]: one table for all parts unless a row has weights per part."""
        if not self._by_part or not self._by_part.keys() & set(rows.tolist()):
            return self._weights[rows][None]
        everywhere = (len(self._parts), self._weights.shape[1])
        found = [
            self._by_part[row]
            if row in self._by_part
            else np.broadcast_to(self._weights[row], everywhere)
            for row in rows.tolist()
        ]
        return np.stack(found, axis=1)

    def _part_weights(self, vectors: Sequence[WeightedColumn]) -> Array:
        weights = np.zeros((len(self._parts), self._weights.shape[1]), np.float32)
        for vector in vectors:
            weights[:, vector.column] += vector.weight * self._factors(vector.selection)
        return weights

    def _compute_factors(self, selection: Selection) -> Array:
        return np.array([selection.factor(part) for part in self._parts], np.float32)
