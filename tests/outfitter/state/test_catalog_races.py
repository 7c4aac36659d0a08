"""Many threads and processes at once, in each kind of database."""

import multiprocessing
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from outfitter.errors import CatalogConflict
from outfitter.state.catalog import Catalog
from outfitter.state.database import Patience
from outfitter.state.records import Query
from taskvectors.errors import VectorNotFound
from taskvectors.store.tier import StoredFile
from tests.outfitter.state.making import digest_of, publication, publish, ref

PATIENT = Patience(lock_s=60, answer_s=90)  # a slow disk is no failure here
SEED = 20261123
SPAWN = multiprocessing.get_context("spawn")


def publish_some(url: str, worker: int, count: int) -> list[int]:
    """The numbers that one process was given, by two threads."""
    catalog = Catalog(url, PATIENT)
    words = [(worker, index) for index in range(count)]
    with ThreadPoolExecutor(2) as threads:
        numbers = [*threads.map(lambda word: publish(catalog, "a/json", word).version, words)]
    catalog.close()
    return numbers


def test_no_number_is_given_twice(database_url: str) -> None:
    """Processes that open a new database and publish the same name, all at once."""
    with ProcessPoolExecutor(4, SPAWN) as processes:
        futures = [processes.submit(publish_some, database_url, w, 10) for w in range(4)]
        numbers = [number for future in futures for number in future.result(120)]
    assert sorted(numbers) == [*range(1, 41)]
    catalog = Catalog(database_url)
    assert catalog.version(ref("a/json")).version == 40
    assert catalog.generation() == 40
    catalog.close()


def run_all(work: Sequence[Callable[[], None]]) -> None:
    """Each in a thread of its own; the first error is raised."""
    with ThreadPoolExecutor(len(work)) as threads:
        for future in [threads.submit(one) for one in work]:
            future.result(300)


def test_one_tag_points_at_one_version(database_url: str) -> None:
    """Threads that move it, publish and delete: it is somewhere, once, or nowhere."""
    catalog = Catalog(database_url, PATIENT)
    publish(catalog, "json", "first")

    def mover(seed: int) -> None:
        draw = random.Random(f"{SEED} {seed}")
        for step in range(12):
            number = publish(catalog, "json", (seed, step), "stable").version
            if draw.random() < 0.5:
                catalog.tag(ref("json@1"), "stable")
            if draw.random() < 0.5:
                catalog.delete(ref(f"json@{number}"))

    run_all([lambda seed=seed: mover(seed) for seed in range(4)])  # type: ignore[misc]
    versions = catalog.find(Query(every_version=True, limit=1000)).versions
    assert sum("latest" in version.tags for version in versions) == 1
    assert sum("stable" in version.tags for version in versions) <= 1
    assert max(version.version for version in versions) == catalog.version(ref("json")).version
    catalog.close()


class Folder:
    """Files that are there or not, as on a disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, digest: str) -> None:
        (self._root / digest).touch()

    def drop(self, digest: str) -> None:
        (self._root / digest).unlink(missing_ok=True)

    def files(self) -> list[StoredFile]:
        return [StoredFile(path.name, 1, 0.0) for path in self._root.iterdir()]

    def has(self, digest: str) -> bool:
        return (self._root / digest).exists()


def collect_often(url: str, root: str, stop: "threading.Event | None", rounds: int) -> int:
    """How many files were dropped, with no grace at all for what was claimed long ago."""
    catalog, folder = Catalog(url, PATIENT), Folder(Path(root))
    dropped = 0
    for _ in range(rounds):
        dropped += len(catalog.collect(folder.files(), folder.drop, 0.0, False).digests)
        if stop is not None and stop.is_set():
            break
    catalog.close()
    return dropped


def test_no_version_is_without_its_file(database_url: str, tmp_path: Path) -> None:
    """Publishers, deleters and collectors without any grace, over a few files, in two processes.

    Without grace a claim protects nothing but itself: what saves the publisher is that it is told.
    """
    root = tmp_path / "files"
    root.mkdir()
    folder, catalog = Folder(root), Catalog(database_url, PATIENT)
    stop = threading.Event()
    told: list[str] = []

    def publisher(seed: int) -> None:
        draw = random.Random(f"{SEED} {seed}")
        for _ in range(25):
            word, name = draw.randrange(6), f"n{draw.randrange(3)}"
            catalog.claim(digest_of(word))
            folder.place(digest_of(word))
            try:
                catalog.publish(publication(name, word))
            except CatalogConflict:
                told.append(name)
            if draw.random() < 0.5:
                try:
                    catalog.delete(ref(name))
                except VectorNotFound:
                    continue

    with ProcessPoolExecutor(1, SPAWN) as processes, ThreadPoolExecutor(1) as collectors:
        elsewhere = processes.submit(collect_often, database_url, str(root), None, 40)
        here = collectors.submit(collect_often, database_url, str(root), stop, 10_000)
        run_all([lambda seed=seed: publisher(seed) for seed in range(4)])  # type: ignore[misc]
        stop.set()
        dropped = elsewhere.result(120) + here.result(120)
    print(f"seed {SEED}: {dropped} dropped, {len(told)} publishers told")
    assert dropped
    versions = catalog.find(Query(every_version=True, limit=1000)).versions
    assert [v.name for v in versions if not folder.has(v.digest)] == []
    catalog.close()


def test_changes_of_different_details_are_all_kept(database_url: str) -> None:
    """Two say something else of one version, each of its own field, again and again."""
    catalog = Catalog(database_url, PATIENT)
    publish(catalog, "json", "first")

    def change(field: str) -> None:
        for step in range(20):
            found = catalog.update(
                ref("json@1"), lambda old, step=step: replace(old, **{field: f"{step}"})
            )
            assert getattr(found.details, field) == f"{step}"

    run_all([lambda: change("description"), lambda: change("card")])
    details = catalog.version(ref("json")).details
    assert (details.description, details.card) == ("19", "19")
    catalog.close()
