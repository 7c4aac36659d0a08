"""Composed files are found again, bounded in bytes, and named by nobody."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from taskvectors.errors import VectorNotFound
from taskvectors.format import write_vector
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store import DirectoryStore, composed
from taskvectors.store.composed import ComposedStore, composed_key
from taskvectors.store.settings import TierSettings
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector

LONG_AGO = 10 * composed.GRACE_S
KEYS = [f"{number:064x}" for number in range(8)]


def put(store: ComposedStore, value: float, key: str) -> str:
    """One composed file of a hundred values."""
    path = store.new_file()
    parameters = {"norm.weight": DenseDelta(np.full(100, value, np.float32))}
    digest = write_vector(TaskVector(BaseInfo("b"), parameters), path)
    store.put(path, digest, key)
    return digest


def age(store: ComposedStore, digest: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(store.path(digest), (then, then))


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "composed").iterdir())


def test_a_composed_file_is_found_after_a_restart(tmp_path: Path) -> None:
    """By its key for composers, by its digest for the engine."""
    digest = put(ComposedStore(tmp_path), 1.0, KEYS[0])
    store = ComposedStore(tmp_path)
    assert store.find(KEYS[0]) == digest
    assert store.find(KEYS[1]) is None
    assert store.header(digest).parameters["norm.weight"].shape == (100,)
    assert files(tmp_path) == sorted([f"{digest}.safetensors", f"{KEYS[0]}.json"])


def test_the_key_is_of_version_base_and_loadout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of any is another key."""
    items = [LoadoutItem(f"{number}" * 64, 1.0) for number in (1, 2)]
    ties, sparser = (Loadout.build(items, "ties", {"density": d}) for d in (0.2, 0.1))
    keys = {composed_key(ties, "a" * 64), composed_key(ties, None), composed_key(sparser, None)}
    monkeypatch.setattr(composed, "COMPOSE_VERSION", 2)
    keys.add(composed_key(ties, None))
    assert len(keys) == 4


def test_no_reference_names_a_composed_file(tmp_path: Path) -> None:
    """A client who knows its digest gets nothing; the engine does."""
    digest = put(ComposedStore(tmp_path), 1.0, KEYS[0])
    with pytest.raises(VectorNotFound):
        DirectoryStore(tmp_path).path(digest)
    servable = TieredFiles(tmp_path, TierSettings(), with_memory=False)
    assert servable.path(digest).is_file()
    assert servable.header(digest).nbytes == servable.path(digest).stat().st_size
    for lookup in (servable.path, servable.header):
        with pytest.raises(VectorNotFound, match="sha256:eeee"):
            lookup("e" * 64)


def test_a_vector_of_the_store_comes_before_a_composed_one(tmp_path: Path) -> None:
    """Equal bytes may lie in both."""
    store, composed_store = DirectoryStore(tmp_path), ComposedStore(tmp_path)
    digest = put(composed_store, 1.0, KEYS[0])
    assert store.add(composed_store.path(digest)) == digest
    servable = TieredFiles(tmp_path, TierSettings(), with_memory=False)
    assert servable.path(digest) == store.path(digest)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Using a file, by its key or by its digest, makes it the newest."""
    store = ComposedStore(tmp_path)
    digests = [put(store, float(number), KEYS[number]) for number in range(4)]
    for position, digest in enumerate(digests):
        age(store, digest, LONG_AGO - position)
    assert store.find(KEYS[0]) == digests[0]
    assert store.touch(digests[2])
    budget = 2 * store.path(digests[0]).stat().st_size
    assert sorted(store.evict(budget)) == sorted([digests[1], digests[3]])
    assert [store.find(key) for key in KEYS[:4]] == [digests[0], None, digests[2], None]
    assert len(files(tmp_path)) == 4, "records of files that went are gone, too"


def test_what_was_just_used_is_never_evicted(tmp_path: Path) -> None:
    """The engine may be about to load it, so for a minute the budget may be exceeded."""
    store = ComposedStore(tmp_path)
    digest = put(store, 1.0, KEYS[0])
    assert store.evict(0) == []
    age(store, digest, composed.GRACE_S + 5)
    assert store.evict(0) == [digest]


def test_many_small_files_are_bounded_in_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a look at every eviction."""
    monkeypatch.setattr(composed, "MAX_FILES", 3)
    store = ComposedStore(tmp_path)
    digests = [put(store, float(number), KEYS[number]) for number in range(5)]
    for position, digest in enumerate(digests):
        age(store, digest, LONG_AGO - position)
    assert sorted(store.evict(1 << 30)) == sorted(digests[:2])


