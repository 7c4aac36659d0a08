"""Compare task vectors pair by pair, one parameter in memory at a time."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from taskvectors.delta import Delta, Shape
from taskvectors.errors import InvalidLoadout, NonFiniteValue
from taskvectors.format import VectorReader
from taskvectors.format.reader import StrPath
from taskvectors.interference.elements import (
    Elements,
    PairSums,
    blocks,
    compare_elements,
    without_zeros,
)
from taskvectors.interference.report import OTHER, Figures, PairReport, Report, VectorFigures
from taskvectors.interference.subspace import Subspace, overlap, subspace
from taskvectors.selection import layer_of
from taskvectors.sources import FileSource, MemorySource, Source, common_base, common_shapes
from taskvectors.vector import BaseInfo, TaskVector, kind_of

Progress = Callable[[int, int, str], None]
"""Told the parameters done, how many there are, and the one just done."""
Pair = tuple[int, int]


def compare(
    sources: Mapping[str, StrPath | TaskVector], *, progress: Progress | None = None
) -> Report:
    """Compare each pair of `sources`, which are files or vectors in memory under their names.

    Reads one parameter of all vectors at a time; a low-rank delta is multiplied out in blocks.
    Raises InvalidLoadout for fewer than two, BaseMismatch where two bases or shapes differ,
    InvalidFile and OSError for a file, NonFiniteValue where a sum overflows float64.
    """
    if len(sources) < 2:
        raise InvalidLoadout(f"a comparison needs at least 2 task vectors, not {len(sources)}")
    with ExitStack() as stack:
        opened = [_open(name, source, stack) for name, source in sources.items()]
        base = common_base(opened)
        shapes = common_shapes(opened)
        tally = _Tally(len(opened))
        stack.enter_context(threadpool_limits(1, "blas"))  # thin products: threads only spin
        for done, (name, shape) in enumerate(sorted(shapes.items()), 1):
            holders = [i for i, vector in enumerate(opened) if name in vector.shapes]
            deltas = [without_zeros(opened[i].delta(name)) for i in holders]
            tally.add(
                name, _compare_parameter(name, shape, dict(zip(holders, deltas, strict=True)))
            )
            if progress is not None:
                progress(done, len(shapes), name)
        return _report(base, opened, tally)


def _open(name: str, source: StrPath | TaskVector, stack: ExitStack) -> Source:
    if isinstance(source, TaskVector):
        return MemorySource(name, source)
    return FileSource(name, stack.enter_context(VectorReader(source)))


@dataclass(frozen=True)
class _Compared:
    """One parameter: its size, who holds it with which elements, and the pairs of holders."""

    numel: int
    vectors: Mapping[int, PairSums]
    pairs: Mapping[Pair, PairSums]


def _compare_parameter(name: str, shape: Shape, deltas: Mapping[int, Delta]) -> _Compared:
    """A vector by itself is summed on the left side of a pair without a right side."""
    holders = tuple(deltas)
    vectors = dict.fromkeys(holders, PairSums())
    pairs = _singular_sums(deltas)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks(tuple(deltas.values()), shape):
            elements = dict(zip(holders, block, strict=True))
            for i in holders:
                vectors[i] = vectors[i].plus(_alone(elements[i]))
            for i, j in pairs:
                pairs[i, j] = pairs[i, j].plus(compare_elements(elements[i], elements[j]))
    if not all(map(math.isfinite, itertools.chain(*vectors.values(), *pairs.values()))):
        raise NonFiniteValue(f"the values of {name} are too large to be compared")
    return _Compared(math.prod(shape), vectors, pairs)


def _alone(elements: Elements) -> PairSums:
    return PairSums(left_energy=elements.energy, left_nnz=elements.nnz)


def _singular_sums(deltas: Mapping[int, Delta]) -> dict[Pair, PairSums]:
    found: dict[int, Subspace | None] = dict.fromkeys(deltas)
    if len(deltas) > 1:
        found = {i: subspace(delta) for i, delta in deltas.items()}
    return {(i, j): _singular_sum(found[i], found[j]) for i, j in itertools.combinations(deltas, 2)}


def _singular_sum(one: Subspace | None, other: Subspace | None) -> PairSums:
    shared = overlap(one, other) if one is not None and other is not None else None
    if shared is None:
        return PairSums()
    return PairSums(
        num_matrices=1,
        left_singular=shared.left,
        right_singular=shared.right,
        left_chance=shared.left_chance,
        right_chance=shared.right_chance,
    )


class _Tally:
    """Sums over parameters: of all, per layer and per kind of module."""

    def __init__(self, num_vectors: int) -> None:
        self.numel = [0] * num_vectors
        self.alone = [PairSums()] * num_vectors
        self._pairs = tuple(itertools.combinations(range(num_vectors), 2))
        self._groups: dict[tuple[str, str], dict[Pair, PairSums]] = {}

    def add(self, name: str, compared: _Compared) -> None:
        """Count one parameter."""
        for i, sums in compared.vectors.items():
            self.numel[i] += compared.numel
            self.alone[i] = self.alone[i].plus(sums)
        layer = layer_of(name)
        groups = (
            ("overall", ""),
            ("layers", OTHER if layer is None else str(layer)),
            ("kinds", kind_of(name)),
        )
        for group in groups:
            totals = self._groups.setdefault(group, dict.fromkeys(self._pairs, PairSums()))
            for pair in self._pairs:
                totals[pair] = totals[pair].plus(_of_pair(pair, compared))

    def figures(self, level: str, pair: Pair) -> dict[str, Figures]:
        """level: overall, layers or kinds. In the order of numbers, then of letters."""
        keys = sorted((key for kind, key in self._groups if kind == level), key=_number_first)
        return {key: Figures.of(self._groups[level, key][pair]) for key in keys}

    def overall(self, pair: Pair) -> Figures:
        """Over every parameter."""
        return Figures.of(self._groups.get(("overall", ""), {}).get(pair, PairSums()))


def _of_pair(pair: Pair, compared: _Compared) -> PairSums:
    """Energy and nnz count also where only one of the two changes the parameter."""
    if pair in compared.pairs:
        return compared.pairs[pair]
    left, right = (compared.vectors.get(i, PairSums()) for i in pair)
    return PairSums(left.left_energy, right.left_energy, left.left_nnz, right.left_nnz)


def _report(base: BaseInfo, opened: Sequence[Source], tally: _Tally) -> Report:
    vectors = tuple(
        VectorFigures(
            vector.key,
            math.sqrt(sums.left_energy),
            sums.left_nnz,
            sums.left_nnz / numel if numel else 0.0,
            len(vector.shapes),
        )
        for vector, sums, numel in zip(opened, tally.alone, tally.numel, strict=True)
    )
    pairs = tuple(
        PairReport(
            opened[i].key,
            opened[j].key,
            tally.overall((i, j)),
            tally.figures("layers", (i, j)),
            tally.figures("kinds", (i, j)),
        )
        for i, j in itertools.combinations(range(len(opened)), 2)
    )
    return Report(base, vectors, pairs)


def _number_first(key: str) -> tuple[bool, int, str]:
    return (not key.isdecimal(), int(key) if key.isdecimal() else 0, key)
