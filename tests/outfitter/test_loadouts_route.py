"""Saved loadouts: resolved once, kept by digest, listed and deleted."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.gateway import Gateway
from tests.outfitter.harness import Running, make_vector, publish, push
from tests.outfitter.test_completions import error_of

PATH = "/v1/loadouts"


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of `mix/a` and `mix/b`."""
    folder = tmp_path_factory.mktemp("mix")
    with gateway.client as client:
        yield [
            push(client, make_vector(folder / name, seed=seed), f"mix/{name}")["digest"]
            for seed, name in ((101, "a"), (102, "b"))
        ]
        for name in ("mix/a", "mix/b"):
            client.delete(f"/v1/task_vectors/{name}")


def save(client: httpx.Client, name: object, task_vectors: object) -> httpx.Response:
    return client.post(PATH, json={"name": name, "task_vectors": task_vectors})


def test_a_loadout_is_saved_as_it_is_now(
    client: httpx.Client, digests: list[str], tmp_path: Path
) -> None:
    """Its digests stay when a name moves on; saved again it is another version."""
    answer = save(client, "team/bot", {"mix/a": 0.5, "mix/b@latest": -1})
    assert answer.status_code == 201, answer.text
    saved = answer.json()
    assert (saved["id"], saved["object"], saved["version"]) == ("team/bot@1", "loadout", 1)
    assert saved["task_vectors"] == {"mix/a": 0.5, "mix/b@latest": -1}
    vectors = saved["resolved"]["vectors"]
    assert sorted(f"sha256:{vector['digest']}" for vector in vectors) == sorted(digests)
    assert save(client, "team/bot", {"mix/a": 0.5, "mix/b@latest": -1}).json() == saved
    push(client, make_vector(tmp_path / "v", seed=103), "mix/a")
    assert client.get(f"{PATH}/team/bot").json() == saved
    again = save(client, "team/bot", {"mix/a": 0.5, "mix/b@latest": -1}).json()
    assert again["version"] == 2
    assert again["digest"] != saved["digest"]
    assert client.get(f"{PATH}/team/bot@1").json() == saved
    assert client.get(f"{PATH}/team/bot").json() == again
    client.delete("/v1/task_vectors/mix/a@2")
    client.delete(f"{PATH}/team/bot")


def test_every_form_of_a_request_is_saved(client: httpx.Client, digests: list[str]) -> None:
    """The digest is that of the request's own loadout."""
    entries = [{"name": "mix/a", "weight": 1, "layers": ["0"]}]
    forms = [
        entries,
        {"vectors": {"mix/a": 1.0, "mix/b": 1}, "method": "ties", "density": 0.5},
    ]
    for number, form in enumerate(forms):
        saved = save(client, f"forms/{number}", form).json()
        kept = {"vectors": form} if isinstance(form, list) else form
        assert saved["task_vectors"] == kept
        body = {"model": "base-model", "prompt": "x", "task_vectors": form}
        served = client.post("/v1/completions", json=body)
        assert served.headers["x-outfitter-loadout"] == saved["digest"]
        assert client.delete(f"{PATH}/forms/{number}").status_code == 200


def test_saving_makes_its_vectors_ready(
    client: httpx.Client, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is asked for them, and the answer does not wait."""
    asked: list[str] = []
    monkeypatch.setattr(Gateway, "prefetch", lambda self, digests: asked.extend(digests))
    save(client, "team/warm", {"mix/a": 0.5})
    assert [f"sha256:{digest}" for digest in asked] == digests[:1]
    client.delete(f"{PATH}/team/warm")


def test_loadouts_are_listed_in_pages(client: httpx.Client, digests: list[str]) -> None:
    """The newest of each name."""
    for name, weight in (("list/a", 1), ("list/a", 2), ("list/b", 1), ("list/c", 1)):
        save(client, name, {"mix/a": weight})
    rows, after = [], None
    for _ in range(50):
        params = {"limit": 2} | ({"after": after} if after else {})
        page = client.get(PATH, params=params).json()
        assert len(page["data"]) <= 2
        rows += [row["id"] for row in page["data"] if row["name"].startswith("list/")]
        after = page["after"]
        assert page["has_more"] == (after is not None)
        if after is None:
            break
    assert rows == ["list/a@2", "list/b@1", "list/c@1"]
    assert client.delete(f"{PATH}/list/a@2").json() == {
        "id": "list/a@2",
        "object": "loadout",
        "deleted": True,
    }
    assert client.get(f"{PATH}/list/a").json()["version"] == 1
    for name in ("list/a", "list/b", "list/c"):
        assert client.delete(f"{PATH}/{name}").status_code == 200
        assert client.get(f"{PATH}/{name}").status_code == 404


def test_a_file_of_a_saved_loadout_is_kept(client: httpx.Client, tmp_path: Path) -> None:
    """The name is deleted, its file is still there: a tombstone."""
    file = make_vector(tmp_path / "v", seed=104)
    push(client, file, "mix/kept")
    save(client, "team/keeper", {"mix/kept": 1})
    assert client.delete("/v1/task_vectors/mix/kept").json()["tombstones"] == ["mix/kept@1"]
    saved = client.get(f"{PATH}/team/keeper").json()
    (vector,) = saved["resolved"]["vectors"]
    assert vector["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert client.delete(f"{PATH}/team/keeper").status_code == 200
    assert client.delete(f"{PATH}/team/keeper").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "name"),
        ({"name": "x"}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": None}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": 3}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": {}}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": {"mix/a": 0}}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": {"mix/nobody": 1}}, 404, "task_vectors"),
        ({"name": "x", "task_vectors": [{"name": "mix/a", "layers": ["99"]}]}, 400, "task_vectors"),
        ({"name": "x", "task_vectors": {"mix/a": 1}, "weight": 1}, 400, "weight"),
        ({"name": "a@1", "task_vectors": {"mix/a": 1}}, 400, None),
        ({"name": "../x", "task_vectors": {"mix/a": 1}}, 400, None),
        ([], 400, None),
    ],
)
def test_a_loadout_that_cannot_be_is_refused(
    client: httpx.Client, digests: list[str], body: object, status: int, param: str | None
) -> None:
    """Before anything is saved."""
    answer = client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["param"] == param
    assert client.get(f"{PATH}/x").status_code == 404


def test_a_loadout_of_another_base_is_refused(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """422, as a request would be."""
    publish(gateway.config, make_vector(tmp_path / "f", fingerprint="f" * 64), "mix/foreign")
    answer = save(client, "x", {"mix/foreign": 1})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "base_mismatch")


@pytest.mark.parametrize("reference", ["a@stable", "a b", "0" * 64, "a/b/c", "nobody", "a@7"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_bad_reference_is_told_so(client: httpx.Client, reference: str, method: str) -> None:
    """Saved loadouts have names and numbers only."""
    answer = client.request(method, f"{PATH}/{reference}")
    assert answer.status_code in (400, 404)
    error_of(answer)


@pytest.mark.parametrize("params", [{"limit": "0"}, {"page": "1"}, {"limit": ["1", "2"]}])
def test_a_wrong_parameter_is_named(client: httpx.Client, params: dict[str, object]) -> None:
    """400."""
    answer = client.get(PATH, params=params)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == next(iter(params))
