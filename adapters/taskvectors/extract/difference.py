"""Fine-tuned minus base, one parameter at a time and block by block."""

import math
from collections.abc import Iterator

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Array, Shape
from taskvectors.errors import IncompatibleCheckpoints

FLOATS = ("F64", "F32", "F16", "BF16")
BLOCK = 1 << 18
"""Elements of a block, unless one row has more."""

KEPT = 1 << 24
"""Elements of the largest difference that is computed once and kept, as 64 MiB of float32."""

_NAMED = 5


class Difference:
    """The float32 difference of one parameter of two checkpoints, read as often as needed.

    Raises IncompatibleCheckpoints for dtypes without a difference.
    """

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, name: str) -> None:
        self.name = name
        self.shape: Shape = base.info(name)[0]
        self.numel = math.prod(self.shape)
        self._base, self._finetuned = base, finetuned
        self._kept: Array | None = None
        self._is_float = check_subtractable(base, finetuned, name)

    @property
    def columns(self) -> int:
        """Elements of a row; rows are along the first dimension."""
        return math.prod(self.shape[1:])

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """(first element, flat float32 [n]) of consecutive blocks of whole rows.

        Raises IncompatibleCheckpoints for values that have no finite difference, InvalidCheckpoint.
        """
        if not self._is_float or not self.numel:
            return
        if self.numel <= KEPT and self._kept is None:
            self._kept = np.empty(self.numel, np.float32)
            for begin, end in self._bounds():
                self._kept[begin:end] = self._subtract(begin, end)
        for begin, end in self._bounds():
            kept = self._kept
            yield begin, self._subtract(begin, end) if kept is None else kept[begin:end]

    def values(self) -> Iterator[Array]:
        """The blocks without their places."""
        return (block for _, block in self.blocks())

    def whole(self) -> Array:
        """float32 of `shape`."""
        full = np.zeros(self.numel, np.float32)
        for begin, block in self.blocks():
            full[begin : begin + len(block)] = block
        return full.reshape(self.shape)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        return row_blocks(self.shape)

    def _subtract(self, begin: int, end: int) -> Array:
        before = self._base.read_block(self.name, begin, end)
        after = self._finetuned.read_block(self.name, begin, end)
        with np.errstate(all="ignore"):
            delta = after.astype(np.float32)
            delta -= before.astype(np.float32, copy=False)
        for place in np.flatnonzero(~np.isfinite(delta)).tolist():
            if before.dtype != after.dtype or before[place].tobytes() != after[place].tobytes():
                raise self._not_finite(begin + place)
            delta[place] = 0  # the same NaN or infinity on both sides: no change
        return delta

    def _not_finite(self, place: int) -> IncompatibleCheckpoints:
        sides = {"base": self._base, "fine-tuned": self._finetuned}
        values = {
            side: checkpoint.read_block(self.name, place, place + 1)[0]
            for side, checkpoint in sides.items()
        }
        told = ", ".join(f"{float(value)} in the {side} one" for side, value in values.items())
        return IncompatibleCheckpoints(
            f"the difference of {self.name} is not finite: element {place} is {told};"
            " mend or train again the checkpoint that is broken"
        )


def row_blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """(begin, end) of consecutive flat blocks: whole rows, or BLOCK elements of one dimension."""
    numel = math.prod(shape)
    row = math.prod(shape[1:]) if len(shape) > 1 else 1
    step = max(1, BLOCK // max(1, row)) * row
    for begin in range(0, numel, max(1, step)):
        yield begin, min(begin + step, numel)


def check_compatible(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Raise IncompatibleCheckpoints unless both have the same parameters and shapes."""
    problems = [f"{n} is missing in the fine-tuned one" for n in _missing(base, finetuned)]
    problems += [f"{n} is missing in the base" for n in _missing(finetuned, base)]
    for name in base.tensors.keys() & finetuned.tensors.keys():
        ours, theirs = base.info(name)[0], finetuned.info(name)[0]
        if ours != theirs:
            problems.append(f"{name} is {list(ours)} in the base, {list(theirs)} in the other")
    if problems and base.is_tied != finetuned.is_tied:
        tied, other = ("base", "other") if base.is_tied else ("fine-tuned one", "base")
        problems.append(f"the {tied} ties its embeddings (tie_word_embeddings), the {other} not")
    if problems:
        shown = "; ".join(sorted(problems)[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise IncompatibleCheckpoints(f"the checkpoints cannot be subtracted: {shown}{more}")


def check_subtractable(base: Checkpoint, finetuned: Checkpoint, name: str) -> bool:
    """True for floats, False for others that are equal; else raises IncompatibleCheckpoints."""
    dtypes = [checkpoint.info(name)[1] for checkpoint in (base, finetuned)]
    if all(dtype in FLOATS for dtype in dtypes):
        return True
    if dtypes[0] == dtypes[1] and _are_equal(base, finetuned, name):
        return False
    side = 0 if dtypes[0] not in FLOATS else 1
    raise IncompatibleCheckpoints(
        f"{name} is {dtypes[side]} in {(base, finetuned)[side].directory}; only"
        f" {', '.join(FLOATS)} can be subtracted: dequantize the checkpoint first"
    )


def _are_equal(base: Checkpoint, finetuned: Checkpoint, name: str) -> bool:
    return all(
        base.read_block(name, *bounds).tobytes() == finetuned.read_block(name, *bounds).tobytes()
        for bounds in row_blocks(base.info(name)[0])
    )


def _missing(there: Checkpoint, here: Checkpoint) -> list[str]:
    return sorted(there.tensors.keys() - here.tensors.keys())
