"""The catalog: names with immutable versions, tags, saved loadouts, and which files they need."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from outfitter.control.rights import Viewer
from outfitter.control.storage import Stored
from outfitter.state import collector, files, loadouts, publishing, queries, stored
from outfitter.state.bounds import check_details, check_publication
from outfitter.state.database import Database, Patience, sqlite_url
from outfitter.state.models import GenerationRow, TagRow, VersionRow
from outfitter.state.records import (
    Collected,
    Deletion,
    Details,
    Page,
    Publication,
    Query,
    SavedLoadout,
    Terms,
    Version,
)
from outfitter.state.versions import (
    WHOLE,
    find_row,
    is_used,
    key_of,
    parse_name,
    path_of,
    record,
    set_details,
)
from taskvectors.errors import InvalidReference, VectorInUse, VectorNotFound
from taskvectors.spec import Loadout, Reference
from taskvectors.store.tier import StoredFile

_DIGEST = re.compile(r"[0-9a-f]{64}")


def catalog_url(store: Path) -> str:
    """Where the catalog of a store is unless another database is named."""
    return sqlite_url(store / "catalog.sqlite3")


class Catalog:
    """Names, versions, tags and saved loadouts in a database. Thread-safe; waits are bounded.

    A name keeps its case, and no other may differ from it only in case; so do namespaces. Numbers
    of versions are never given twice, also after a delete. Every method raises CatalogUnavailable
    while the database does not answer, is locked or is read-only.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Open a database, making its tables or bringing them up to date.

        Raises InvalidConfig for a URL that cannot be used and for a database that is newer than
        this code.
        """
        self._database = Database(url, patience or Patience())

    def publish(self, publication: Publication) -> Version:
        """Give the next version of a name to a file that was claimed, then placed.

        The digest that the newest version already has keeps that version, and its details; tags
        move to it all the same. Raises InvalidReference, InvalidDetails, CatalogConflict (also when
        the file was collected since: it must be claimed and placed again).
        """
        reference = parse_name(publication.name)
        _check_digest(publication.facts.digest)
        check_publication(publication)
        for tag in publication.tags:
            publishing.settable(tag)
        with self._database.writing() as session:
            return _reload(session, publishing.publish(session, reference, publication))

    def version(self, reference: Reference, viewer: Viewer | None = None) -> Version:
        """What a reference names; a bare digest names the first version that has it.

        viewer: for whom; None sees all. Raises VectorNotFound, which suggests names of the same
        namespace.
        """
        with self._database.reading() as session:
            return record(find_row(session, reference, viewer))

    def find(self, query: Query, viewer: Viewer | None = None) -> Page:
        """A page of versions, without their cards and signatures.

        Raises InvalidDetails for a query that cannot be, also for a cursor of another one.
        """
        queries.check_query(query)
        with self._database.reading() as session:
            return queries.find(session, query, viewer)

    def update(
        self, reference: Reference, details: Details | Callable[[Details], Details]
    ) -> Version:
        """Replace all details of a version; a function is given those that it has then.

        Raises VectorNotFound, InvalidDetails, and what the function raises.
        """
        path = path_of(reference)
        if isinstance(details, Details):
            check_details(details)
        with self._database.writing() as session:
            row = find_row(session, reference)
            new = details if isinstance(details, Details) else details(record(row).details)
            check_details(new)
            set_details(row, path, new)
            session.flush()
            return _reload(session, row.id)

    def tag(self, reference: Reference, tag: str) -> Version:
        """Let a tag point at a version, and no longer at another.

        Raises VectorNotFound, InvalidReference, and CatalogConflict for `latest`.
        """
        publishing.settable(tag)
        key = key_of(path_of(reference))
        with self._database.writing() as session:
            row = find_row(session, reference)
            publishing.point(session, key, tag, row.id)
            return _reload(session, row.id)

    def untag(self, name: str, tag: str) -> None:
        """Forget a tag. Raises VectorNotFound if the name has none such, CatalogConflict."""
        publishing.settable(tag)
        reference = parse_name(name)
        with self._database.writing() as session:
            find_row(session, reference)
            row = session.get(TagRow, (key_of(name), tag))
            if row is None:
                raise VectorNotFound(f"{name!r} has no tag {tag!r}")
            session.delete(row)

    def delete(self, reference: Reference) -> Deletion:
        """Delete a version, or a name with all of them, and the tags that point there.

        What saved loadouts refer to stays as a tombstone until the last of them goes. Raises
        VectorNotFound; VectorInUse for a bare digest that something still names.
        """
        if reference.path is None:
            if self.is_used(str(reference.digest)):
                raise VectorInUse(f"{reference} still has names or saved loadouts; delete those")
            raise VectorNotFound(f"no task vector {str(reference)!r}")
        with self._database.writing() as session:
            return publishing.remove(session, reference)

    def claim(self, digest: str) -> None:
        """Keep the collector from a file; to be called before it is placed.

        Waits while the collector drops it, so that what is placed afterwards stays.
        """
        _check_digest(digest)
        with self._database.changing() as session:
            files.claim(session, digest)

    def is_used(self, digest: str) -> bool:
        """Whether a version, a tombstone or a saved loadout names the file."""
        _check_digest(digest)
        with self._database.reading() as session:
            return is_used(session, digest)

    def count_download(self, name: str, version: int) -> None:
        """Count one; does nothing for a version that has gone."""
        living = (
            VersionRow.key == key_of(name),
            VersionRow.number == version,
            ~VersionRow.deleted,
        )
        with self._database.changing() as session:
            counted = update(VersionRow).where(*living)
            session.execute(counted.values(downloads=VersionRow.downloads + 1))

    def save_loadout(
        self,
        name: str,
        loadout: Loadout,
        request: Mapping[str, object],
        publisher: str | None,
        terms: Terms = Terms(),  # noqa: B008
    ) -> SavedLoadout:
        """Save a loadout as the next version of a name, which becomes the latest.

        The same as the latest keeps that one. Raises InvalidReference, InvalidDetails,
        CatalogConflict, and VectorNotFound if one of its files was collected.
        """
        reference = parse_name(name)
        entry = loadouts.Entry.of(loadout, request, publisher, terms)
        with self._database.writing() as session:
            return loadouts.save(session, reference, entry)

    def loadout(
        self, name: str, version: int | None = None, viewer: Viewer | None = None
    ) -> SavedLoadout:
        """A saved loadout, the latest unless a version is named. Raises VectorNotFound."""
        reference = parse_name(name)
        with self._database.reading() as session:
            return loadouts.record(loadouts.find(session, reference, version, viewer))

    def loadout_versions(self, name: str, viewer: Viewer | None = None) -> tuple[SavedLoadout, ...]:
        """The versions of a saved loadout, newest first. Raises VectorNotFound."""
        reference = parse_name(name)
        with self._database.reading() as session:
            return loadouts.versions(session, reference, viewer)

    def move_loadout(self, name: str, version: int) -> SavedLoadout:
        """Let a bare name mean this version, until the next is saved. Raises VectorNotFound."""
        reference = parse_name(name)
        with self._database.writing() as session:
            return loadouts.move(session, reference, version)

    def loadouts(
        self, limit: int = 100, after: str | None = None, viewer: Viewer | None = None
    ) -> tuple[tuple[SavedLoadout, ...], str | None]:
        """The latest loadout of each name, by name, and the cursor of the next page."""
        with self._database.reading() as session:
            return loadouts.page(session, limit, after, viewer)

    def delete_loadout(self, name: str, version: int | None = None) -> None:
        """Delete one saved version or all, and tombstones that nothing else needs.

        Raises VectorNotFound.
        """
        reference = parse_name(name)
        with self._database.writing() as session:
            loadouts.remove(session, reference, version)

    def stored(self, namespaces: Sequence[str] | None, digest: str | None) -> Stored:
        """What some namespaces hold, all of them when None, and whether this file is among it."""
        with self._database.reading() as session:
            return stored.stored(session, namespaces, digest)

    def generation(self) -> int:
        """Rises with every change that can alter an answer of `version` or `loadout`."""
        with self._database.reading() as session:
            return session.scalars(select(GenerationRow.value)).one()

    def collect(
        self,
        files: Iterable[StoredFile],
        drop: Callable[[str], None],
        grace_s: float,
        dry_run: bool = False,
    ) -> Collected:
        """Drop the files that nothing names and that nobody claimed or wrote within `grace_s`.

        drop: takes a file from every place; called while publishers of that file wait.
        """
        return collector.collect(self._database, files, drop, grace_s, dry_run=dry_run)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    @property
    def database(self) -> Database:
        """For what belongs to the catalog but is no part of its daily work."""
        return self._database


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidReference(f"invalid digest {digest[:80]!r}: use 64 hex digits")


def _reload(session: Session, row_id: int) -> Version:
    """The version as it is now."""
    query = select(VersionRow).where(VersionRow.id == row_id).options(*WHOLE)
    return record(session.scalars(query.execution_options(populate_existing=True)).one())
