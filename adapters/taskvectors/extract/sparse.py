"""The sparse methods: which entries of a streamed difference are kept, and how they are scaled."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.container.dtypes import DTYPES, VALUE_NAMES
from taskvectors.delta import Array, SparseDelta
from taskvectors.extract.difference import Difference
from taskvectors.extract.settings import Settings
from taskvectors.format.values import CODES, cast_values
from taskvectors.sparsify import (
    BandPicker,
    Picker,
    Threshold,
    dare,
    della,
    find_cut,
)

Keep: TypeAlias = Callable[[int, Array], tuple[Array, Array | float]]
"""(first element, flat float32 block) to (bool mask of what is kept, divisor of what is kept)."""


def keep_by(settings: Settings, difference: Difference, picker: Picker | None, key: str) -> Keep:
    """How the method keeps entries of this difference. picker: of a global threshold.

    key: what random draws hang on beside the seed; the fine-tuned checkpoint's own, or two skills
    of one base would keep the same places and collide in every one.
    """
    if settings.method == "dare":
        return _dare(settings, difference, key)
    if settings.method == "della":
        return _della(settings, difference, key)
    density = _density(settings)
    if settings.method == "breadcrumbs":
        assert settings.gamma is not None
        band = BandPicker(difference.values, difference.numel, density, settings.gamma)
        return lambda _, block: (band.mask(block), 1.0)
    if picker is None:
        picker = Picker(find_cut(difference.values, count(density, difference.numel)))
    mask = picker.mask
    return lambda _, block: (mask(block), 1.0)


def sparse_delta(
    difference: Difference, keep: Keep, value_dtype: str
) -> tuple[SparseDelta, float, float]:
    """(delta, Σ d² of the difference, Σ d² over the kept entries).

    Entries that the stored dtype cannot tell from zero are left out. Raises NonFiniteValue for an
    overflow, IncompatibleCheckpoints, InvalidCheckpoint.
    """
    dtype = "fp32" if value_dtype in CODES else value_dtype
    places, stored = [np.empty(0, np.int64)], [np.empty(0, DTYPES[VALUE_NAMES[dtype]])]
    energy = kept_energy = 0.0
    for begin, block in difference.blocks():
        mask, divisor = keep(begin, block)
        chosen = np.flatnonzero(mask)
        raw = block[chosen]
        scaled = raw / (divisor[chosen] if isinstance(divisor, np.ndarray) else divisor)
        values = cast_values(scaled.astype(np.float32), dtype, difference.name)
        nonzero = values != 0
        places.append(chosen[nonzero] + begin)
        stored.append(values[nonzero])
        energy += square_sum(block)
        kept_energy += square_sum(raw[nonzero])
    index, values = np.concatenate(places), np.concatenate(stored)
    return SparseDelta(difference.shape, index, values), energy, kept_energy


def global_picker(
    base: Checkpoint, finetuned: Checkpoint, density: float, step: Callable[[str], None]
) -> Picker:
    """One threshold for the matrices of the whole base: the share `density` of all their elements.

    Among equals the first parameter by name, then the lowest index wins. step: called with each
    name twice, once per pass.
    """
    names = [name for name in base.names if len(base.info(name)[0]) >= 2]
    numel = sum(Difference(base, finetuned, name).numel for name in names)
    threshold = Threshold(count(density, numel))
    for feed in (threshold.coarse, threshold.fine):
        for name in names:
            _feed(Difference(base, finetuned, name).values(), feed)
            step(name)
        if feed == threshold.coarse:
            threshold.refine()
    return Picker(threshold.cut())


def count(density: float, numel: int) -> int:
    """How many entries a density is, at least one."""
    return max(1, round(density * numel))


def square_sum(values: Array) -> float:
    """Σ v² in float64 of a flat float array."""
    return float(np.einsum("i,i->", values, values, dtype=np.float64, casting="unsafe"))


def _feed(blocks: Iterable[Array], feed: Callable[[Array], None]) -> None:
    for block in blocks:
        feed(block)


def _dare(settings: Settings, difference: Difference, key: str) -> Keep:
    density, seed, name = _density(settings), _seed(settings), difference.name

    def keep(begin: int, block: Array) -> tuple[Array, float]:
        index = np.arange(begin, begin + len(block))
        return dare(index, block, density, key, seed, name), density

    return keep


def _della(settings: Settings, difference: Difference, key: str) -> Keep:
    """The paper's rescaling: what is kept is divided by its own keep-probability."""
    density, seed, name = _density(settings), _seed(settings), difference.name
    shape, epsilon = difference.shape, settings.epsilon
    assert epsilon is not None

    def keep(begin: int, block: Array) -> tuple[Array, Array]:
        index = np.arange(begin, begin + len(block))
        return della(index, block, shape, density, epsilon, key, seed, name)

    return keep


def _density(settings: Settings) -> float:
    assert settings.density is not None
    return settings.density


def _seed(settings: Settings) -> int:
    assert settings.seed is not None
    return settings.seed
