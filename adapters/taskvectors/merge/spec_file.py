"""Loadout files: what a request's `task_vectors` says, where a name may also be a file's path.

A name that ends with `.safetensors` is a path, relative to the loadout file's own folder; any
other is a reference. An entry of a list may say `{"file": path}` instead of `{"name": …}`.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from taskvectors.container import open_regular
from taskvectors.container.strict_json import loads
from taskvectors.errors import InvalidHeader, InvalidLoadout, InvalidReference, VectorNotFound
from taskvectors.format import file_digest
from taskvectors.methods import LINEAR, find_method
from taskvectors.spec import Loadout, LoadoutItem, Reference, parse_task_vectors
from taskvectors.values import MAX_ECHO, kind_of, parse_weight

SUFFIX = ".safetensors"
MAX_BYTES = 1 << 20
_MAX_LISTED = 1000


class Resolved(Protocol):
    """What a reference stands for."""

    @property
    def digest(self) -> str:
        """Of its file."""
        ...


class Store(Protocol):
    """Where names are looked up."""

    def resolve(self, reference: Reference, /) -> Resolved:
        """Raises VectorNotFound."""
        ...

    def path(self, digest: str, /) -> Path:
        """Where the file lies. Raises VectorNotFound."""
        ...


@dataclass(frozen=True)
class ResolvedSpec:
    """A loadout whose files are known. paths: of each digest."""

    loadout: Loadout
    paths: Mapping[str, Path]


def read_spec(path: str | os.PathLike[str], store: Store | None = None) -> ResolvedSpec:
    """Read and resolve a loadout file; raises TaskVectorError, OSError."""
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidLoadout(f"{path} is larger than {MAX_BYTES} bytes: it is no loadout file")
    try:
        value = loads(data, str(path))
    except InvalidHeader as error:
        raise InvalidLoadout(str(error)) from error
    return resolve_spec(value, Path(path).parent, store)


def resolve_spec(value: object, folder: Path, store: Store | None = None) -> ResolvedSpec:
    """Resolve what a loadout file says; paths are relative to `folder`.

    All of it is parsed before the first file is looked at. Raises TaskVectorError, OSError.
    """
    names = _Names(folder, store)
    requested = parse_task_vectors(_as_request(value, names))
    method = find_method(requested.method)
    items = [
        LoadoutItem(names.resolve(vector.reference), vector.weight, vector.selection)
        for vector in requested.vectors
    ]
    parameters = dict(requested.parameters)
    for name in method.vector_parameters:
        if parameters[name] is not None:
            parameters[name] = names.resolve(Reference.parse(str(parameters[name])))
    loadout = Loadout.build(items, method.name, parameters)
    if loadout.is_base:
        raise InvalidLoadout("the loadout adds nothing to the base: no vector has a weight")
    return ResolvedSpec(loadout, names.found)


@dataclass(frozen=True)
class _Names:
    """References and paths. A digest of its text stands in for a path until it is resolved."""

    folder: Path
    store: Store | None
    paths: dict[str, Path] = field(default_factory=dict)
    found: dict[str, Path] = field(default_factory=dict)

    def stand_in(self, name: str) -> str:
        """A reference for a path; any other name is one already."""
        return self.path(name) if name.endswith(SUFFIX) else name

    def path(self, name: str) -> str:
        """A reference for the file at `name`."""
        if not name or "\0" in name:
            raise InvalidReference(f"{name[:MAX_ECHO]!r} is no path of a file")
        key = hashlib.sha256(os.fsencode(name)).hexdigest()
        self.paths[key] = self.folder / name
        return f"sha256:{key}"

    def resolve(self, reference: Reference) -> str:
        """The digest; raises VectorNotFound, InvalidFile, OSError."""
        path = self.paths.get(str(reference.digest)) if reference.name is None else None
        if path is not None:
            digest = file_digest(_existing(path))
        elif self.store is not None:
            digest = self.store.resolve(reference).digest
            path = self.store.path(digest)
        else:
            raise self._without_store(reference)
        self.found[digest] = path
        return digest

    def _without_store(self, reference: Reference) -> VectorNotFound:
        near = self.folder / f"{reference}{SUFFIX}"
        hint = f"; did you mean {f'{reference}{SUFFIX}'!r}?" if near.is_file() else ""
        return VectorNotFound(
            f"there is no store to find {str(reference)!r} in: name one with --store, or a file by"
            f" its path, which ends with {SUFFIX}{hint}"
        )


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    listed = path.parent.glob(f"*{SUFFIX}") if path.parent.is_dir() else iter(())
    stems = sorted(other.stem for other in islice(listed, _MAX_LISTED))
    near = [repr(f"{stem}{SUFFIX}") for stem in get_close_matches(path.stem, stems)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise VectorNotFound(f"no file {path}{hint}")


def _as_request(value: object, names: _Names) -> object:
    """The same without paths, for `parse_task_vectors`; raises InvalidLoadout."""
    if isinstance(value, Mapping) and isinstance(value.get("vectors"), (list, Mapping)):
        method = find_method(value.get("method", LINEAR.name))
        fields = dict(value)
        for name in fields.keys() & method.vector_parameters:
            fields[name] = _parameter(fields[name], names)
        return {**fields, "vectors": _as_request(value["vectors"], names)}
    if isinstance(value, Mapping):
        return [_pair(str(name), weight, names) for name, weight in value.items()]
    if isinstance(value, list):
        return [_entry(entry, position, names) for position, entry in enumerate(value)]
    return value


def _pair(name: str, weight: object, names: _Names) -> dict[str, Any]:
    where = f"weight of {name[:MAX_ECHO]!r}"
    return {"name": names.stand_in(name), "weight": parse_weight(weight, where)}


def _entry(entry: object, position: int, names: _Names) -> object:
    if not isinstance(entry, Mapping):
        return entry
    if "file" not in entry:
        name = entry.get("name")
        return {**entry, "name": names.stand_in(name)} if isinstance(name, str) else entry
    where = f"task_vectors[{position}]"
    if "name" in entry:
        raise InvalidLoadout(f"{where} has both a name and a file; choose one")
    if not isinstance(entry["file"], str):
        raise InvalidLoadout(f"{where}.file must be a path, not {kind_of(entry['file'])}")
    rest = {key: field for key, field in entry.items() if key != "file"}
    return {**rest, "name": names.path(entry["file"])}


def _parameter(value: object, names: _Names) -> object:
    if isinstance(value, Mapping) and value.keys() == {"file"} and isinstance(value["file"], str):
        return names.path(value["file"])
    return names.stand_in(value) if isinstance(value, str) else value
