"""A store's folder as a place where commands find task vectors."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import QueryParams

from outfitter.routes.task_vectors import query_of
from outfitter.schemas import describe, describe_deletion, draft_of
from outfitter.state.records import Version
from outfitter.vectors import Vectors
from taskvectors.format import file_digest
from taskvectors.spec import Reference

Step = Callable[[int], None]


def local_place(vectors: Vectors) -> "_Local":
    """A `Place` that answers as a gateway on this store would."""
    return _Local(vectors)


class _Local:
    """Its methods are those of `Place`."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def push(self, file: Path, draft: Mapping[str, object], progress: Step) -> dict[str, Any]:
        path = self._vectors.store.new_upload()
        try:
            shutil.copyfile(file, path)
            progress(path.stat().st_size)
            version = self._vectors.publish(path, file_digest(path), draft_of(draft), base=None)
            return describe(version)
        finally:
            path.unlink(missing_ok=True)

    def find(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        params = QueryParams({key: str(value) for key, value in query.items()})
        page = self._vectors.find(query_of(params))
        rows = [describe(version) for version in page.versions]
        return {"data": rows, "has_more": page.after is not None, "after": page.after}

    def show(self, reference: str) -> dict[str, Any]:
        return describe(self._version(reference))

    def card(self, reference: str) -> str | None:
        return self._version(reference).details.card

    def tag(self, reference: str, tag: str) -> dict[str, Any]:
        return describe(self._vectors.tag(Reference.parse(reference), tag))

    def untag(self, name: str, tag: str) -> None:
        self._vectors.untag(name, tag)

    def delete(self, reference: str) -> dict[str, Any]:
        deletion = self._vectors.delete(Reference.parse(reference))
        return describe_deletion(reference, deletion)

    def _version(self, reference: str) -> Version:
        return self._vectors.version(Reference.parse(reference))