@pytest.mark.parametrize("sweeps", [lambda store: store.evict(1 << 30), ComposedStore.new_file])
def test_what_killed_processes_left_is_swept_when_it_is_old(
    tmp_path: Path, sweeps: Callable[[ComposedStore], object]
) -> None:
    """Before a file is made and after; what is being written now stays."""
    store = ComposedStore(tmp_path)
    old, new = store.new_file(), store.new_file()
    temporary = tmp_path / "composed" / f".{old.name}.abc.tmp"
    for path in (old, new, temporary):
        path.write_bytes(b"half")
    for path in (old, temporary):
        os.utime(path, (1, 1))
    sweeps(store)
    assert files(tmp_path) == [new.name]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_dropped_when_it_is_checked(tmp_path: Path, damage: str) -> None:
    """A sound one stays."""
    store = ComposedStore(tmp_path)
    digest, sound = put(store, 1.0, KEYS[0]), put(store, 2.0, KEYS[1])
    path = store.path(digest)
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(content[:-1] + (b"!" if damage == "flip" else b""))
    assert not store.check(digest)
    assert store.check(sound)
    assert [store.find(key) for key in KEYS[:2]] == [None, sound]


def test_a_file_that_was_composed_again_meanwhile_is_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find the same damage; the slower one must not take the new file away."""
    store = ComposedStore(tmp_path)
    digest = put(store, 1.0, KEYS[0])

    def damaged_then_replaced(_path: Path) -> str:
        assert put(store, 1.0, KEYS[0]) == digest
        return "0" * 64

    monkeypatch.setattr(composed, "file_digest", damaged_then_replaced)
    assert not store.check(digest)
    assert store.find(KEYS[0]) == digest


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"digest": 3}', '{"digest": "../../etc/passwd"}', "\udc80"]
)
def test_a_broken_record_finds_nothing(tmp_path: Path, record: str) -> None:
    """The loadout is composed again, and its record replaced."""
    store = ComposedStore(tmp_path)
    digest = put(store, 1.0, KEYS[0])
    (tmp_path / "composed" / f"{KEYS[0]}.json").write_bytes(
        record.encode("utf-8", "surrogateescape")
    )
    assert store.find(KEYS[0]) is None
    assert put(store, 1.0, KEYS[0]) == digest
    assert store.find(KEYS[0]) == digest


def test_a_symbolic_link_is_no_composed_file(tmp_path: Path) -> None:
    """Nothing outside the folder is read."""
    store = ComposedStore(tmp_path)
    (tmp_path / "composed" / f"{'a' * 64}.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(VectorNotFound):
        store.path("a" * 64)


def test_gateways_that_compose_the_same_at_once_agree(tmp_path: Path) -> None:
    """Equal bytes replace equal bytes; a reader never finds half a file."""
    stores = [ComposedStore(tmp_path) for _ in range(8)]

    def use(store: ComposedStore) -> bool:
        digest = put(store, 1.0, KEYS[0])
        store.evict(1)
        return store.find(KEYS[0]) == digest and store.check(digest)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, stores * 4))
    assert len(files(tmp_path)) == 2
    record = json.loads((tmp_path / "composed" / f"{KEYS[0]}.json").read_text())
    assert stores[0].path(record["digest"]).is_file()
