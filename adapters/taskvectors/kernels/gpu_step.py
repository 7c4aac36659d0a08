"""What a step tells the GPU kernels: whose coefficients each token has, and who uses which vector.

Everything lies in buffers that are allocated once. A step changes contents, never addresses, so
that a captured graph stays right; the tail behind a step's tokens is row 0, the base.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PAIR_LANES = 16
"""Tokens that meet one nonzero side by side."""


@dataclass(frozen=True)
class StepLimits:
    """Sizes of the buffers.

    tokens: most tokens of a step. rows: of the coefficient table; row 0 is the base. columns:
    resident vectors. parts: of the model. mixed: most vectors of one row. pair_tokens: up to so
    many tokens are paired with their vectors, for decoding.
    """

    tokens: int
    rows: int
    columns: int
    parts: int
    mixed: int = 16
    pair_tokens: int = 64

    @property
    def pairs(self) -> int:
        """Most (vector, token) pairs of a step that is paired."""
        return self.pair_tokens * min(self.mixed, self.columns)

    @property
    def blocks(self) -> int:
        """Most runs of at most PAIR_LANES pairs of one vector."""
        return self.pairs // PAIR_LANES + min(self.columns, self.pairs)


class CoefficientRows:
    """`C` on the device: float32 [parts, rows, columns]; a row is written when it is activated."""

    def __init__(self, limits: StepLimits, device: torch.device) -> None:
        self.limits = limits
        shape = (limits.parts, limits.rows, limits.columns)
        self.weights = torch.zeros(shape, device=device)
        self._uses = np.zeros((limits.rows, limits.columns), np.bool_)

    def write(self, row: int, weights: Tensor) -> None:
        """Replace row `row` > 0 by `weights`, float32 [parts or 1, columns], on the host."""
        uses = (weights != 0).any(dim=0).numpy()
        assert 0 < row < self.limits.rows, f"row {row} of {self.limits.rows}; row 0 is the base"
        assert uses.sum() <= self.limits.mixed, f"{uses.sum()} vectors in a row"
        self.weights[:, row].copy_(weights)
        self._uses[row] = uses

    def clear(self, row: int) -> None:
        """Set row `row` to zero."""
        self.weights[:, row].zero_()
        self._uses[row] = False

    def uses(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[len(rows), columns]: whether a row has a weight for a vector in any part."""
        return self._uses[rows]


class StepBuffers:
    """One step's plan on the device, all int32, in one buffer that one copy fills.

    num_active [1]; active [K]: the columns in use, ascending. num_blocks [1]; blocks [B, 3]: the
    column, first pair and number of pairs of each block. pair_token, pair_column [E]: pairs by
    ascending column, then token. token_start [PT + 1], token_pair [E]: the pairs of each token,
    by ascending column. token_row [T]: each token's row of the coefficient table.
    """

    def __init__(self, limits: StepLimits, device: torch.device) -> None:
        self.limits = limits
        sizes = {
            "num_active": 1,
            "active": limits.columns,
            "num_blocks": 1,
            "blocks": 3 * limits.blocks,
            "pair_token": limits.pairs,
            "pair_column": limits.pairs,
            "token_start": limits.pair_tokens + 1,
            "token_pair": limits.pairs,
            "token_row": limits.tokens,
        }
        self._host = np.zeros(sum(sizes.values()), np.int32)
        self._device = torch.zeros(len(self._host), dtype=torch.int32, device=device)
        ends = np.cumsum(list(sizes.values())).tolist()
        where = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        self._fields = {name: self._host[place] for name, place in where.items()}
        for name, place in where.items():
            setattr(self, name, self._device[place])

    num_active: Tensor
    active: Tensor
    num_blocks: Tensor
    blocks: Tensor
    pair_token: Tensor
    pair_column: Tensor
    token_start: Tensor
    token_pair: Tensor
    token_row: Tensor

    def write(self, rows: npt.NDArray[np.int64], coefficients: CoefficientRows) -> None:
        """Plan a step whose tokens have table rows `rows` [T]."""
        assert len(rows) <= self.limits.tokens, f"{len(rows)} tokens of {self.limits.tokens}"
        fields = self._fields
        self._host[:] = 0
        fields["token_row"][: len(rows)] = rows
        distinct, inverse = np.unique(rows, return_inverse=True)
        uses = coefficients.uses(distinct)
        active = np.flatnonzero(uses.any(axis=0))
        fields["num_active"][0] = len(active)
        fields["active"][: len(active)] = active
        if len(rows) <= self.limits.pair_tokens:
            self._pair(uses[inverse])
        # From pageable memory, which the driver copies aside before it returns: the next step may
        # write the host's side at once.
        self._device.copy_(torch.from_numpy(self._host), non_blocking=True)

    def _pair(self, uses: npt.NDArray[np.bool_]) -> None:
        """uses: [T, K]."""
        fields = self._fields
        columns, tokens = np.nonzero(uses.T)
        fields["pair_token"][: len(tokens)] = tokens
        fields["pair_column"][: len(tokens)] = columns
        fields["token_pair"][: len(tokens)] = np.argsort(tokens, kind="stable")
        starts = np.cumsum(uses.sum(axis=1))
        fields["token_start"][1 : len(uses) + 1] = starts
        fields["token_start"][len(uses) + 1 :] = len(tokens)
        counts = uses.sum(axis=0)
        blocks = _blocks(counts)
        fields["num_blocks"][0] = len(blocks)
        fields["blocks"][: blocks.size] = blocks.ravel()


def _blocks(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[B, 3]: column, first pair, number of pairs; `counts` [K] pairs of each column."""
    per_column = -(-counts // PAIR_LANES)
    column = np.repeat(np.arange(len(counts)), per_column)
    nth = np.arange(len(column)) - np.repeat(np.cumsum(per_column) - per_column, per_column)
    first = (np.cumsum(counts) - counts)[column] + nth * PAIR_LANES
    size = np.minimum(counts[column] - nth * PAIR_LANES, PAIR_LANES)
    return np.stack([column, first, size], axis=1)
