"""A version survives an OCI layout, and nothing in a layout is believed before it is checked."""

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outfitter.config import InvalidConfig
from outfitter.errors import SourceFailed
from outfitter.state.records import Details, FileFacts, Version
from outfitter.transfer.fetched import no_progress
from outfitter.transfer.modelpack import CARD, CONFIG, MANIFEST, SIGNATURE, WEIGHT
from outfitter.transfer.oci import export_layout, fetch
from taskvectors.errors import ChecksumMismatch

DATA = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(DATA).hexdigest()
CARD_TEXT = "---\nlicense: mit\n---\n# Mine\n"
DETAILS = Details("Apache-2.0 OR MIT", ("en", "pt-BR"), "Emits JSON.", CARD_TEXT, ("json", "a, b"))
FACTS = FileFacts(DIGEST, len(DATA), "acme/base", "cd" * 32, 12, 4000, 80000, "magnitude")
VERSION = Version("acme/json", 3, FACTS, DETAILS, 1_700_000_000, "me", 7, ("latest",), '{"b": 1}')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The task vector file, as a store has it."""
    path = tmp_path / f"{DIGEST}.safetensors"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def layout(tmp_path: Path, file: Path) -> Path:
    """A layout with one artefact under `json-3`."""
    export_layout(VERSION, file, tmp_path / "layout")
    return tmp_path / "layout"


def _fetch(layout: Path, tag: str | None = None, limit: int = 2**30) -> Any:
    target = layout.parent / f"got-{len(list(layout.parent.iterdir()))}"
    url = f"oci:{layout}:{tag}" if tag else f"oci:{layout}"
    return fetch(url, target, limit=limit, progress=no_progress), target


def test_a_version_survives_a_layout(layout: Path) -> None:
    """File, details, card and signature, with a tag or as the only artefact."""
    for tag in ("json-3", None):
        found, target = _fetch(layout, tag)
        assert target.read_bytes() == DATA
        assert (found.name, found.details, found.signature) == ("json", DETAILS, '{"b": 1}')
        manifest = found.revision.removeprefix("sha256:")
        assert (layout / "blobs" / "sha256" / manifest).is_file()


@pytest.mark.parametrize(
    "details", [Details(), Details(license="LicenseRef-llama3", labels=("x",)), DETAILS]
)
def test_details_are_the_same_whatever_they_are(
    tmp_path: Path, file: Path, details: Details
) -> None:
    """A card that was only written for the artefact is not taken for the version's own."""
    version = dataclasses.replace(VERSION, details=details, signature=None)
    export_layout(version, file, tmp_path / "layout")
    found, _ = _fetch(tmp_path / "layout")
    assert (found.details, found.signature) == (details, None)


def test_the_layers_digest_is_the_vectors(layout: Path) -> None:
    """Any OCI tool finds the file by the digest that Outfitter knows."""
    assert (layout / "blobs" / "sha256" / DIGEST).read_bytes() == DATA


def test_a_layout_has_the_shape_that_the_specifications_ask_for(layout: Path) -> None:
    """OCI's image layout and manifest, ModelPack's artefact and config."""
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert index["schemaVersion"] == 2
    [entry] = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "json-3"}
    manifest = _blob(layout, entry)
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == entry["mediaType"] == MANIFEST
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [WEIGHT, CARD, SIGNATURE]
    paths = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert paths == ["json.safetensors", "README.md", "json.safetensors.sig"]
    assert manifest["config"]["mediaType"] == CONFIG
    config = _blob(layout, manifest["config"])
    assert config.keys() == {"descriptor", "config", "modelfs"}
    assert config["descriptor"] == {
        "createdAt": "2023-11-14T22:13:20Z",
        "name": "acme/json",
        "version": "3",
        "family": "acme/base",
        "description": "Emits JSON.",
        "licenses": ["Apache-2.0 OR MIT"],
    }
    assert config["config"] == {"format": "safetensors", "capabilities": {"languages": ["en"]}}
    assert config["modelfs"]["type"] == "layers"
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    for part in (entry, manifest["config"], *manifest["layers"]):
        assert (layout / "blobs" / "sha256" / part["digest"][7:]).stat().st_size == part["size"]


def test_oras_finds_nothing_wrong_with_a_layout(layout: Path) -> None:
    """Another reader of the same specification: every blob is there, in its order."""
    from oras.layout.layout import Layout

    found = Layout(str(layout))
    found.validate()
    assert any(DIGEST in str(blob) for blob in found.get_ordered_blobs("json-3"))


