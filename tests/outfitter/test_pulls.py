"""Pulls: a gateway fetches for a client only from where its operator allows it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taskvectors.format import file_digest
from tests.outfitter.harness import Running, make_config, make_vector, push, running
from tests.outfitter.test_completions import error_of

PATH = "/v1/task_vectors/pulls"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the operator allows."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def puller(
    shelf: Path, gateway: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A gateway that may fetch from that folder and from the gateway that tests share."""
    allowed = (shelf.as_uri(), f"{gateway.url}/v1/task_vectors/")
    config = make_config(tmp_path_factory.mktemp("puller"), pull_from=allowed)
    with running(config) as found:
        yield found.wait_ready()


@pytest.fixture
def asker(puller: Running) -> Iterator[httpx.Client]:
    with puller.client as client:
        yield client


def test_a_file_is_pulled(asker: httpx.Client, shelf: Path) -> None:
    """Published like an upload, with what the request says of it."""
    file = make_vector(shelf / "legal.safetensors", seed=111)
    body = {"source": file.as_uri(), "name": "pulled/legal", "tags": ["stable"], "license": "0bsd"}
    answer = asker.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert found["digest"] == f"sha256:{file_digest(file)}"
    assert found["source"] == file.as_uri()
    assert (found["license"], found["version"]) == ("0BSD", 1)
    assert asker.get("/v1/task_vectors/pulled/legal@stable/file").content == file.read_bytes()


def test_another_gateways_vector_is_pulled(
    asker: httpx.Client, gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """With its details; what the request says wins."""
    file = make_vector(tmp_path / "v", seed=112)
    push(client, file, "there/first")
    client.patch(
        "/v1/task_vectors/there/first",
        json={"description": "There", "labels": ["law"], "card": "# There\n"},
    )
    source = f"{gateway.url}/v1/task_vectors/there/first"
    answer = asker.post(PATH, json={"source": source, "name": "here/first", "labels": ["mine"]})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert found["digest"] == f"sha256:{file_digest(file)}"
    assert (found["description"], found["labels"]) == ("There", ["mine"])
    assert asker.get("/v1/task_vectors/here/first/card").text == "# There\n"


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "https://example.org/x.safetensors",
        "http://127.0.0.1:1/x.safetensors",
        "hf://someone/something",
        "s3://bucket/x.safetensors",
        "oci:/etc",
    ],
)
def test_what_is_not_allowed_is_not_touched(
    asker: httpx.Client, client: httpx.Client, source: str
) -> None:
    """403, where some sources are allowed and where none is, which is the default."""
    for who in (asker, client):
        answer = who.post(PATH, json={"source": source, "name": "x/y"})
        assert answer.status_code == 403, answer.text
        assert error_of(answer)["code"] == "source_not_allowed"


@pytest.mark.parametrize("way", ["../secret.safetensors", "%2e%2e/secret.safetensors", "link"])
def test_no_way_leads_out_of_the_folder(
    asker: httpx.Client, shelf: Path, tmp_path: Path, way: str
) -> None:
    """Neither dots nor links."""
    secret = make_vector(shelf.parent / "secret.safetensors", seed=113)
    link = shelf / "link"
    if not link.exists():
        link.symlink_to(secret)
    answer = asker.post(PATH, json={"source": f"{shelf.as_uri()}/{way}", "name": "x/y"})
    assert answer.status_code in (400, 403), answer.text
    error_of(answer)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "x"}, 400, "invalid_parameter"),
        ({"source": 3, "name": "x"}, 400, "invalid_parameter"),
        ({"source": "file:///x"}, 400, "missing_name"),
        ({"source": "file:///x", "name": "a@1"}, 400, "invalid_reference"),
        ({"source": "file:///x", "name": "x", "licence": "MIT"}, 400, "unknown_parameter"),
        ({"source": "gopher://x/y", "name": "x"}, 400, "invalid_reference"),
        ([], 400, "invalid_json"),
    ],
)
def test_a_pull_that_cannot_be_is_refused(
    asker: httpx.Client, body: object, status: int, code: str
) -> None:
    """Before anything is fetched."""
    answer = asker.post(PATH, json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_what_is_not_there_or_no_vector_is_an_error(
    asker: httpx.Client, puller: Running, shelf: Path
) -> None:
    """502 for a source that has nothing, 422 for what is broken; nothing stays behind."""
    gone = f"{shelf.as_uri()}/gone.safetensors"
    answer = asker.post(PATH, json={"source": gone, "name": "x/y"})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "source_failed")
    (shelf / "bad.safetensors").write_bytes(b"nothing")
    answer = asker.post(PATH, json={"source": f"{shelf.as_uri()}/bad.safetensors", "name": "x/y"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "truncated_file")
    large = shelf / "large.safetensors"
    large.write_bytes(b"x" * (puller.config.max_upload_bytes + 1))
    answer = asker.post(PATH, json={"source": large.as_uri(), "name": "x/y"})
    assert answer.status_code in (413, 502)
    error_of(answer)
    assert list((puller.config.store / "incoming").glob("*.part")) == []
    assert asker.get("/v1/task_vectors/x/y").status_code == 404


def test_a_vector_of_another_base_is_not_taken(asker: httpx.Client, shelf: Path) -> None:
    """As for uploads."""
    file = make_vector(shelf / "foreign.safetensors", fingerprint="f" * 64)
    answer = asker.post(PATH, json={"source": file.as_uri(), "name": "x/foreign"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "base_mismatch")


def test_a_vector_may_be_called_pulls(client: httpx.Client, tmp_path: Path) -> None:
    """The route takes POST alone: the name stays free."""
    push(client, make_vector(tmp_path / "v", seed=114), "pulls")
    assert client.get(PATH).json()["name"] == "pulls"
    assert client.delete(PATH).json()["deleted"] is True
