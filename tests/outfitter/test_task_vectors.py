"""Names, versions, tags and details over HTTP: listed, found, changed and deleted."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import FINGERPRINT, Running, make_vector, push
from tests.outfitter.test_completions import error_of

PATH = "/v1/task_vectors"
NAMES = ("shelf/alpha", "shelf/beta", "shelf/gamma")


@pytest.fixture(scope="module")
def shelf(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Digests of `alpha` (versions 1, 2), `beta` and `gamma` in the namespace `shelf`."""
    folder = tmp_path_factory.mktemp("shelf")
    told = {
        "shelf/alpha": {"license": "MIT", "language": ["en", "fr"], "label": ["law"]},
        "shelf/beta": {"license": "apache-2.0", "tag": ["stable"], "description": "Contract law"},
        "shelf/gamma": {"label": ["math", "law"]},
    }
    digests = {}
    with gateway.client as client:
        for seed, (name, params) in enumerate(told.items(), 81):
            raw = make_vector(folder / str(seed), seed=seed).read_bytes()
            answer = client.post(PATH, params={"name": name, **params}, content=raw)
            assert answer.status_code == 201, answer.text
            digests[name] = answer.json()["digest"]
        push(client, make_vector(folder / "2", seed=89), "shelf/alpha")
        yield digests
        for name in told:
            client.delete(f"{PATH}/{name}")


def listed(client: httpx.Client, **params: object) -> list[str]:
    answer = client.get(PATH, params={"namespace": "shelf", **params})
    assert answer.status_code == 200, answer.text
    return [f"{row['name'][6:]}@{row['version']}" for row in answer.json()["data"]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ["alpha@2", "beta@1", "gamma@1"]),
        ({"versions": "latest"}, ["alpha@2", "beta@1", "gamma@1"]),
        ({"versions": "all"}, ["alpha@1", "alpha@2", "beta@1", "gamma@1"]),
        ({"order": "-name"}, ["gamma@1", "beta@1", "alpha@2"]),
        ({"q": "contract LAW"}, ["beta@1"]),
        ({"q": "nothing like it"}, []),
        ({"tag": "stable"}, ["beta@1"]),
        ({"license": "Apache-2.0"}, ["beta@1"]),
        ({"license": "apache-2.0"}, ["beta@1"]),
        ({"label": "law"}, ["gamma@1"]),
        ({"label": "law", "versions": "all"}, ["alpha@1", "gamma@1"]),
        ({"language": "fr", "versions": "all"}, ["alpha@1"]),
        ({"base": FINGERPRINT, "q": "alpha"}, ["alpha@2"]),
        ({"base": "base", "q": "beta"}, ["beta@1"]),
        ({"base": "another"}, []),
        ({"name": "shelf/alpha", "versions": "all"}, ["alpha@1", "alpha@2"]),
    ],
)
def test_a_listing_is_filtered_and_ordered(
    client: httpx.Client, shelf: dict[str, str], params: dict[str, str], expected: list[str]
) -> None:
    """Each parameter does what it says."""
    found = listed(client, **params)
    assert (found if "versions" not in params else sorted(found)) == expected


@pytest.mark.parametrize("order", ["name", "-name", "created", "-created", "downloads", "size"])
def test_pages_have_every_row_once(client: httpx.Client, shelf: dict[str, str], order: str) -> None:
    """The cursor of one page is where the next begins; the last says that it is."""
    rows, after = [], None
    for _ in range(4):
        params = {"namespace": "shelf", "versions": "all", "order": order, "limit": 1}
        page = client.get(PATH, params=params | ({"after": after} if after else {})).json()
        rows += [f"{row['name'][6:]}@{row['version']}" for row in page["data"]]
        after = page["after"]
        assert page["has_more"] == (after is not None)
    assert after is None
    assert sorted(rows) == ["alpha@1", "alpha@2", "beta@1", "gamma@1"]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": "١"}, "limit"),
        ({"order": "colour"}, "order"),
        ({"order": "--name"}, "order"),
        ({"versions": "some"}, "versions"),
        ({"licence": "MIT"}, "licence"),
        ({"page": "2"}, "page"),
        ({"q": ["a", "b"]}, "q"),
    ],
)
def test_a_wrong_parameter_is_named(
    client: httpx.Client, params: dict[str, object], param: str
) -> None:
    """400, and nothing is ignored silently."""
    answer = client.get(PATH, params=params)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"tag": "Not a tag"}, 400, "invalid_reference"),
        ({"license": "NO-SUCH"}, 422, "invalid_details"),
        ({"after": "nonsense"}, 422, "invalid_details"),
    ],
)
def test_a_value_that_cannot_be_is_refused(
    client: httpx.Client, params: dict[str, str], status: int, code: str
) -> None:
    """With the error that publishing it would give."""
    answer = client.get(PATH, params=params)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_a_tag_is_moved_and_taken_away(client: httpx.Client, shelf: dict[str, str]) -> None:
    """Seen at once; `latest` moves by itself and by nobody else."""
    where = f"{PATH}/shelf/alpha/tags/proved"
    assert client.put(where, json={"version": 1}).json()["tags"] == ["proved"]
    assert client.get(f"{PATH}/shelf/alpha@proved").json()["version"] == 1
    assert client.put(where, json={"version": 2}).json()["version"] == 2
    assert client.get(f"{PATH}/shelf/alpha@proved").json()["version"] == 2
    assert client.delete(where).json() == {
        "id": "shelf/alpha@proved",
        "object": "tag",
        "deleted": True,
    }
    assert client.get(f"{PATH}/shelf/alpha@proved").status_code == 404
    assert client.delete(where).status_code == 404
    latest = client.put(f"{PATH}/shelf/alpha/tags/latest", json={"version": 1})
    assert (latest.status_code, error_of(latest)["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("shelf/alpha/tags/x", {}, 400),
        ("shelf/alpha/tags/x", {"version": "1"}, 400),
        ("shelf/alpha/tags/x", {"version": True}, 400),
        ("shelf/alpha/tags/x", {"version": 0}, 400),
        ("shelf/alpha/tags/x", {"version": 1, "tag": "x"}, 400),
        ("shelf/alpha/tags/x", [], 400),
        ("shelf/alpha/tags/x", {"version": 9}, 404),
        ("shelf/alpha/tags/Not%20It", {"version": 1}, 400),
        ("shelf/alpha@1/tags/x", {"version": 1}, 400),
        ("shelf/nobody/tags/x", {"version": 1}, 404),
    ],
)
def test_a_tag_that_cannot_be_is_refused(
    client: httpx.Client, shelf: dict[str, str], path: str, body: object, status: int
) -> None:
    """4xx in OpenAI's shape."""
    answer = client.put(f"{PATH}/{path}", json=body)
    assert answer.status_code == status, answer.text
    error_of(answer)