def test_the_same_version_is_the_same_bytes(layout: Path, file: Path, tmp_path: Path) -> None:
    """So a second export changes nothing, wherever it is made."""
    before = sorted(path.name for path in (layout / "blobs" / "sha256").iterdir())
    digest = export_layout(VERSION, file, layout)
    assert digest == export_layout(VERSION, file, tmp_path / "second")
    assert sorted(path.name for path in (layout / "blobs" / "sha256").iterdir()) == before
    assert (layout / "index.json").read_bytes() == (tmp_path / "second" / "index.json").read_bytes()


def test_several_tags_share_a_layout(layout: Path, file: Path) -> None:
    """A tag moves; without one the artefact must be the only one."""
    other = dataclasses.replace(VERSION, version=4, signature=None)
    export_layout(other, file, layout, "stable")
    assert _fetch(layout, "json-3")[0].signature == '{"b": 1}'
    assert _fetch(layout, "stable")[0].signature is None
    with pytest.raises(SourceFailed, match="several artefacts; name a tag: it has json-3, stable"):
        _fetch(layout)
    export_layout(other, file, layout, "json-3")
    assert _fetch(layout)[0].signature is None
    with pytest.raises(SourceFailed, match="no tag 'gone'"):
        _fetch(layout, "gone")


def test_exports_at_the_same_time_lose_no_tag(tmp_path: Path, file: Path) -> None:
    """Each of eight threads adds its own."""
    folder = tmp_path / "layout"
    threads = [
        threading.Thread(target=export_layout, args=(VERSION, file, folder, f"t{number}"))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = json.loads((folder / "index.json").read_text())
    tags = {m["annotations"]["org.opencontainers.image.ref.name"] for m in index["manifests"]}
    assert tags == {f"t{number}" for number in range(8)}
    assert not list(folder.rglob(".*"))


def test_a_damaged_file_is_not_exported(tmp_path: Path, file: Path) -> None:
    """The tag does not appear."""
    file.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(ChecksumMismatch):
        export_layout(VERSION, file, tmp_path / "layout")
    assert not (tmp_path / "layout" / "index.json").exists()


@pytest.mark.parametrize("tag", ["", "a b", "../x", "x" * 129, "-x", "a:b"])
def test_a_wrong_tag_is_refused(tmp_path: Path, file: Path, tag: str) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidConfig, match="invalid OCI tag"):
        export_layout(VERSION, file, tmp_path / "layout", tag)
    assert not (tmp_path / "layout").exists()


def test_another_folder_is_not_made_a_layout(tmp_path: Path, file: Path) -> None:
    """One with files in it stays as it is."""
    with pytest.raises(InvalidConfig, match="no OCI layout"):
        export_layout(VERSION, file, tmp_path)
    assert not (tmp_path / "oci-layout").exists()


def test_progress_is_told_to_the_last_byte(layout: Path) -> None:
    """Of the whole, which is known."""
    steps: list[tuple[int, int | None]] = []
    target = layout.parent / "got"
    fetch(f"oci:{layout}", target, limit=len(DATA), progress=lambda *step: steps.append(step))
    assert sum(step for step, _ in steps) == len(DATA)
    assert {total for _, total in steps} == {len(DATA)}


def test_a_file_over_the_limit_is_not_read(layout: Path) -> None:
    """Not one byte of it."""
    with pytest.raises(SourceFailed, match=f"at most {len(DATA) - 1} are taken"):
        _fetch(layout, limit=len(DATA) - 1)


def _blob(layout: Path, descriptor: dict[str, Any]) -> Any:
    return json.loads((layout / "blobs" / "sha256" / descriptor["digest"][7:]).read_bytes())


