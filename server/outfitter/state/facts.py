"""From a file's header to what the catalog keeps of it."""

import math
from collections.abc import Mapping

from outfitter.state.records import FileFacts
from taskvectors.format import FileHeader

MAX_METHOD = 64
"""Characters of a method's name; a file may say anything."""


def facts_of(digest: str, header: FileHeader) -> FileFacts:
    """Count the stored values of every parameter."""
    parameters = header.parameters.values()
    return FileFacts(
        digest,
        header.nbytes,
        header.base.name,
        header.base.fingerprint,
        len(parameters),
        sum(spec.nnz or 0 for spec in parameters),
        sum(math.prod(spec.shape) for spec in parameters),
        _method(header),
    )


def _method(header: FileHeader) -> str | None:
    extraction = header.metadata.get("extraction")
    method = extraction.get("method") if isinstance(extraction, Mapping) else None
    return method[:MAX_METHOD] if isinstance(method, str) and method.isprintable() else None
