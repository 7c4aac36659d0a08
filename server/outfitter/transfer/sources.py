"""Every source of task vectors, by the scheme of its URL."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outfitter.errors import SourceFailed
from outfitter.transfer.allowed import Allowed
from outfitter.transfer.fetched import Fetched, Progress, no_progress
from outfitter.transfer.locations import SUFFIX, WEB, Location, scheme_of
from taskvectors.errors import InvalidReference

FILES = "outfitter.transfer.files:fetch"
GATEWAY = "outfitter.transfer.gateway:fetch"
OCI = "outfitter.transfer.oci:fetch"

SOURCES: Mapping[str, str] = {
    "hf": "outfitter.transfer.hub:fetch",
    "https": FILES,
    "http": FILES,
    "outfitter": GATEWAY,
    "file": FILES,
    "s3": FILES,
    "gs": FILES,
    "az": FILES,
    "abfs": FILES,
    "oci": OCI,
}
"""Scheme → the function that fetches; of http and https only `*.safetensors` is a file."""


def fetch(
    url: str,
    target: Path,
    *,
    limit: int,
    allowed: Sequence[str] | None,
    progress: Progress = no_progress,
) -> Fetched:
    """Write the one task vector file that `url` names to `target`, a fresh path.

    limit: most bytes. allowed: URL prefixes; None for a person's own command line, where all is.
    Nothing is left at `target` when it fails. Raises InvalidReference, SourceNotAllowed,
    SourceFailed, UnsupportedAdapter, InvalidCheckpoint, InvalidFile, OSError.
    """
    scheme = scheme_of(url)
    if scheme not in SOURCES:
        raise InvalidReference(
            f"invalid source {url[:200]!r}: unsupported scheme {scheme!r}; choose"
            f" {', '.join(f'{name}:' for name in SOURCES)}"
        )
    location = Location.parse(url)
    rules = None if allowed is None else Allowed.parse(allowed)
    if rules is not None:
        rules.check(location)
    try:
        fetched = _fetch(location, target, limit=limit, progress=progress, allowed=rules)
        if (size := target.stat().st_size) > limit:
            raise SourceFailed(f"{location} gave {size} bytes; at most {limit} are taken")
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return fetched


def _fetch(location: Location, target: Path, *, allowed: Allowed | None, **rest: Any) -> Fetched:
    where = SOURCES[location.scheme]
    if where == OCI:
        return _loaded(OCI)(str(location), target, **rest)
    if location.scheme in WEB and not location.last.endswith(SUFFIX):
        where = GATEWAY
    return _loaded(where)(location, target, allowed=allowed, **rest)


def _loaded(where: str) -> Callable[..., Fetched]:
    """The function that a `module:name` names, imported now."""
    module, _, name = where.partition(":")
    function: Callable[..., Fetched] = getattr(importlib.import_module(module), name)
    return function
