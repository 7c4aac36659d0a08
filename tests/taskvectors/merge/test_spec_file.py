"""Loadout files: names, paths, and every mistake that a person may make in one."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from taskvectors.delta import SparseDelta
from taskvectors.errors import (
    InvalidFile,
    InvalidLoadout,
    InvalidReference,
    TaskVectorError,
    VectorNotFound,
)
from taskvectors.format import file_digest, read_header, read_vector, write_vector
from taskvectors.merge import write_merged
from taskvectors.merge.spec_file import MAX_BYTES, read_spec, resolve_spec
from taskvectors.merge.spec_merge import open_merge
from taskvectors.selection import parse_selection
from taskvectors.spec import Loadout, LoadoutItem, Reference
from taskvectors.vector import BaseInfo, TaskVector


def save(path: Path, seed: int, license: str | None = "MIT") -> str:
    """A small task vector file; returns its digest."""
    rng = np.random.default_rng(seed)
    up = SparseDelta((6, 8), np.array([1, 5, 40]), rng.standard_normal(3, np.float32))
    metadata = {} if license is None else {"license": license}
    return write_vector(TaskVector(BaseInfo("b", "ab" * 32), {"up.weight": up}, metadata), path)


@dataclass(frozen=True)
class Named:
    """What a name stands for."""

    digest: str


@dataclass(frozen=True)
class Names:
    """A store of one file, under some names and its digest."""

    names: dict[str, str]
    file: Path

    def resolve(self, reference: Reference) -> Named:
        known = {**self.names, **{f"sha256:{digest}": digest for digest in self.names.values()}}
        if str(reference) not in known:
            raise VectorNotFound("the store's own words")
        return Named(known[str(reference)])

    def path(self, digest: str) -> Path:
        assert digest in self.names.values()
        return self.file


@pytest.fixture
def digests(tmp_path: Path) -> tuple[str, str]:
    """Of `a.safetensors` and `b.safetensors`."""
    return save(tmp_path / "a.safetensors", 1), save(tmp_path / "b.safetensors", 2)


def test_a_path_is_relative_to_the_loadout_file(tmp_path: Path, digests: tuple[str, str]) -> None:
    """Wherever the command runs; absolute paths and other folders are fine, too."""
    a, b = digests
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "loadout.json"
    vectors = {"../a.safetensors": 0.7, str(tmp_path / "b.safetensors"): -1}
    file.write_text(json.dumps(vectors))
    spec = read_spec(file)
    assert spec.loadout == Loadout.build([LoadoutItem(a, 0.7), LoadoutItem(b, -1.0)])
    assert {digest: file_digest(path) for digest, path in spec.paths.items()} == {a: a, b: b}


def test_every_form_of_a_request_is_read(tmp_path: Path, digests: tuple[str, str]) -> None:
    """A mapping, a list with selections, and either with a method and its parameters."""
    a, b = digests
    layers = parse_selection({"layers": ["0-1"]}, "")
    entries = [
        {"name": "a.safetensors", "layers": ["0-1"]},
        {"file": "b.safetensors", "weight": 0.5},
    ]
    items = [LoadoutItem(a, 1.0, layers), LoadoutItem(b, 0.5)]
    assert resolve_spec(entries, tmp_path).loadout == Loadout.build(items)
    value = {"vectors": entries, "method": "ties", "density": 0.3}
    expected = Loadout.build(items, "ties", {"density": 0.3})
    assert resolve_spec(value, tmp_path).loadout == expected
    value = {"vectors": {"a.safetensors": 1, "b.safetensors": 1}, "method": "ties"}
    plain = [LoadoutItem(a, 1.0), LoadoutItem(b, 1.0)]
    assert resolve_spec(value, tmp_path).loadout == Loadout.build(plain, "ties", {})


@pytest.mark.parametrize("task", ["b.safetensors", {"file": "b.safetensors"}, "json", "acme/b@1"])
def test_names_of_the_store_and_paths_mix(
    tmp_path: Path, digests: tuple[str, str], task: object
) -> None:
    """Also in a parameter that names a vector."""
    a, b = digests
    store = Names({"json": b, "acme/b@1": b}, tmp_path / "b.safetensors")
    vectors = {"a.safetensors": 1, "json": 0.5}
    value = {"vectors": vectors, "method": "tall_masks", "task": task}
    spec = resolve_spec(value, tmp_path, store)
    items = [LoadoutItem(a, 1.0), LoadoutItem(b, 0.5)]
    assert spec.loadout == Loadout.build(items, "tall_masks", {"task": b})
    pinned = resolve_spec({f"sha256:{b}": 1}, tmp_path, store)
    assert pinned.loadout == Loadout.build([LoadoutItem(b, 1.0)])
    assert file_digest(pinned.paths[b]) == b


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a.safetensors": "much"}, "weight of 'a.safetensors' must be a number, not a string"),
        ({"a.safetensors": float("nan")}, "weight of 'a.safetensors' must be finite"),
        ({"a.safetensors": 17}, "within ±16, not 17"),
        ([{"file": "a.safetensors", "wieght": 1}], "unknown field 'wieght' in task_vectors[0]"),
        ([{"file": "a.safetensors", "name": "x"}], "both a name and a file"),
        ([{"file": 3}], "task_vectors[0].file must be a path, not int"),
        ([{}], "task_vectors[0].name must be a string"),
        (["a.safetensors"], "task_vectors[0] must be an object with a name"),
        ("a.safetensors", "task_vectors must be an object of name"),
        ({"vectors": {"a.safetensors": 1}, "method": "tise"}, "'tise'; did you mean 'ties'?"),
        ({"vectors": {"a.safetensors": 1}, "method": "xyz"}, "'xyz'; choose linear"),
        ({"vectors": {"a.safetensors": 1}, "method": 3}, "unsupported method '3'"),
        ({"vectors": {"a.safetensors": 1}, "density": 1}, "unknown parameter 'density' of method"),
        ({"vectors": {"a.safetensors": 1}, "method": "ties", "density": 0}, "above 0 to 1"),
        ({"vectors": {"a.safetensors": 1}, "method": "ties", "density": 2}, "above 0 to 1"),
        ({"vectors": {"a.safetensors": 1}, "method": "emr", "task": 3}, "task must be the name"),
        ({"vectors": {"a.safetensors": 1}, "method": "emr", "task": "b.safetensors"}, "one of the"),
        ({"a.safetensors": 0}, "adds nothing to the base"),
        ({}, "adds nothing to the base"),
        ([{"file": "a.safetensors"}] * 17, "17 vectors; at most 16"),
        ({f"{i}.safetensors": 1 for i in range(99999)}, "99999 vectors; at most 16"),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.usefixtures("digests")
def test_a_wrong_loadout_is_refused(tmp_path: Path, value: object, message: str) -> None:
    """With the field, the value, and what would be right."""
    with pytest.raises(InvalidLoadout) as caught:
        resolve_spec(value, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aa.safetensors", "aa.safetensors; did you mean 'a.safetensors'?"),
        ("sub/a.safetensors", "no file"),
        ("a", "no store to find 'a' in: name one with --store"),
        ("a", "did you mean 'a.safetensors'?"),
        ("json", "a file by its path, which ends with .safetensors"),
    ],
)
@pytest.mark.usefixtures("digests")
def test_a_name_that_is_not_there_suggests_one_that_is(
    tmp_path: Path, name: str, message: str
) -> None:
    """From the folder that was looked in."""
    with pytest.raises(VectorNotFound) as caught:
        resolve_spec({name: 1}, tmp_path)
    assert message in str(caught.value)


def test_what_the_store_does_not_have_is_its_own_error(
    tmp_path: Path, digests: tuple[str, str]
) -> None:
    """With what it suggests; a path is not looked for instead."""
    store = Names({}, tmp_path / "b.safetensors")
    for name in ("a", f"sha256:{digests[1]}"):
        with pytest.raises(VectorNotFound, match="the store's own words"):
            resolve_spec({name: 1}, tmp_path, store)


@pytest.mark.parametrize("name", ["a\0.safetensors", "", "a b"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    """Neither a path nor a reference."""
    with pytest.raises(InvalidReference):
        resolve_spec({name: 1}, tmp_path)
    with pytest.raises(TaskVectorError):
        resolve_spec([{"file": name}], tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100, '{"a": 1e999}', "\ud800", '"\\ud800"'],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    """Strictly: no duplicate keys, no NaN, no depth without bound."""
    file = tmp_path / "loadout.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidLoadout, match=r"loadout\.json"):
        read_spec(file)


def test_a_file_that_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    """Before it is read to the end."""
    (tmp_path / "large.json").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(InvalidLoadout, match=r"large\.json is larger than"):
        read_spec(tmp_path / "large.json")
    with pytest.raises(FileNotFoundError):
        read_spec(tmp_path / "nowhere.json")
    with pytest.raises((InvalidFile, IsADirectoryError)):
        read_spec(tmp_path)


@pytest.mark.parametrize(("license", "kept"), [("MIT", "MIT"), ("Apache-2.0", None), (None, None)])
def test_a_merged_file_says_how_it_was_made(
    tmp_path: Path, license: str | None, kept: str | None
) -> None:
    """Method, parameters, digests and weights; a licence only where all agree."""
    save(tmp_path / "a.safetensors", 1)
    save(tmp_path / "b.safetensors", 2, license)
    value = {"vectors": {"a.safetensors": 1, "b.safetensors": 0.5}, "method": "ties"}
    spec = resolve_spec(value, tmp_path)
    with open_merge(spec) as (merged, metadata):
        write_merged(merged, tmp_path / "out", metadata)
    card = read_header(tmp_path / "out").metadata
    assert card.get("license") == kept
    assert (card["base_model"], card["base_model_relation"]) == ("b", "merge")
    extraction = card["extraction"]
    assert extraction["method"] == "merge"
    loadout = extraction["loadout"]
    items = [LoadoutItem(entry["digest"], entry["weight"]) for entry in loadout["vectors"]]
    again = Loadout.build(items, loadout["method"], loadout["parameters"])
    assert again == spec.loadout


def test_selections_count_in_a_merge(tmp_path: Path, digests: tuple[str, str]) -> None:
    """A module outside of a selection is left as the other vectors have it."""
    entries = [{"file": "a.safetensors", "modules": ["down"]}, {"file": "b.safetensors"}]
    with open_merge(resolve_spec(entries, tmp_path)) as (merged, _):
        delta = merged.delta("up.weight")
    assert delta is not None
    expected = read_vector(tmp_path / "b.safetensors", expected_digest=digests[1])
    np.testing.assert_array_equal(delta.to_dense(), expected.delta("up.weight"))
