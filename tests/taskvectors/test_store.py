"""The directory store: content by digest, names with versions, many writers."""

import multiprocessing
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from taskvectors.errors import (
    ChecksumMismatch,
    InvalidFile,
    InvalidReference,
    TruncatedFile,
    UnreadableName,
    VectorInUse,
    VectorNotFound,
)
from taskvectors.format import read_header, write_vector
from taskvectors.spec import Reference
from taskvectors.store import DirectoryStore, Resolved, Store
from taskvectors.store.headers import HeaderCache
from taskvectors.store.names import Names
from tests.taskvectors.making import example_vector


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three different task vector files."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, path in enumerate(paths):
        write_vector(example_vector() * (number + 1), path)
    return paths


def ref(text: str) -> Reference:
    return Reference.parse(text)


def blobs(store: DirectoryStore) -> list[str]:
    return sorted(path.stem for path in store.root.glob("blobs/sha256/*/*.safetensors"))


def incoming(store: DirectoryStore) -> list[str]:
    return os.listdir(store.root / "incoming")


def test_the_directory_store_is_a_store(store: DirectoryStore) -> None:
    """It has every method of the protocol, with the protocol's types (mypy checks them)."""
    typed: Store = store
    assert all(hasattr(typed, name) for name in vars(Store) if not name.startswith("_"))


def test_an_added_file_is_found_by_its_digest(store: DirectoryStore, files: list[Path]) -> None:
    """The blob is a read-only copy under its sha256."""
    digest = store.add(files[0])
    path = store.path(digest)
    assert path == store.root / "blobs" / "sha256" / digest[:2] / f"{digest}.safetensors"
    assert path.read_bytes() == files[0].read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.path(f"sha256:{digest}") == path
    assert incoming(store) == []


def test_adding_twice_is_adding_once(store: DirectoryStore, files: list[Path]) -> None:
    """The same content has one blob."""
    assert store.add(files[0]) == store.add(files[0])
    assert len(blobs(store)) == 1
    assert incoming(store) == []


def test_a_broken_file_is_not_added(store: DirectoryStore, files: list[Path]) -> None:
    """What enters by `add` is validated, and nothing is left behind."""
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(TruncatedFile):
        store.add(files[0])
    assert blobs(store) == incoming(store) == []


def test_an_upload_is_adopted(store: DirectoryStore, files: list[Path]) -> None:
    """A file written to `incoming` becomes a blob by rename; a second one of it is dropped."""
    digest = store.add(files[0])
    store.remove(ref(f"sha256:{digest}"))
    for _ in range(2):
        upload = store.new_upload()
        shutil.copy(files[0], upload)
        assert store.adopt(upload, digest) == store.path(digest)
        assert incoming(store) == []


def test_an_upload_with_another_digest_is_refused(store: DirectoryStore, files: list[Path]) -> None:
    """A blob always is what its name says."""
    upload = store.new_upload()
    shutil.copy(files[0], upload)
    with pytest.raises(ChecksumMismatch, match=f"not {'0' * 64}"):
        store.adopt(upload, "0" * 64)
    assert blobs(store) == []


def test_a_file_from_elsewhere_is_not_adopted(
    store: DirectoryStore, files: list[Path], tmp_path: Path
) -> None:
    """Only real files in `incoming` are moved: nothing outside the root is touched."""
    digest = store.add(files[0])
    link = store.new_upload()
    link.symlink_to(files[0])
    for path in (files[0], link, store.root / "incoming" / ".." / ".." / files[0].name):
        with pytest.raises(InvalidFile, match="is not in the store's incoming folder"):
            store.adopt(path, digest)
    assert files[0].exists()


def test_publish_adopts_and_names(store: DirectoryStore, files: list[Path]) -> None:
    """One step from upload to version."""
    digest = store.add(files[1])
    upload = store.new_upload()
    shutil.copy(files[1], upload)
    assert store.publish(upload, digest, "acme/legal") == 1
    assert store.resolve(ref("acme/legal")) == Resolved("acme/legal", 1, digest)


@pytest.mark.parametrize(
    "digest", ["0" * 64, "sha256:" + "0" * 64, "../../x", "", "A" * 64, "0" * 63]
)
def test_an_unknown_digest_is_not_found(store: DirectoryStore, digest: str) -> None:
    """A digest is 64 hex digits; it never becomes another path."""
    for find in (store.path, store.header, lambda digest: store.assign("x", digest)):
        with pytest.raises(VectorNotFound):
            find(digest)


def test_a_blob_that_is_a_link_is_not_found(store: DirectoryStore, files: list[Path]) -> None:
    """The store follows nothing out of its root."""
    digest = store.add(files[0])
    store.path(digest).unlink()
    (store.root / "blobs" / "sha256" / digest[:2] / f"{digest}.safetensors").symlink_to(files[0])
    with pytest.raises(VectorNotFound):
        store.path(digest)


