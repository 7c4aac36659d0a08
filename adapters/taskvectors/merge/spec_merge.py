"""A resolved loadout as a merge of its files, and what the merged file says of its making."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from taskvectors.checkpoint import Checkpoint
from taskvectors.format.metadata import card
from taskvectors.merge.spec_file import ResolvedSpec
from taskvectors.merge.stream import MergedVector
from taskvectors.sources import FileSource, open_files


@contextmanager
def open_merge(
    spec: ResolvedSpec, base: Checkpoint | None = None
) -> Iterator[tuple[MergedVector, dict[str, Any]]]:
    """The merge, and the metadata for a file of it. Raises TaskVectorError, OSError."""
    with open_files(
        [(item.digest, spec.paths[item.digest]) for item in spec.loadout.items]
    ) as sources:
        merged = MergedVector(
            sources,
            [item.weight for item in spec.loadout.items],
            spec.loadout.method,
            dict(spec.loadout.parameters),
            selections=[item.selection for item in spec.loadout.items],
            base=base,
        )
        yield merged, _card(spec, merged, sources)


def _card(
    spec: ResolvedSpec, merged: MergedVector, sources: Sequence[FileSource]
) -> dict[str, Any]:
    """A licence is named only where all files name the same one."""
    licenses = {source.reader.header.metadata.get("license") for source in sources}
    vectors = [
        {"digest": item.digest, "weight": item.weight, **item.selection.to_json()}
        for item in spec.loadout.items
    ]
    loadout: dict[str, Any] = {"method": spec.loadout.method, "vectors": vectors}
    if spec.loadout.parameters:
        loadout["parameters"] = dict(spec.loadout.parameters)
    return card(
        license=licenses.pop() if len(licenses) == 1 else None,
        base_model=merged.base.name,
        base_model_relation="merge",
        extraction={"method": "merge", "loadout": loadout},
    )
