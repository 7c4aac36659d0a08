"""The task vectors that this server has: files, their names, and whom to trust, seen as one."""

import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Self

from outfitter.control import rights
from outfitter.control.resolve import ResolvedVector
from outfitter.control.rights import Kind, Viewer
from outfitter.control.selection import Modules
from outfitter.state import experiments
from outfitter.state.catalog import Catalog, catalog_url
from outfitter.state.changes import Changes
from outfitter.state.facts import facts_of
from outfitter.state.legacy import import_names
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
from outfitter.state.resolver import Resolver
from outfitter.state.uploads import Uploads
from outfitter.trust.details import check_details, merge_details
from outfitter.trust.policy import Trust
from taskvectors.errors import BaseMismatch, InvalidFile, InvalidReference
from taskvectors.format import FileHeader, file_digest, validate_file
from taskvectors.spec import Loadout, Reference, parse_tag
from taskvectors.store import DirectoryStore
from taskvectors.store.room import needing_room
from taskvectors.store.settings import TierSettings
from taskvectors.store.tiered import TieredFiles
from taskvectors.values import MAX_ECHO

log = logging.getLogger(__name__)

UPLOADS = "uploads"
"""The folder in `incoming/` for uploads that may be resumed."""


@dataclass(frozen=True)
class Base:
    """The resident base: what task vectors must fit."""

    fingerprint: str
    shapes: dict[str, tuple[int, ...]]

    @functools.cached_property
    def modules(self) -> Modules:
        """What the layers and modules of a request can name."""
        return Modules(self.shapes)


@dataclass(frozen=True)
class Draft:
    """What is said of a file that is to be published; see `Publication`."""

    name: str
    details: Details = field(default_factory=Details)
    tags: tuple[str, ...] = ()
    publisher: str | None = None
    signature: str | None = None

    def completed(self, found: Details, signature: str | None) -> "Draft":
        """This, and where it says nothing, what a source said."""
        said = {item.name: getattr(self.details, item.name) for item in fields(Details)}
        details = replace(found, **{name: value for name, value in said.items() if value})
        return replace(self, details=details, signature=self.signature or signature)