def test_headers_are_remembered(store: DirectoryStore, files: list[Path]) -> None:
    """A header is read once, and not after its file is gone."""
    digest = store.add(files[0])
    assert store.header(digest) is store.header(digest)
    assert store.header(digest).base.name == "example/base"
    store.path(digest).unlink()
    with pytest.raises(VectorNotFound):
        store.header(digest)


def test_remembered_headers_have_a_budget(files: list[Path]) -> None:
    """The header that was not asked for the longest goes first; one that never fits is not kept."""
    size = max(read_header(path).head_nbytes for path in files)
    cache = HeaderCache(2 * size)
    first, second = cache.read(files[0]), cache.read(files[1])
    assert cache.read(files[0]) is first
    cache.read(files[2])
    assert cache.nbytes <= 2 * size
    assert cache.read(files[0]) is first
    assert cache.read(files[1]) is not second
    tiny = HeaderCache(size // 2)
    tiny.read(files[0])
    assert tiny.nbytes == 0


def test_versions_count_up(store: DirectoryStore, files: list[Path]) -> None:
    """A new digest is a new version; the latest digest again is the latest version."""
    digests = [store.add(path) for path in files]
    assert [store.assign("json", digest) for digest in digests] == [1, 2, 3]
    assert store.assign("json", digests[2]) == 3
    assert store.assign("json", digests[0]) == 4
    assert store.resolve(ref("json")) == Resolved("json", 4, digests[0])
    assert store.resolve(ref("json@2")) == Resolved("json", 2, digests[1])
    assert store.resolve(ref(f"json@sha256:{digests[1]}")).version == 2
    assert store.resolve(ref(digests[1])) == Resolved(None, None, digests[1])


def test_names_and_namespaces_do_not_meet(store: DirectoryStore, files: list[Path]) -> None:
    """`a`, `a/a`, and names that look like the store's own files are all different."""
    names = ["a", "a.json", "a/a", "a.json/a", "b/a"]
    digests = [store.add(path) for path in files]
    for position, name in enumerate(names):
        store.assign(name, digests[position % 3])
    for position, name in enumerate(names):
        assert store.resolve(ref(name)).digest == digests[position % 3]
    assert [entry.name for entry in store.entries()] == sorted(names)


def test_entries_tell_versions_and_sizes(store: DirectoryStore, files: list[Path]) -> None:
    """One entry for each version, in order."""
    digests = [store.add(path) for path in files]
    for digest in digests:
        store.assign("acme/x", digest)
    entries = store.entries()
    assert [entry.version for entry in entries] == [1, 2, 3]
    assert [entry.digest for entry in entries] == digests
    assert [entry.size for entry in entries] == [path.stat().st_size for path in files]
    assert all(entry.created > 1_700_000_000 for entry in entries)


@pytest.mark.parametrize("name", ["a@1", "../a", "a/b/c", "", "/a", "a/", ".a", "0" * 64])
def test_what_is_no_name_cannot_be_assigned(
    store: DirectoryStore, files: list[Path], name: str
) -> None:
    """Names are letters, digits, '.', '_' and '-', with at most one namespace."""
    digest = store.add(files[0])
    with pytest.raises(InvalidReference):
        store.assign(name, digest)


def test_an_unknown_name_gets_a_suggestion(store: DirectoryStore, files: list[Path]) -> None:
    """The error names what is close, from the same namespace only."""
    digest = store.add(files[0])
    for name in ("pirate", "acme/pirates", "other/pirate"):
        store.assign(name, digest)
    with pytest.raises(VectorNotFound) as caught:
        store.resolve(ref("acme/pirate"))
    assert str(caught.value) == ("no task vector 'acme/pirate'; did you mean 'acme/pirates'?")
    with pytest.raises(VectorNotFound, match=r"no task vector 'zzz'$"):
        store.resolve(ref("zzz"))


def test_an_unknown_version_tells_the_known_ones(store: DirectoryStore, files: list[Path]) -> None:
    """A missing version or digest of a known name lists its versions."""
    digests = [store.add(path) for path in files]
    store.assign("json", digests[0])
    store.assign("json", digests[1])
    for text in ("json@3", f"json@sha256:{digests[2]}"):
        with pytest.raises(VectorNotFound, match="'json' has @1, @2"):
            store.resolve(ref(text))


def test_removing_a_name_drops_its_files(store: DirectoryStore, files: list[Path]) -> None:
    """Files that another name stands for stay."""
    digests = [store.add(path) for path in files]
    for digest in digests:
        store.assign("json", digest)
    store.assign("other", digests[1])
    store.remove(ref("json"))
    assert blobs(store) == [digests[1]]
    assert [entry.name for entry in store.entries()] == ["other"]
    with pytest.raises(VectorNotFound):
        store.remove(ref("json"))


def test_removing_a_version_keeps_the_others(store: DirectoryStore, files: list[Path]) -> None:
    """The latest of what is left is what the name means now; the number is not given again."""
    digests = [store.add(path) for path in files]
    for digest in digests:
        store.assign("json", digest)
    store.remove(ref("json@3"))
    assert store.resolve(ref("json")).version == 2
    assert blobs(store) == sorted(digests[:2])
    assert store.assign("json", store.add(files[2])) == 4
    store.remove(ref("json"))
    assert store.assign("json", store.add(files[2])) == 5


def test_removing_by_digest(store: DirectoryStore, files: list[Path]) -> None:
    """A file without a name can be dropped; one with a name says which."""
    digest = store.add(files[0])
    store.assign("json", digest)
    with pytest.raises(VectorInUse, match="is json@1; remove that version"):
        store.remove(ref(digest))
    other = store.add(files[1])
    store.remove(ref(other))
    assert blobs(store) == [digest]
    with pytest.raises(VectorNotFound):
        store.remove(ref(other))


def test_stale_uploads_are_swept(store: DirectoryStore) -> None:
    """What was left in `incoming` for a day is gone when the store is opened next."""
    old, new = store.new_upload(), store.new_upload()
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    DirectoryStore(store.root)
    assert incoming(store) == [new.name]


def _assign_many(root: Path, files: list[Path], name: str) -> None:
    store = DirectoryStore(root)
    for _ in range(5):
        for file in files:
            store.assign(name, store.add(file))


def test_processes_do_not_lose_versions(store: DirectoryStore, files: list[Path]) -> None:
    """Writers in several processes and threads give each version to one file."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_assign_many, args=(store.root, files, "json")) for _ in range(2)
    ]
    workers += [
        threading.Thread(target=_assign_many, args=(store.root, files, "json")) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    versions = [entry.version for entry in store.entries()]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) >= 3 * 5
    assert len(blobs(store)) == 3
    assert incoming(store) == []


def _publish_and_remove(store: DirectoryStore, file: Path, digest: str, name: str) -> None:
    for _ in range(15):
        upload = store.new_upload()
        shutil.copy(file, upload)
        store.publish(upload, digest, name)
        store.path(digest)
        store.remove(ref(name))


def test_a_published_file_outlives_removals_of_its_other_names(
    store: DirectoryStore, files: list[Path]
) -> None:
    """While a name stands for a file, nobody's removal drops it."""
    digest = store.add(files[0])
    errors: list[Exception] = []

    def work(name: str) -> None:
        try:
            _publish_and_remove(store, files[0], digest, name)
        except VectorNotFound as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.entries() == []
    assert blobs(store) == []


BROKEN = [
    "",
    "{",
    "[]",
    "\ud800",
    '{"next": 1}',
    '{"next": 1, "versions": [3]}',
    '{"next": 1, "versions": [{"version": 1, "digest": "../x", "created": 1, "size": 1}]}',
]


def break_name(store: DirectoryStore, name: str, text: str = "{") -> None:
    path = store.root / "names" / "_" / f"{name}.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_name_is_told_and_others_are_served(
    store: DirectoryStore, files: list[Path], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the file; the listing leaves it out with a warning, and nothing is lost."""
    digests = [store.add(path) for path in files]
    for name, digest in zip(("good", "broken", "other"), digests, strict=True):
        store.assign(name, digest)
    break_name(store, "broken", text)
    for ask in (store.resolve, store.entry, store.remove):
        with pytest.raises(UnreadableName, match=r"names/_/broken\.json"):
            ask(ref("broken"))
    with pytest.raises(UnreadableName):
        store.assign("broken", digests[0])
    assert [entry.name for entry in store.entries()] == ["good", "other"]
    assert "left out: the store cannot read names/_/broken.json" in caplog.text
    assert store.resolve(ref("good")).digest == digests[0]
    with pytest.raises(VectorNotFound, match=r"no task vector 'brokem'$"):
        store.resolve(ref("brokem"))


def test_no_file_is_dropped_while_a_name_is_broken(
    store: DirectoryStore, files: list[Path]
) -> None:
    """The broken name may stand for it."""
    digest = store.add(files[0])
    for name in ("good", "broken"):
        store.assign(name, digest)
    break_name(store, "broken")
    store.remove(ref("good"))
    with pytest.raises(UnreadableName):
        store.remove(ref(digest))
    assert store.entries() == []
    assert blobs(store) == [digest]


def test_a_suggestion_reads_no_more_than_it_names(
    store: DirectoryStore, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of names is looked at; a removed one is not suggested."""
    digest = store.add(files[0])
    for name in ("pirate1", "pirate2", "tailor"):
        store.assign(name, digest)
    store.remove(ref("pirate2"))
    monkeypatch.setattr(Names, "records", None)
    with pytest.raises(VectorNotFound, match=r"'pirate'; did you mean 'pirate1'\?$"):
        store.resolve(ref("pirate"))
    monkeypatch.setattr("taskvectors.store.names.MAX_LOOKED_AT", 0)
    with pytest.raises(VectorNotFound, match=r"no task vector 'pirate'$"):
        store.resolve(ref("pirate"))
