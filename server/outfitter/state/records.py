"""The catalog's words, as plain values: what is asked and what is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from taskvectors.spec import Loadout

LATEST = "latest"
"""The tag that moves by itself: the newest version that is not deleted. A bare name means it."""

FORBID, REPLACE, ADD = REQUEST_VECTORS = ("forbid", "replace", "add")
"""What a saved loadout lets the `task_vectors` of a request do: nothing, unless it says so."""

ORDERS = ("name", "created", "downloads", "size")


@dataclass(frozen=True)
class FileFacts:
    """What a file's own header says. All versions of one digest share them.

    numel: elements of the parameters it changes. method: how it was made, such as `magnitude`.
    """

    digest: str
    size: int
    base_name: str | None
    base_fingerprint: str | None
    parameters: int
    nnz: int
    numel: int
    method: str | None = None

    @property
    def density(self) -> float:
        """Stored values as a share of `numel`."""
        return self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class Details:
    """What people say of a version; may be changed later.

    license: an SPDX expression. languages: as the Hub's `language`, such as `en`. card: Markdown
    with the Hub's YAML fields in front. labels: the Hub's `tags`, for finding it.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    description: str | None = None
    card: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publication:
    """A version to be. name: `name` or `namespace/name`. signature: a model-signing bundle."""

    name: str
    facts: FileFacts
    details: Details = field(default_factory=Details)
    tags: tuple[str, ...] = ()
    publisher: str | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Version:
    """A version of a name, as the catalog has it. created: Unix time, seconds.

    tags: those that point here, `latest` among them. deleted: it has a tombstone; only saved
    loadouts still reach it.
    """

    name: str
    version: int
    facts: FileFacts
    details: Details
    created: int
    publisher: str | None
    downloads: int
    tags: tuple[str, ...]
    signature: str | None = None
    deleted: bool = False

    @property
    def digest(self) -> str:
        """The file's."""
        return self.facts.digest


@dataclass(frozen=True)
class Query:
    """A page of a listing. None asks for anything.

    text: words, all of which are in the name, description or labels, in any case. base: a
    fingerprint or a base's name. license: an SPDX expression. tag: only versions that it points
    at. label, language: one that the version has. order: one of ORDERS, with `-` for descending.
    every_version: not only the latest of each name. after: the cursor of the page before.
    """

    text: str | None = None
    namespace: str | None = None
    name: str | None = None
    base: str | None = None
    license: str | None = None
    tag: str | None = None
    label: str | None = None
    language: str | None = None
    order: str = "name"
    every_version: bool = False
    limit: int = 100
    after: str | None = None


@dataclass(frozen=True)
class Page:
    """A part of a listing. after: the cursor of the next page; None on the last."""

    versions: tuple[Version, ...]
    after: str | None


@dataclass(frozen=True)
class Deletion:
    """What a delete did. tombstones: versions that saved loadouts still refer to.

    tags: those that went with their versions.
    """

    deleted: tuple[tuple[str, int], ...]
    tombstones: tuple[tuple[str, int], ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collected:
    """What a collection did, or would do. digests: of the files dropped, nbytes in all.

    kept: files that are needed, or too young. failed: digests that could not be dropped wholly.
    """

    digests: tuple[str, ...]
    nbytes: int
    kept: int
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Terms:
    """How a saved loadout is served as a model.

    request_vectors: one of REQUEST_VECTORS. description: for people. base_fingerprint: of the base
    that it was made for. described: the `task_vectors` object of answers, as it was when saved;
    None for both where nobody knows.
    """

    request_vectors: str = FORBID
    description: str | None = None
    base_fingerprint: str | None = None
    described: Mapping[str, object] | None = None


@dataclass(frozen=True)
class SavedLoadout:
    """A loadout that was saved under a name, version by version.

    canonical: `Loadout.canonical`. request: the `task_vectors` value that it was saved with.
    is_latest: whether it is what its bare name means.
    """

    name: str
    version: int
    digest: str
    canonical: str
    request: Mapping[str, object]
    created: int
    publisher: str | None = None
    terms: Terms = field(default_factory=Terms)
    is_latest: bool = field(default=True, compare=False)

    @property
    def id(self) -> str:
        """`acme/support-bot@3`."""
        return f"{self.name}@{self.version}"

    @cached_property
    def loadout(self) -> Loadout:
        """What it is made of; raises InvalidLoadout if this code does not know its method."""
        return Loadout.from_canonical(self.canonical)
