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
from taskvectors.delta import Array, DenseDelta, Shape, SparseDelta
from taskvectors.errors import IncompatibleCheckpoints
from taskvectors.extract.difference import check_subtractable, row_blocks
from taskvectors.extract.sparse import square_sum
from taskvectors.format import Exceptions

_DENSE = 15 / 16
"""From this density on one value for each element is smaller than a bitmap and 16-bit values."""

_OWN = ("F16", "BF16")

_FEW = 1 / 4
"""Up to this share of exceptions (about 6 bytes each) bf16 is smaller than fp32."""


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
) -> tuple[SparseDelta | DenseDelta | None, Exceptions | None, float]:
    """(delta, exceptions, Σ d² of the changed entries); (None, None, 0.0) without a change.

    value_dtype: fp32, bf16, fp16, or None for the fine-tuned checkpoint's own precision; for F32 or
    F64 bf16 where it restores most entries (a fine-tuning in bf16), else fp32. Sparse, or dense
    where nearly every entry changed. Raises IncompatibleCheckpoints for a changed entry that is NaN
    or infinite, InvalidCheckpoint.
    """
    dtype = finetuned.info(name)[1]
    kind = DTYPES[VALUE_NAMES[value_dtype] if value_dtype else dtype if dtype in _OWN else "BF16"]
    changes = _Changes(base, finetuned, name, kind)
    changed, wrong = changes.count()
    if not changed:
        return None, None, 0.0
    if value_dtype is None and dtype not in _OWN and wrong > _FEW * changed:
        changes = _Changes(base, finetuned, name, DTYPES["F32"])
    is_dense = changed >= _DENSE * changes.numel
    collected = _Dense(changes.numel, changes.kind) if is_dense else _Sparse(changed, changes.kind)
    exceptions, energy = [], 0.0
    for block in changes:
        collected.put(block)
        exceptions.append((block.exception_index, block.exceptions))
        energy += block.energy
    listed = Exceptions(*(np.concatenate(parts) for parts in zip(*exceptions, strict=True)))
    return collected.delta(changes.shape), listed, energy


class _Dense:
    """Takes blocks into one value for each element."""

    def __init__(self, numel: int, kind: np.dtype[np.generic]) -> None:
        self._values = np.zeros(numel, kind)

    def put(self, block: _Block) -> None:
        self._values[block.index] = block.values

    def delta(self, shape: Shape) -> DenseDelta:
        return DenseDelta(self._values.reshape(shape))


class _Sparse:
    """Takes blocks into arrays that are allocated once, for as many entries as changed."""

    def __init__(self, changed: int, kind: np.dtype[np.generic]) -> None:
        self._index, self._values = np.empty(changed, np.int64), np.empty(changed, kind)
        self._filled = 0

    def put(self, block: _Block) -> None:
        end = self._filled + len(block.index)
        self._index[self._filled : end] = block.index
        self._values[self._filled : end] = block.values
        self._filled = end

    def delta(self, shape: Shape) -> SparseDelta:
        return SparseDelta(shape, self._index[: self._filled], self._values[: self._filled])


class _Changes:
    """The changed entries of one parameter, block by block."""

    def __init__(
        self, base: Checkpoint, finetuned: Checkpoint, name: str, kind: np.dtype[np.generic]
    ) -> None:
        self.kind, self._name = kind, name
        self._base, self._finetuned = base, finetuned
        self.shape = base.info(name)[0] if check_subtractable(base, finetuned, name) else (0,)
        self.numel = math.prod(self.shape)

    def count(self) -> tuple[int, int]:
        """Changed entries in all, and how many of them need an exception."""
        changed = wrong = 0
        for _, before, after, places in self._pairs():
            old, new = before[places], after[places]
            kept = self._round(new, old)
            changed += len(places)
            wrong += int(np.count_nonzero(_differ(restored(old, kept, new.dtype), new)))
        return changed, wrong

    def __iter__(self) -> Iterator[_Block]:
        for begin, before, after, changed in self._pairs():
            old, new = before[changed], after[changed]
            self._check_finite(begin, new, changed)
            kept = self._round(new, old)
            wrong = _differ(restored(old, kept, new.dtype), new)
            stored = kept != 0
            yield _Block(
                changed[stored] + begin,
                kept[stored],
                changed[wrong] + begin,
                new[wrong],
                square_sum(_subtract(new, old)),
            )

    def _pairs(self) -> Iterator[tuple[int, Array, Array, Array]]:
        """(first element, block of the base, of the fine-tuned one, which of it changed)."""
        for begin, end in row_blocks(self.shape):
            before = self._base.read_block(self._name, begin, end)
            after = self._finetuned.read_block(self._name, begin, end)
            same = restored(before, np.zeros(1, np.float32), after.dtype)
            yield begin, before, after, np.flatnonzero(_differ(same, after))

    def _round(self, new: Array, old: Array) -> Array:
        """The difference as it is stored, zero where it overflows."""
        with np.errstate(over="ignore"):
            kept = _subtract(new, old).astype(self.kind)
        kept[~np.isfinite(kept.astype(np.float32))] = 0
        return np.asarray(kept)

    def _check_finite(self, begin: int, new: Array, changed: Array) -> None:
        if not (finite := np.isfinite(new)).all():
            place = begin + int(changed[np.argmin(finite)])
            raise IncompatibleCheckpoints(
                f"element {place} of {self._name} is not finite in the fine-tuned checkpoint"
                f" {self._finetuned.directory}; mend or train it again"
            )


def _subtract(new: Array, old: Array) -> Array:
    """float32, zero where it overflows."""
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


def _differ(left: Array, right: Array) -> Array:
    """bool [n]: where any bit differs."""
    bits = f"u{left.dtype.itemsize}"
    return np.asarray(left.view(bits) != right.view(bits))
