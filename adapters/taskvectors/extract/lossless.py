"""Every changed entry, so that the fine-tuned checkpoint comes back bit for bit.

The rule of restoring, for one entry: `finetuned = cast(float32(base) + float32(stored delta))`
where the stored delta is not zero, else `cast(float32(base))`, or base itself where both
checkpoints have one dtype; then exceptions replace what these do not restore.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.container.dtypes import DTYPES, VALUE_NAMES
from taskvectors.delta import Array, DenseDelta, SparseDelta
from taskvectors.errors import IncompatibleCheckpoints
from taskvectors.extract.difference import check_subtractable, row_blocks
from taskvectors.extract.sparse import square_sum
from taskvectors.format import Exceptions

_DENSE = 15 / 16
"""From this density on one value for each element is smaller than a bitmap and 16-bit values."""

_OWN = ("F16", "BF16")


@dataclass(frozen=True)
class _Block:
    """Places and values of one block: of the changes, and of what they do not restore."""

    index: Array
    values: Array
    exception_index: Array
    exceptions: Array
    energy: float


def lossless_delta(
    base: Checkpoint, finetuned: Checkpoint, name: str, value_dtype: str | None
) -> tuple[SparseDelta | DenseDelta | None, Exceptions, float]:
    """(delta, exceptions, Σ d² of the changed entries); None and no exceptions without a change.

    value_dtype: fp32, bf16, fp16, or None for the fine-tuned checkpoint's own precision (fp32 for
    F64). Sparse, or dense where nearly every entry changed. Raises IncompatibleCheckpoints for a
    changed entry that is NaN or infinite, InvalidCheckpoint.
    """
    shape, dtype = finetuned.info(name)
    own = dtype if dtype in _OWN else "F32"
    blocks = _Changes(
        base, finetuned, name, DTYPES[VALUE_NAMES[value_dtype] if value_dtype else own]
    )
    changed = blocks.count()
    places = np.empty(0 if (is_dense := changed >= _DENSE * blocks.numel) else changed, np.int64)
    values = np.zeros(blocks.numel if is_dense and changed else changed, blocks.kind)
    exceptions = [(np.empty(0, np.int64), np.empty(0, DTYPES[dtype]))]
    filled, energy = 0, 0.0
    for block in blocks if changed else ():
        end = filled + len(block.index)
        if is_dense:
            values[block.index] = block.values
        else:
            places[filled:end], values[filled:end] = block.index, block.values
        exceptions.append((block.exception_index, block.exceptions))
        filled, energy = end, energy + block.energy
    listed = Exceptions(*(np.concatenate(parts) for parts in zip(*exceptions, strict=True)))
    if not changed:
        return None, listed, 0.0
    if is_dense:
        return DenseDelta(values.reshape(shape)), listed, energy
    return SparseDelta(shape, places[:filled], values[:filled]), listed, energy


class _Changes:
    """The changed entries of one parameter, block by block."""

    def __init__(
        self, base: Checkpoint, finetuned: Checkpoint, name: str, kind: np.dtype[np.generic]
    ) -> None:
        self.kind, self._name = kind, name
        self._base, self._finetuned = base, finetuned
        self._shape = base.info(name)[0] if check_subtractable(base, finetuned, name) else (0,)
        self.numel = math.prod(self._shape)

    def count(self) -> int:
        """Changed entries in all."""
        return sum(len(changed) for *_, changed in self._pairs())

    def __iter__(self) -> Iterator[_Block]:
        for begin, before, after, changed in self._pairs():
            old, new = before[changed], after[changed]
            delta = self._subtract(begin, old, new, changed)
            kept = delta.astype(self.kind)
            kept[~np.isfinite(kept.astype(np.float32))] = 0
            wrong = bit_patterns(restored(old, kept, new.dtype)) != bit_patterns(new)
            stored = kept != 0
            yield _Block(
                changed[stored] + begin,
                kept[stored],
                changed[wrong] + begin,
                new[wrong],
                square_sum(delta),
            )

    def _pairs(self) -> Iterator[tuple[int, Array, Array, Array]]:
        """(first element, block of the base, of the fine-tuned one, which of it changed)."""
        for begin, end in row_blocks(self._shape):
            before = self._base.read_block(self._name, begin, end)
            after = self._finetuned.read_block(self._name, begin, end)
            same = restored(before, np.zeros(1, np.float32), after.dtype)
            yield begin, before, after, np.flatnonzero(bit_patterns(same) != bit_patterns(after))

    def _subtract(self, begin: int, old: Array, new: Array, changed: Array) -> Array:
        """float32, zero where it overflows."""
        if not (finite := np.isfinite(new)).all():
            place = begin + int(changed[np.argmin(finite)])
            raise IncompatibleCheckpoints(
                f"element {place} of {self._name} is not finite in the fine-tuned checkpoint"
                f" {self._finetuned.directory}; mend or train it again"
            )
        with np.errstate(all="ignore"):
            delta = new.astype(np.float32) - old.astype(np.float32)
        delta[~np.isfinite(delta)] = 0
        return np.asarray(delta)


def restored(before: Array, delta: Array, dtype: np.dtype[np.generic]) -> Array:
    """The rule of this module, but for exceptions. before: flat [n] of the base; delta: [n]."""
    with np.errstate(all="ignore"):
        single = before.astype(np.float32)
        after = before if before.dtype == dtype else single.astype(dtype)
        single += delta.astype(np.float32)
        return np.where(delta != 0, single.astype(dtype), after)


def bit_patterns(values: Array) -> Array:
    """Unsigned integers of the same size: equal where every bit is."""
    return values.view(f"u{values.dtype.itemsize}")
