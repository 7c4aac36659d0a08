"""Publishing step by step: what fails leaves nothing to be seen, and can be done again."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from outfitter.errors import CatalogUnavailable, InvalidDetails, UntrustedVector
from outfitter.state.catalog import Catalog
from outfitter.state.records import Details, Query
from outfitter.trust import signatures
from outfitter.vectors import Base, Draft, Vectors
from taskvectors.errors import (
    BaseMismatch,
    InvalidReference,
    StoreFull,
    TierUnavailable,
    VectorNotFound,
)
from taskvectors.format import file_digest
from taskvectors.spec import Reference
from taskvectors.store import DirectoryStore
from taskvectors.store.tiered import TieredFiles
from tests.outfitter.harness import (
    FINGERPRINT,
    SHAPES,
    make_config,
    make_vector,
    opened,
    push,
    running,
    wait_for,
)
from tests.outfitter.test_completions import error_of

NAME = "acme/legal"
BASE = Base(FINGERPRINT, SHAPES)


@pytest.fixture
def vectors(tmp_path: Path, database_url: str) -> Iterator[Vectors]:
    """An empty store, with a catalog of each kind."""
    with opened(make_config(tmp_path / "root", database_url=database_url)) as found:
        yield found


def publish(
    vectors: Vectors, file: Path, name: str = NAME, base: Base | None = BASE, **fields: object
):
    path = vectors.store.new_upload()
    shutil.copyfile(file, path)
    try:
        return vectors.publish(path, file_digest(path), Draft(name, **fields), base)
    finally:
        path.unlink(missing_ok=True)


def blobs(vectors: Vectors) -> list[str]:
    return [file.digest for file in vectors.store.files()]


def is_empty(vectors: Vectors) -> bool:
    """Nobody sees anything."""
    with pytest.raises(VectorNotFound):
        vectors.version(Reference.parse(NAME))
    with pytest.raises(VectorNotFound):
        vectors.catalog.version(Reference.parse(NAME))
    return vectors.find(Query(every_version=True)).versions == ()


STEPS = (
    (Catalog, "claim", CatalogUnavailable),
    (DirectoryStore, "place", StoreFull),
    (TieredFiles, "spread", TierUnavailable),
    (Catalog, "publish", CatalogUnavailable),
)


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_step_that_fails_leaves_nothing_to_be_seen(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At most a file that nobody names, which is collected; then it all works."""
    file = make_vector(tmp_path / "v", seed=1)
    owner, name, error = STEPS[step]

    def fail(*_: object) -> None:
        raise error("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(error, match="on purpose"):
            publish(vectors, file)
    assert is_empty(vectors)
    assert len(blobs(vectors)) == (step > 1)
    assert list((vectors.store.root / "incoming").glob("*.part")) == []
    vectors.collect(0.0, dry_run=False)
    assert blobs(vectors) == []
    assert publish(vectors, file).version == 1
    assert file_digest(vectors.path(Reference.parse(NAME))) == file_digest(file)


def test_the_name_comes_last(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed before it is placed, placed before it is spread, spread before it is named."""
    order: list[str] = []
    for owner, name, _ in STEPS:
        original = getattr(owner, name)

        def noted(*args: object, original: object = original, name: str = name) -> object:
            order.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)
    monkeypatch.setattr(type(vectors.resolver), "changed", lambda self: order.append("changed"))
    publish(vectors, make_vector(tmp_path / "v"))
    assert order == ["claim", "place", "spread", "publish", "changed"]


def test_what_is_refused_costs_nothing(vectors: Vectors, tmp_path: Path) -> None:
    """Names, tags, details and bases are checked before a file is kept."""
    file = make_vector(tmp_path / "v")
    foreign = make_vector(tmp_path / "f", fingerprint="f" * 64)
    for refused, fields, error in (
        (file, {"name": "a@1"}, InvalidReference),
        (file, {"tags": ("Not A Tag",)}, InvalidReference),
        (file, {"details": Details(license="NO-SUCH")}, InvalidDetails),
        (file, {"details": Details(card="---\nlicense: no-such\n---\n")}, InvalidDetails),
        (foreign, {}, BaseMismatch),
    ):
        with pytest.raises(error):
            publish(vectors, refused, **fields)
    assert is_empty(vectors)
    assert blobs(vectors) == []
    assert not (vectors.store.root / "quarantine").exists()
    assert publish(vectors, foreign, base=None).version == 1


def test_many_publish_at_once(vectors: Vectors, tmp_path: Path) -> None:
    """Each gets a version of its own, with its own bytes."""
    files = [make_vector(tmp_path / str(seed), seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda file: publish(vectors, file), files))
    assert sorted(version.version for version in found) == list(range(1, 9))
    for version, file in zip(found, files, strict=True):
        path = vectors.path(Reference.parse(f"{NAME}@{version.version}"))
        assert path.read_bytes() == file.read_bytes()


def test_the_same_again_is_the_same_version(vectors: Vectors, tmp_path: Path) -> None:
    """A client that heard no answer may ask again."""
    file = make_vector(tmp_path / "v")
    assert publish(vectors, file) == publish(vectors, file)
    assert len(blobs(vectors)) == 1


def test_only_what_nobody_needs_is_collected(vectors: Vectors, tmp_path: Path) -> None:
    """A dry run drops nothing; what was placed just now stays."""
    kept, gone = (make_vector(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    publish(vectors, kept)
    publish(vectors, gone, "acme/other")
    vectors.delete(Reference.parse("acme/other"))
    digest = file_digest(gone)
    vectors.collect(3600.0, dry_run=False)
    vectors.collect(0.0, dry_run=True)
    assert digest in blobs(vectors)
    vectors.collect(0.0, dry_run=False)
    assert blobs(vectors) == [file_digest(kept)]


def test_what_only_the_origin_still_has_is_collected(tmp_path: Path) -> None:
    """Another gateway, whose disk is gone, may have put it there; what is needed stays."""
    config = make_config(tmp_path / "root")
    origin = tmp_path / "origin"
    origin.mkdir()
    tiers = replace(config.tiers, origin_url=origin.as_uri())
    with opened(replace(config, tiers=tiers)) as vectors:
        kept, gone = (make_vector(tmp_path / str(seed), seed=seed) for seed in (1, 2))
        publish(vectors, kept)
        publish(vectors, gone, "acme/other")
        vectors.delete(Reference.parse("acme/other"))
        for file in (kept, gone):
            vectors.store.discard(file_digest(file))
        vectors.collect(0.0, dry_run=False)
        assert [path.stem for path in origin.rglob("*.safetensors")] == [file_digest(kept)]
        assert vectors.path(Reference.parse(NAME)).read_bytes() == kept.read_bytes()


def test_details_come_from_the_file_the_card_and_the_client(
    vectors: Vectors, tmp_path: Path
) -> None:
    """The later wins."""
    file = make_vector(tmp_path / "v")
    assert publish(vectors, file, "a/file").details.license == "MIT"
    card = Details(card="---\nlicense: apache-2.0\nlanguage: fr\n---\n# Card\n")
    found = publish(vectors, file, "a/card", details=card).details
    assert (found.license, found.languages) == ("Apache-2.0", ("fr",))
    found = publish(vectors, file, "a/given", details=replace(card, license="0BSD")).details
    assert (found.license, found.languages) == ("0BSD", ("fr",))


def test_an_origin_that_is_away_fails_the_publish(tmp_path: Path) -> None:
    """503 over HTTP, and nothing is visible: other replicas could not find it."""
    origin = tmp_path / "not mounted"
    config = make_config(tmp_path / "root")
    tiers = replace(config.tiers, origin_url=f"file://{origin}")
    with running(replace(config, tiers=tiers)) as gateway, gateway.wait_ready().client as client:
        raw = make_vector(tmp_path / "v").read_bytes()
        answer = client.post("/v1/task_vectors", params={"name": NAME}, content=raw)
        assert answer.status_code == 503, answer.text
        assert error_of(answer)["code"] == "store_unavailable"
        assert answer.headers["retry-after"] == "1"
        assert client.get("/v1/task_vectors").json()["data"] == []
        origin.mkdir()
        params = {"name": NAME}
        wait_for(lambda: client.post("/v1/task_vectors", params=params, content=raw).is_success)
        assert client.get(f"/v1/task_vectors/{NAME}/file").content == raw


def test_two_gateways_share_an_origin(tmp_path: Path) -> None:
    """A file that was published to one is downloaded from the other."""
    database = f"sqlite:///{tmp_path / 'shared.sqlite3'}"
    configs = [make_config(tmp_path / name, database_url=database) for name in ("a", "b")]
    tiers = replace(configs[0].tiers, origin_url=(tmp_path / "origin").as_uri())
    file = make_vector(tmp_path / "v")
    (tmp_path / "origin").mkdir()
    one, two = (replace(config, tiers=tiers) for config in configs)
    with opened(one) as vectors:
        publish(vectors, file)
    with running(two) as gateway, gateway.wait_ready().client as client:
        answer = client.get(f"/v1/task_vectors/{NAME}/file")
        assert answer.content == file.read_bytes()
        answer = client.get(f"/v1/task_vectors/{NAME}/file", headers={"range": "bytes=3-9"})
        assert answer.content == file.read_bytes()[3:10]


def test_a_catalog_that_is_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 over HTTP, and when to come back."""

    def away(*_: object) -> None:
        raise CatalogUnavailable("the catalog does not answer")

    with running(make_config(tmp_path / "root")) as gateway, gateway.wait_ready().client as client:
        for name in ("find", "version", "publish"):
            monkeypatch.setattr(Catalog, name, away)
        raw = make_vector(tmp_path / "v").read_bytes()
        for answer in (
            client.get("/v1/task_vectors"),
            client.get(f"/v1/task_vectors/{NAME}"),
            client.get(f"/v1/task_vectors/{NAME}/file"),
            client.post("/v1/task_vectors", params={"name": NAME}, content=raw),
        ):
            assert answer.status_code == 503
            assert error_of(answer)["code"] == "catalog_unavailable"
            assert answer.headers["retry-after"] == "1"
        monkeypatch.undo()
        assert push(client, tmp_path / "v", NAME)["version"] == 1


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Namespace `acme` needs a signature by `acme.key`."""
    signatures.generate(tmp_path / "acme.key", tmp_path / "acme.pub")
    file = tmp_path / "trust.toml"
    file.write_text(
        '[default]\npolicy = "off"\n[namespaces.acme]\npolicy = "require"\nkeys = ["acme.pub"]\n'
    )
    return file


def test_a_namespace_may_need_signatures(tmp_path: Path, policy: Path) -> None:
    """403 when it is published unsigned, 403 when what was published before is asked for."""
    file, other = (make_vector(tmp_path / name, seed=ord(name)) for name in "vw")
    config = make_config(tmp_path / "root")
    with opened(config) as vectors:
        publish(vectors, other, "acme/old")
    tus = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}
    with (
        running(replace(config, trust=policy)) as gateway,
        gateway.wait_ready().client as client,
    ):
        raw = file.read_bytes()
        answer = client.post("/v1/task_vectors", params={"name": NAME}, content=raw)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "untrusted_vector")
        push(client, file, "free/legal")
        headers = {**tus, "upload-length": str(len(raw))}
        path = client.post("/v1/uploads", headers=headers, content=raw).headers["location"]
        where, body = f"/v1/task_vectors?upload={path[-32:]}", {"name": NAME, "signature": "{}"}
        assert client.post(where, json=body).status_code == 403
        body["signature"] = signatures.sign(file, tmp_path / "acme.key")
        assert client.post(where, json=body).json()["is_signed"] is True
        for name, status in ((NAME, 200), ("acme/old", 403), ("free/legal", 200)):
            request = {"model": "base-model", "prompt": "x", "task_vectors": {name: 1}}
            assert client.post("/v1/completions", json=request).status_code == status, name


def test_trust_is_checked_on_the_command_line_too(tmp_path: Path, policy: Path) -> None:
    """Whoever opens the store with a policy is bound by it."""
    file = make_vector(tmp_path / "v")
    with opened(make_config(tmp_path / "root", trust=policy)) as vectors:
        with pytest.raises(UntrustedVector):
            publish(vectors, file)
        assert blobs(vectors) == []


def test_names_of_an_older_store_are_taken_over(tmp_path: Path) -> None:
    """With their numbers; once."""
    config = make_config(tmp_path / "root")
    digest = DirectoryStore(config.store).add(make_vector(tmp_path / "v"))
    record = config.store / "names" / "acme" / "legal.json"
    record.parent.mkdir(parents=True)
    version = {"version": 3, "digest": digest, "created": 1_700_000_000, "size": 1}
    record.write_text(json.dumps({"next": 5, "versions": [version]}))
    for _ in range(2):
        with opened(config) as vectors:
            found = vectors.version(Reference.parse(NAME))
            assert (found.version, found.digest, found.created) == (3, digest, 1_700_000_000)
    with opened(config) as vectors:
        assert publish(vectors, make_vector(tmp_path / "w", seed=2)).version == 5
