"""Stores from before the catalog: their `names/` folder is taken over once.

`names/<namespace or _>/<name>.json` holds `{"next": 4, "versions": [{version, digest, created,
size}, …]}`.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from outfitter.errors import CatalogConflict
from outfitter.state.bounds import check_facts
from outfitter.state.catalog import Catalog
from outfitter.state.files import claim
from outfitter.state.models import VersionRow
from outfitter.state.publishing import add_version, name_row
from outfitter.state.records import FileFacts, Publication
from outfitter.state.versions import parse_name
from taskvectors.errors import TaskVectorError

log = logging.getLogger(__name__)

Facts = Callable[[str], FileFacts]
_FOLDER, _IMPORTED = "names", "names.imported"
_NO_NAMESPACE = "_"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 999_999_999
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Old:
    """A version of an old name, with what its file says."""

    number: int
    created: int
    facts: FileFacts


@dataclass(frozen=True)
class _Name:
    path: str
    next_version: int
    versions: tuple[_Old, ...]


def import_names(catalog: Catalog, store_root: Path, facts: Facts) -> int:
    """Take over the names of an old store, with their numbers; the count of versions added.

    Again, or in several processes at once, is the same as once. What cannot be read is left in
    `names.imported` with a warning. facts: of a file in the store; may raise TaskVectorError,
    OSError. Raises CatalogUnavailable, OSError.
    """
    folder = store_root / _FOLDER
    if not folder.is_dir():
        return 0
    try:
        names = list(_names(folder, facts))
    except FileNotFoundError:  # another process took it over meanwhile
        return 0
    with catalog.database.writing() as session:
        added = sum(_import(session, name) for name in names)
    _rename(folder)
    if names:
        log.info("took %d versions of %d names over from %s", added, len(names), folder)
    return added


def _import(session: Session, name: _Name) -> int:
    try:
        row = name_row(session, parse_name(name.path))
    except CatalogConflict as error:
        log.warning("left out the name %r of the old store: %s", name.path, error)
        return 0
    query = select(VersionRow.number, VersionRow.digest).where(VersionRow.key == row.key)
    known = {row.number: row.digest for row in session.execute(query)}
    row.next_version = max(row.next_version, name.next_version)
    session.flush()
    for old in name.versions:
        if old.number not in known:
            claim(session, old.facts.digest)
            publication = Publication(name.path, old.facts)
            add_version(session, row, old.number, publication, old.created)
        elif known[old.number] != old.facts.digest:
            log.warning(
                "left out %s@%d of the old store: the catalog has another file for it",
                *(name.path, old.number),
            )
    return sum(old.number not in known for old in name.versions)


def _names(folder: Path, facts: Facts) -> Iterator[_Name]:
    for path in sorted(folder.glob("*/[!.]*.json")):
        stem = path.name.removesuffix(".json")
        namespace = path.parent.name
        try:
            yield _name(stem if namespace == _NO_NAMESPACE else f"{namespace}/{stem}", path, facts)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, TaskVectorError) as error:
            log.warning("left out %s/%s of the old store: %r", namespace, path.name, error)


def _name(name: str, path: Path, facts: Facts) -> _Name:
    parse_name(name)
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_BYTES:
        raise ValueError("not a plain file of a sensible size")
    fields = json.loads(path.read_text("utf-8"))
    versions = {_number(v["version"]): v for v in fields["versions"]}
    next_version = max((_number(fields["next"]), *(number + 1 for number in versions)))
    found = (_old(name, number, v, facts) for number, v in sorted(versions.items()))
    return _Name(name, next_version, tuple(old for old in found if old is not None))


def _old(name: str, number: int, fields: Mapping[str, Any], facts: Facts) -> _Old | None:
    if not _DIGEST.fullmatch(fields["digest"]):
        raise ValueError("a digest must have 64 hex digits")
    try:
        found = facts(fields["digest"])
        check_facts(found)
    except (TaskVectorError, OSError) as error:
        log.warning("left out %s@%d of the old store: %s", name, number, error)
        return None
    return _Old(number, max(0, min(int(fields["created"]), 2**40)), found)


def _number(value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_NUMBER:
        raise ValueError(f"{value!r} is no version number")
    return value


def _rename(folder: Path) -> None:
    target = folder.with_name(_IMPORTED)
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{_IMPORTED}.{number}")
    with suppress(FileNotFoundError):  # another process was faster
        folder.rename(target)