@dataclass(frozen=True)
class Vectors:
    """Publishing, lookups and changes, as one viewer may. Every method may block: call in a thread.

    viewer: whose rights bind, None for nobody's. What it may not see is not there; what it may see
    but not change raises NotYours. whole: what this is a view of. Every method but `path` may raise
    CatalogUnavailable.
    """

    store: DirectoryStore
    files: TieredFiles
    catalog: Catalog
    resolver: Resolver
    trust: Trust
    quarantine_bytes: int
    viewer: Viewer | None = None
    whole: "Vectors | None" = None

    def seen_by(self, viewer: Viewer | None) -> "Vectors":
        """The same store as a tenant may see and change it."""
        return self if viewer is None else replace(self, viewer=viewer, whole=self.whole or self)

    @functools.cached_property
    def uploads(self) -> Uploads:
        """The uploads that are not published yet."""
        if self.whole is not None and self.viewer is not None:
            return self.whole.uploads.of(self.viewer.tenant)
        return Uploads(self.store.root / "incoming" / UPLOADS)

    def check_name(self, text: str) -> str:
        """`text`, if it is a plain name to publish under; raises InvalidReference, NotYours."""
        name = plain_name(text)
        rights.check_change(self.viewer, name)
        return name

    def publish(self, path: Path, digest: str, draft: Draft, base: Base | None) -> Version:
        """Take over a file from `store.new_upload`, and give it the next version of a name.

        It is seen by nobody until everything else is durable: a crash or an error leaves at most a
        file that no name stands for. The latest version's own digest keeps that version. base: what
        it must fit, None for any. Raises InvalidFile (the file is quarantined then), BaseMismatch,
        InvalidReference, InvalidDetails, UntrustedVector, CatalogConflict, StoreFull and
        TierUnavailable.
        """
        name = self.check_name(draft.name)
        tags = tuple(parse_tag(tag) for tag in draft.tags)
        header = self._validated(path, name, base)
        details = merge_details(header.metadata, draft.details)
        self.trust.check(name, digest, draft.signature)
        facts = facts_of(digest, header)
        self.catalog.claim(digest)
        self.store.place(path, digest)
        self.files.spread(digest)
        version = self.catalog.publish(
            Publication(name, facts, details, tags, draft.publisher, draft.signature)
        )
        self.resolver.changed()
        return version

    def publish_upload(self, upload: str, draft: Draft, base: Base | None) -> Version:
        """`publish` an upload, which is gone afterwards.

        It stays when the refusal is not the file's fault, so that it can be tried again. Raises
        UploadNotFound, UploadMismatch, UploadLocked, and what `publish` raises.
        """
        path = self.store.new_upload()
        with self.uploads.whole(upload) as whole:
            try:
                _link(whole, path)
                version = self.publish(path, file_digest(path), draft, base)
            except (InvalidFile, BaseMismatch):
                self.uploads.discard(upload)
                raise
            finally:
                path.unlink(missing_ok=True)
            self.uploads.discard(upload)
        return version

    def version(self, reference: Reference) -> Version:
        """What `reference` stands for now; raises VectorNotFound."""
        return self.resolver.version(reference, self.viewer)

    def look_up(self, reference: Reference) -> Version:
        """The same from the catalog, with its downloads, which nobody remembers."""
        return self.catalog.version(reference, self.viewer)

    def resolve(self, reference: Reference) -> ResolvedVector:
        """The same for a request that will use it; raises VectorNotFound, UntrustedVector."""
        found = self.version(reference)
        self.trust.check(found.name, found.digest, found.signature)
        return ResolvedVector(found.name, found.version, found.digest, found.facts.base_fingerprint)

    def find(self, query: Query) -> Page:
        """A page of a listing."""
        return self.catalog.find(query, self.viewer)

    def update(self, reference: Reference, change: Callable[[Details], Details]) -> Version:
        """Say something else of a version, given what is said now.

        Raises VectorNotFound, InvalidDetails.
        """
        self._check_mine(reference)
        return self._told(self.catalog.update(reference, lambda old: check_details(change(old))))

    def tag(self, reference: Reference, tag: str) -> Version:
        """Let a tag point at a version; raises VectorNotFound, InvalidReference."""
        self._check_mine(reference)
        return self._told(self.catalog.tag(reference, parse_tag(tag)))

    def untag(self, name: str, tag: str) -> None:
        """Take a tag away; raises VectorNotFound, InvalidReference."""
        self._check_mine(Reference.parse(plain_name(name)))
        self.catalog.untag(name, parse_tag(tag))
        self.resolver.changed()

    def delete(self, reference: Reference) -> Deletion:
        """Forget a name, or one version of it; raises VectorNotFound. Its file is `collect`'s."""
        self._check_mine(reference)
        deletion = self.catalog.delete(reference)
        self.resolver.changed()
        return deletion

    def loadout(self, reference: Reference) -> SavedLoadout:
        """The saved loadout of a name, or of a name and version; raises VectorNotFound."""
        return self.resolver.loadout(reference, self.viewer)

    def loadouts(
        self, limit: int = 100, after: str | None = None
    ) -> tuple[tuple[SavedLoadout, ...], str | None]:
        """A page of the saved loadouts; see `Catalog.loadouts`."""
        return self.catalog.loadouts(limit, after, self.viewer)

    def loadout_versions(self, name: str) -> tuple[SavedLoadout, ...]:
        """The versions of a saved loadout, newest first. Raises VectorNotFound."""
        return self.catalog.loadout_versions(name, self.viewer)

    def save_loadout(
        self,
        name: str,
        loadout: Loadout,
        request: Mapping[str, object],
        publisher: str | None,
        terms: Terms,
    ) -> SavedLoadout:
        """Save a loadout as the next version of a name; see `Catalog.save_loadout`."""
        self.check_name(name)
        saved = self.catalog.save_loadout(name, loadout, request, publisher, terms)
        self.resolver.changed()
        return saved

    def move_loadout(self, name: str, version: int) -> SavedLoadout:
        """Let a bare name mean this version from now on; raises VectorNotFound."""
        self._check_my_loadout(name, version)
        saved = self.catalog.move_loadout(name, version)
        self.resolver.changed()
        return saved

    def delete_loadout(self, name: str, version: int | None) -> None:
        """Forget a saved loadout, or one version of it; raises VectorNotFound."""
        self._check_my_loadout(name, version)
        self.catalog.delete_loadout(name, version)
        self.resolver.changed()

    def path(self, wanted: Reference | str) -> Path:
        """The file of a reference or digest, on this machine's disk.

        Raises VectorNotFound, StoreFull, TierUnavailable.
        """
        digest = wanted if isinstance(wanted, str) else self.version(wanted).digest
        return self.files.path(digest)

    def collect(self, grace_s: float, dry_run: bool) -> Collected:
        """Drop the files, from every tier, that no version or loadout needs.

        Those placed within the last `grace_s` seconds stay.
        """
        return self.catalog.collect(self.files.files(), self.files.drop, grace_s, dry_run)

    def close(self) -> None:
        """Let go of files, threads and connections."""
        self.resolver.close()
        self.files.close()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_owned(self, kind: Kind, path: str) -> str:
        """A name as it was published, if this viewer may say who sees it.

        Raises VectorNotFound, NotYours, InvalidReference.
        """
        name = plain_name(path)
        if kind is Kind.LOADOUT:
            found = self.loadout(Reference.parse(name)).name
        elif kind is Kind.EXPERIMENT:
            with self.catalog.database.reading() as session:
                found = experiments.find(session, name, self.viewer).name
        else:
            found = self.version(Reference.parse(name)).name
        rights.check_change(self.viewer, found)
        return found

    def _check_mine(self, reference: Reference) -> None:
        """Raises VectorNotFound for what this viewer may not see, NotYours for what it may."""
        if reference.path is not None and rights.may_change(self.viewer, reference.path):
            return
        if self.viewer is not None:
            rights.check_change(self.viewer, self.version(reference).name)

    def _check_my_loadout(self, name: str, version: int | None) -> None:
        """The same for a saved loadout."""
        if not rights.may_change(self.viewer, name):
            self.catalog.loadout(name, version, self.viewer)
            rights.check_change(self.viewer, name)

    def _told(self, version: Version) -> Version:
        self.resolver.changed()
        return version

    def _validated(self, path: Path, name: str, base: Base | None) -> FileHeader:
        """The header of a sound file; a broken one is moved away, for the operator to see."""
        shapes = None if base is None else base.shapes
        fingerprint = None if base is None else base.fingerprint
        try:
            return validate_file(path, base_shapes=shapes, base_fingerprint=fingerprint)
        except InvalidFile as error:
            self._quarantine(path, name, error)
            raise

    def _quarantine(self, path: Path, name: str, error: InvalidFile) -> None:
        reason = f"published as {name}: {type(error).__name__}: {error}"
        try:
            self.store.quarantine(path, reason, self.quarantine_bytes)
        except OSError as trouble:
            log.warning("a broken file cannot be quarantined (%s): %s", reason, trouble)


