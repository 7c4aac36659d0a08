"""The directory store: content by digest, whole or not at all, with many writers."""

import contextlib
import errno
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
    StoreFull,
    TruncatedFile,
    VectorNotFound,
)
from taskvectors.format import FileHeader, read_header, write_vector
from taskvectors.store import DirectoryStore
from taskvectors.store.headers import HeaderCache
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


def blobs(store: DirectoryStore) -> list[str]:
    return sorted(path.stem for path in store.root.glob("blobs/sha256/*/*.safetensors"))


def incoming(store: DirectoryStore) -> list[str]:
    return os.listdir(store.root / "incoming")


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


def test_an_upload_is_placed(store: DirectoryStore, files: list[Path]) -> None:
    """A file written to `incoming` becomes a blob by rename; a second one takes its place."""
    digest = store.add(files[0])
    store.discard(digest)
    for _ in range(2):
        upload = store.new_upload()
        shutil.copy(files[0], upload)
        assert store.place(upload, digest) == store.path(digest)
        assert incoming(store) == []


def test_an_upload_with_another_digest_is_refused(store: DirectoryStore, files: list[Path]) -> None:
    """A blob always is what its name says."""
    upload = store.new_upload()
    shutil.copy(files[0], upload)
    with pytest.raises(ChecksumMismatch, match=f"not {'0' * 64}"):
        store.place(upload, "0" * 64)
    assert blobs(store) == []


def test_a_file_from_elsewhere_is_not_placed(
    store: DirectoryStore, files: list[Path], tmp_path: Path
) -> None:
    """Only real files in `incoming` are moved: nothing outside the root is touched."""
    digest = store.add(files[0])
    link = store.new_upload()
    link.symlink_to(files[0])
    for path in (files[0], link, store.root / "incoming" / ".." / ".." / files[0].name):
        with pytest.raises(InvalidFile, match="is not in the store's incoming folder"):
            store.place(path, digest)
    assert files[0].exists()


@pytest.mark.parametrize(
    "digest", ["0" * 64, "sha256:" + "0" * 64, "../../x", "", "A" * 64, "0" * 63]
)
def test_an_unknown_digest_is_not_found(store: DirectoryStore, digest: str) -> None:
    """A digest is 64 hex digits; it never becomes another path."""
    for find in (store.path, store.header):
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

    def get(number: int) -> FileHeader:
        return cache.get(str(number), lambda: read_header(files[number]))

    first, second = get(0), get(1)
    assert get(0) is first
    get(2)
    assert cache.nbytes <= 2 * size
    assert get(0) is first
    assert get(1) is not second
    cache.forget("0")
    assert get(0) is not first
    tiny = HeaderCache(size // 2)
    tiny.get("0", lambda: first)
    assert tiny.nbytes == 0


def test_stale_uploads_are_swept(store: DirectoryStore) -> None:
    """What was left in `incoming` for a day is gone when the store is opened next."""
    old, new = store.new_upload(), store.new_upload()
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    DirectoryStore(store.root)
    assert incoming(store) == [new.name]


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_placed_file_that_is_there_is_as_new(store: DirectoryStore, files: list[Path]) -> None:
    """Its age counts anew, so that it is not collected meanwhile; damage is mended."""
    digest = store.add(files[0])
    sound = files[0].read_bytes()
    for content in (sound, b"short", bytes(len(sound))):
        damage(store.path(digest), content)
        os.utime(store.path(digest), (0, 0))
        upload = store.new_upload()
        shutil.copy(files[0], upload)
        path = store.place(upload, digest)
        assert path.stat().st_mtime > 0
        assert path.read_bytes() == files[0].read_bytes()


def test_files_are_told_with_size_and_age(store: DirectoryStore, files: list[Path]) -> None:
    """Only what is a blob: nothing else that lies around."""
    digests = {store.add(path): path.stat().st_size for path in files}
    folder = store.path(next(iter(digests))).parent
    (folder / "note.safetensors").write_text("x")
    (folder / ("e" * 64 + ".safetensors")).symlink_to(files[0])
    assert {file.digest: file.size for file in store.files()} == digests
    assert all(file.modified > 0 for file in store.files())


def test_a_discarded_file_is_gone(store: DirectoryStore, files: list[Path]) -> None:
    """Once or twice."""
    digest = store.add(files[0])
    for _ in range(2):
        store.discard(digest)
        with pytest.raises(VectorNotFound):
            store.header(digest)


@pytest.mark.parametrize("how", ["flipped", "cut off", "empty"])
def test_a_damaged_file_goes_into_quarantine(
    store: DirectoryStore, files: list[Path], how: str
) -> None:
    """With the reason beside it; a sound one stays."""
    digest = store.add(files[0])
    assert store.check(digest)
    data = files[0].read_bytes()
    wrong = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut off": data[:-1], "empty": b""}[how]
    damage(store.path(digest), wrong)
    assert not store.check(digest)
    assert blobs(store) == []
    [kept] = (store.root / "quarantine").glob("*.bin")
    assert kept.read_bytes() == wrong
    assert digest in kept.with_suffix(".txt").read_text()
    assert not store.check(digest)


def test_the_quarantine_has_a_budget(store: DirectoryStore) -> None:
    """The oldest go first; what never fits is deleted."""
    for number in range(5):
        upload = store.new_upload()
        upload.write_bytes(b"%d" % number * 10)
        store.quarantine(upload, "a test", budget=25)
    kept = sorted((store.root / "quarantine").glob("*.bin"))
    assert [path.read_bytes()[:1] for path in kept] == [b"3", b"4"]
    upload = store.new_upload()
    upload.write_bytes(b"x" * 26)
    store.quarantine(upload, "a test", budget=25)
    assert incoming(store) == []
    assert sorted((store.root / "quarantine").glob("*.bin")) == kept
    assert len(list((store.root / "quarantine").iterdir())) == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_its_own(
    store: DirectoryStore, files: list[Path], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is half there."""

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match=os.strerror(code)):
        store.add(files[0])
    assert blobs(store) == incoming(store) == []


def _add_and_discard(root: Path, file: Path, digest: str) -> None:
    store = DirectoryStore(root)
    for number in range(20):
        upload = store.new_upload()
        shutil.copy(file, upload)
        store.place(upload, digest)
        if number % 3 == 0:
            store.discard(digest)


def test_writers_in_processes_and_threads_do_not_meet(
    store: DirectoryStore, files: list[Path]
) -> None:
    """A file is there whole, or not at all, whoever places and drops it."""
    digest = store.add(files[0])
    context = multiprocessing.get_context("spawn")
    work = (store.root, files[0], digest)
    process = context.Process(target=_add_and_discard, args=work)
    workers = [threading.Thread(target=_add_and_discard, args=work) for _ in range(3)]
    for worker in (process, *workers):
        worker.start()
    while any(worker.is_alive() for worker in (process, *workers)):
        with contextlib.suppress(VectorNotFound, FileNotFoundError):
            assert store.path(digest).read_bytes() == files[0].read_bytes()
    for worker in (process, *workers):
        worker.join()
    assert process.exitcode == 0
    assert store.check(digest)
    assert incoming(store) == []