def _put(layout: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _change_index(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = layout / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def _change_manifest(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another manifest, with the digest that it really has."""

    def apply(index: dict[str, Any]) -> None:
        [entry] = index["manifests"]
        manifest = _blob(layout, entry)
        change(manifest)
        entry.update(_put(layout, json.dumps(manifest).encode()))

    _change_index(layout, apply)


def _layer(index: int, **fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["layers"][index].update(fields)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_layer(0, digest="sha256:../../../../etc/passwd"), "the digest"),
        (_layer(0, digest="sha512:" + "ab" * 32), "the digest"),
        (_layer(0, digest=f"sha256:{DIGEST.upper()}"), "the digest"),
        (_layer(0, digest=f"sha256:{DIGEST}\n"), "the digest"),
        (_layer(0, digest=["sha256"]), "the digest"),
        (_layer(0, digest="sha256:" + "ab" * 32), "cannot read"),
        (_layer(0, size=len(DATA) - 1), "other bytes"),
        (_layer(0, size=len(DATA) + 1), "other bytes"),
        (_layer(0, size=-1), "the size"),
        (_layer(0, size=True), "the size"),
        (_layer(0, size=1e3), "the size"),
        (_layer(0, size=2**80), "the size"),
        (_layer(0, size=2**62), "at most 1073741824 are taken"),
        (_layer(0, mediaType="application/octet-stream"), "has 0 layers"),
        (_layer(1, mediaType=WEIGHT), "has 2 layers"),
        (_layer(1, size=2**40), "bytes; at most"),
        (_layer(2, size=2**20), "bytes; at most"),
        (lambda m: m["config"].update(size=2**40), "bytes; at most"),
        (lambda m: m["config"].update(digest="sha256:"), "the digest"),
        (lambda m: m.update(artifactType="application/vnd.oci.image.config.v1+json"), "is a"),
        (lambda m: m.pop("artifactType"), "is a 'None'"),
        (lambda m: m.pop("config"), "the config has the digest"),
        (lambda m: m.update(layers={}), "list"),
        (lambda m: m.update(layers=m["layers"] * 30), "at most 64 layers"),
        (lambda m: m.update(layers=["x"]), "layer 0"),
    ],
    ids=range(25),
)
def test_a_hostile_manifest_is_refused(
    layout: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    """Though its own digest is right."""
    _change_manifest(layout, change)
    with pytest.raises(SourceFailed, match=why):
        _fetch(layout)


@pytest.mark.parametrize("position", [0, 1, 2, "config", "manifest"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone"])
def test_a_damaged_blob_is_noticed(layout: Path, position: int | str, damage: str) -> None:
    """Each of the five, in each way."""
    [entry] = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = _blob(layout, entry)
    parts = {"manifest": entry, "config": manifest["config"], **dict(enumerate(manifest["layers"]))}
    path = layout / "blobs" / "sha256" / parts[position]["digest"][7:]
    data = path.read_bytes()
    changed = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "grow": data + b"x"}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(SourceFailed, match=r"other bytes|cannot read|more than"):
        _fetch(layout)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("oci-layout", b"", "JSON"),
        ("oci-layout", b"x" * 5000, "more than"),
        ("index.json", b"[]", "object"),
        ("index.json", b"{}", "no artefact"),
        ("index.json", b'{"manifests": 3}', "no artefact"),
        ("index.json", b'{"manifests": [3]}', "the digest"),
        ("index.json", b"[" * 100_000, "levels deep"),
        ("index.json", b'{"a": ' * 1000 + b"1" + b"}" * 1000, "levels deep"),
        ("index.json", b"\xff", "JSON"),
        ("index.json", b" " * (4 * 2**20 + 1), "more than"),
    ],
)
def test_a_hostile_layout_is_refused(layout: Path, name: str, data: bytes, why: str) -> None:
    """Bounded in size and depth."""
    (layout / name).write_bytes(data)
    with pytest.raises(SourceFailed, match=why):
        _fetch(layout)


def test_an_index_of_indexes_is_not_followed(layout: Path) -> None:
    """There is one level."""
    nested = "application/vnd.oci.image.index.v1+json"
    _change_index(layout, lambda index: index["manifests"][0].update(mediaType=nested))
    with pytest.raises(SourceFailed, match="is no application"):
        _fetch(layout)


def test_a_link_or_a_pipe_is_not_read(layout: Path, tmp_path: Path) -> None:
    """A layout that somebody sent does not reach other files, nor make anyone wait."""
    blob = layout / "blobs" / "sha256" / DIGEST
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceFailed, match="cannot read"):
        _fetch(layout)
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(SourceFailed, match="no plain file"):
        _fetch(layout)


def test_wrong_details_are_left_out(layout: Path) -> None:
    """A licence that nobody knows is no reason to refuse the file."""
    config = _put(
        layout,
        json.dumps({"descriptor": {"licenses": ["nope!"], "name": 5, "description": []}}).encode(),
    )
    _change_manifest(layout, lambda m: m["config"].update(config))
    _change_manifest(layout, lambda m: m["annotations"].update({"outfitter.labels": "[3"}))
    found, _ = _fetch(layout)
    assert found.details == Details(None, ("en", "pt-BR"), None, CARD_TEXT, ())
    assert found.name is None


def test_a_layout_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its path."""
    for url in (f"oci:{tmp_path}/gone", f"oci:{tmp_path}/gone:tag", f"oci:{tmp_path}:a b"):
        with pytest.raises(SourceFailed):
            fetch(url, tmp_path / "got", limit=1, progress=no_progress)
    assert not (tmp_path / "got").exists()