def test_a_vector_called_tags_has_tags(client: httpx.Client, tmp_path: Path) -> None:
    """Names that look like a part of a path are names all the same."""
    push(client, make_vector(tmp_path / "v", seed=84), "own/tags")
    answer = client.put(f"{PATH}/own/tags/tags/good", json={"version": 1})
    assert answer.json()["name"] == "own/tags"
    assert client.get(f"{PATH}/own/tags@good").status_code == 200
    assert client.get(f"{PATH}/own/tags").json()["name"] == "own/tags"
    assert client.delete(f"{PATH}/own/tags").status_code == 200


def test_details_are_changed(client: httpx.Client, shelf: dict[str, str]) -> None:
    """What is given; null takes away; the rest stays, and so does every other version."""
    where = f"{PATH}/shelf/alpha@1"
    found = client.patch(where, json={"license": "bsd-3-clause", "labels": ["a"]}).json()
    assert (found["license"], found["labels"]) == ("BSD-3-Clause", ["a"])
    assert found["languages"] == ["en", "fr"]
    assert found["digest"] == shelf["shelf/alpha"]
    found = client.patch(where, json={"license": None, "description": "New"}).json()
    assert (found["license"], found["description"], found["labels"]) == (None, "New", ["a"])
    assert client.get(where).json() == found
    assert client.get(f"{PATH}/shelf/alpha@2").json()["description"] is None
    client.patch(where, json={"license": "MIT", "description": None, "labels": ["law"]})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"licence": "MIT"}, 400),
        ({"name": "x"}, 400),
        ({"license": 3}, 400),
        ({"labels": "law"}, 400),
        ({"labels": [1]}, 400),
        ([], 400),
        ({"license": "NO-SUCH"}, 422),
        ({"languages": ["not a language"]}, 422),
        ({"card": "\x00"}, 422),
        ({"description": "x" * 5000}, 422),
    ],
)
def test_details_that_cannot_be_are_refused(
    client: httpx.Client, shelf: dict[str, str], body: object, status: int
) -> None:
    """Nothing of them is kept."""
    before = client.get(f"{PATH}/shelf/beta").json()
    answer = client.patch(f"{PATH}/shelf/beta", json=body)
    assert answer.status_code == status, answer.text
    error_of(answer)
    assert client.get(f"{PATH}/shelf/beta").json() == before
    assert client.patch(f"{PATH}/shelf/nobody", json={}).status_code == 404


def test_a_delete_says_what_is_gone(client: httpx.Client, tmp_path: Path) -> None:
    """And what saved loadouts still need; a number is never given twice."""
    for seed in (85, 86, 87):
        push(client, make_vector(tmp_path / str(seed), seed=seed), "del/it")
    saved = {"name": "del/mix", "task_vectors": {"del/it@2": 1.0}}
    assert client.post("/v1/loadouts", json=saved).status_code == 201
    assert client.delete(f"{PATH}/del/it@1").json() == {
        "id": "del/it@1",
        "object": "task_vector",
        "deleted": True,
        "versions": ["del/it@1"],
        "tombstones": [],
    }
    answer = client.delete(f"{PATH}/del/it").json()
    assert sorted(answer["versions"] + answer["tombstones"]) == ["del/it@2", "del/it@3"]
    assert answer["tombstones"] == ["del/it@2"]
    for path in ("del/it", "del/it@2", "del/it@3"):
        assert client.get(f"{PATH}/{path}").status_code == 404
    assert client.delete(f"{PATH}/del/it").status_code == 404
    assert push(client, make_vector(tmp_path / "x", seed=88), "del/it")["version"] == 4
    client.delete(f"{PATH}/del/it")
    assert client.delete("/v1/loadouts/del/mix").status_code == 200


def test_names_are_unique_whatever_their_case(
    client: httpx.Client, shelf: dict[str, str], tmp_path: Path
) -> None:
    """A name that could be mistaken for another is a conflict."""
    raw = make_vector(tmp_path / "v", seed=90).read_bytes()
    answer = client.post(PATH, params={"name": "shelf/ALPHA"}, content=raw)
    assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")