def plain_name(text: str) -> str:
    """`name` or `namespace/name`; raises InvalidReference for anything else."""
    reference = Reference.parse(text)
    if reference.path is None or reference.path != text:
        raise InvalidReference(
            f"{text[:MAX_ECHO]!r} must be name or namespace/name, without a version or digest"
        )
    return text


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the disk knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        with needing_room("the upload"):
            shutil.copyfile(source, target)


def open_vectors(
    store: Path,
    *,
    database_url: str | None,
    tiers: TierSettings,
    trust: Path | None,
    quarantine_bytes: int,
) -> Vectors:
    """Open or make the store at `store`; close it afterwards.

    database_url: None for SQLite in the store's folder. trust: a policy's file, None for no policy.
    quarantine_bytes: most of broken files. Raises CatalogUnavailable, InvalidConfig, OSError.
    """
    policy = Trust.load(trust)
    files = TieredFiles(store, tiers, with_memory=False)
    catalog = Catalog(database_url or catalog_url(store))
    if any((store / "names").glob("*/*.json")):
        import_names(catalog, store, lambda digest: facts_of(digest, files.header(digest)))
    resolver = Resolver(catalog, Changes(tiers.redis_url, tiers.redis_prefix))
    return Vectors(files.store, files, catalog, resolver, policy, quarantine_bytes)
