"""Merging vectors parameter by parameter: never more than one parameter of them in memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Delta
from taskvectors.errors import InvalidLoadout
from taskvectors.format import VectorWriter
from taskvectors.format.header import match_shape
from taskvectors.merge.parts import Part, Parts
from taskvectors.merge.registry import Merge, merger
from taskvectors.methods import find_method
from taskvectors.selection import EVERYWHERE, Selection
from taskvectors.sources import MemorySource, Source, common_base, common_shapes
from taskvectors.vector import TaskVector, module_of

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (parameters done, parameters in all, name of the one just done)."""


class MergedVector:
    """The merge of K sources, computed as it is read. `parameters`: of the method, complete.

    weights, selections: [K]. Of a loadout the sources come in its canonical order, so that equal
    loadouts are equal bytes. base: the base's checkpoint, for the methods that want it.
    Raises BaseMismatch, InvalidLoadout.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        method: str,
        parameters: Mapping[str, Any],
        *,
        selections: Sequence[Selection] | None = None,
        base: Checkpoint | None = None,
    ) -> None:
        if not sources:
            raise InvalidLoadout("a merge needs at least one task vector")
        found = find_method(method)
        found.check_vectors(list(weights))
        for selection in selections or ():
            found.check_selection(selection)
        self._sources = sources
        self._weights = weights
        self._selections = selections or [EVERYWHERE] * len(sources)
        self._keys = _distinct([source.key for source in sources])
        found.check_named(parameters, self._keys)
        self._checkpoint = base
        self.base = common_base(sources)
        self.shapes = common_shapes(sources)
        if base is not None:
            for name, shape in self.shapes.items():
                match_shape(name, shape, base.shapes.get(name))
        parts = Parts(sorted(self.shapes), self._part, None if base is None else base.shapes)
        self._merge: Merge = merger(found.name, parameters, parts)

    def delta(self, name: str) -> Delta | None:
        """The merged delta of one of `shapes`; None where nothing is left."""
        return self._merge(self._part(name))

    def deltas(self, progress: Progress | None = None) -> Iterator[tuple[str, Delta]]:
        """Every merged delta, by name."""
        for done, name in enumerate(sorted(self.shapes), start=1):
            delta = self.delta(name)
            if delta is not None:
                yield name, delta
            if progress is not None:
                progress(done, len(self.shapes), name)

    def _part(self, name: str) -> Part:
        module = module_of(name)
        factors = tuple(selection.factor(module) for selection in self._selections)
        weights = tuple(w * factor for w, factor in zip(self._weights, factors, strict=True))
        deltas = tuple(
            source.delta(name) if factor != 0 and name in source.shapes else None
            for source, factor in zip(self._sources, factors, strict=True)
        )
        tensor = None if self._checkpoint is None else self._checkpoint.read(name)
        return Part(name, self.shapes[name], deltas, weights, tuple(self._keys), tensor)


def merge_vectors(
    vectors: Sequence[TaskVector],
    weights: Sequence[float] | None = None,
    method: str = "linear",
    *,
    base: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> TaskVector:
    """Merge vectors in memory: `merge_vectors([a, b], [1, 0.5], "ties", density=0.2)`.

    `lambda`, a word of Python, goes in as `**{"lambda": 0.3}`. Random drops hang on a vector's
    place here, which it has instead of a digest. Raises InvalidLoadout, BaseMismatch.
    """
    sources = [MemorySource(str(number), vector) for number, vector in enumerate(vectors)]
    merged = MergedVector(
        sources,
        [1.0] * len(vectors) if weights is None else weights,
        method,
        dict(find_method(method).parse(parameters)),
        base=None if base is None else Checkpoint.open(base),
    )
    return TaskVector(merged.base, dict(merged.deltas()))


def write_merged(
    merged: MergedVector,
    out: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    value_dtype: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Write the merge as a task vector file; return its digest."""
    with VectorWriter(out, merged.base, value_dtype=value_dtype) as writer:
        for name, delta in merged.deltas(progress):
            writer.add(name, delta)
        return writer.finish(metadata)


def _distinct(keys: Sequence[str]) -> list[str]:
    """The same vector twice has two keys, so that random drops differ."""
    seen: dict[str, int] = {}
    distinct = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        distinct.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return distinct
