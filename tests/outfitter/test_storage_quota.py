"""A tenant stores no more than it may, and is told before a byte is taken."""

import contextlib
import http.client
import json

import httpx
import pytest

from outfitter.control.limits import Limits, LimitsBook
from outfitter.control.storage import Stored, storage_refusal
from tests.outfitter.harness import (
    Running,
    make_config,
    make_vector,
    opened,
    publish,
    push,
    running,
)

TUS = {"tus-resumable": "1.0.0"}


@pytest.fixture
def nbytes(tmp_path) -> int:
    """Of one of the files; all have as many."""
    return make_vector(tmp_path / "size.safetensors").stat().st_size


@pytest.fixture
def gateway(tmp_path, nbytes: int):
    """Has room for two files and a half."""
    limits = LimitsBook(Limits(stored_bytes=2 * nbytes + nbytes // 2))
    config = make_config(tmp_path, limits=limits, pull_from=(f"file://{tmp_path}/",))
    with running(config) as found:
        yield found.wait_ready()


def refused(response: httpx.Response, *words: str) -> None:
    assert response.status_code == 403, response.text
    error = response.json()["error"]
    assert error["code"] == "storage_quota_exceeded"
    assert all(word in error["message"] for word in words), error


def fill(gateway: Running, tmp_path) -> None:
    for seed in range(2):
        push(gateway.client, make_vector(tmp_path / "v.safetensors", seed), f"v{seed}")


def test_what_fits_is_let_in() -> None:
    """To the byte; a file that is there already takes no room."""
    assert storage_refusal("a", Stored(90), 10, 100) is None
    assert storage_refusal("a", Stored(200, has_file=True), 10, 100) is None
    error = storage_refusal("a", Stored(91, largest=("a/big@3", 80)), 10, 100)
    assert error is not None
    assert (error.status, error.code) == (403, "storage_quota_exceeded")
    assert "stores 91 bytes, and 10 more would exceed its stored_bytes of 100" in error.message
    assert "delete versions" in error.message
    assert "a/big@3, 80 bytes" in error.message


def test_a_file_too_many_is_refused_with_what_to_delete(gateway, tmp_path, nbytes) -> None:
    """And fits once something is deleted."""
    fill(gateway, tmp_path)
    third = make_vector(tmp_path / "third.safetensors", 3).read_bytes()
    with gateway.client as client:
        answer = client.post("/v1/task_vectors", params={"name": "third"}, content=third)
        refused(answer, "'open'", str(2 * nbytes), "v0@1")
        assert client.delete("/v1/task_vectors/v0").status_code == 200
        assert push(client, tmp_path / "third.safetensors", "third")["version"] == 1


def test_a_declared_size_is_refused_before_the_body(gateway, tmp_path, nbytes) -> None:
    """The client has sent only its header; an upload that would not fit does not begin."""
    fill(gateway, tmp_path)

    with gateway.client as client:
        length = {"upload-length": str(nbytes), **TUS}
        refused(client.post("/v1/uploads", headers=length), str(nbytes))
        fits = {"upload-length": str(nbytes // 3), **TUS}
        assert client.post("/v1/uploads", headers=fits).status_code == 201
    connection = http.client.HTTPConnection(httpx.URL(gateway.url).netloc.decode(), timeout=20)
    connection.putrequest("POST", "/v1/task_vectors?name=third")
    connection.putheader("content-length", str(nbytes))
    connection.endheaders()  # and no body
    with contextlib.closing(connection):
        answer = connection.getresponse()
        assert answer.status == 403
        assert json.loads(answer.read())["error"]["code"] == "storage_quota_exceeded"


def test_a_body_of_unknown_size_is_refused_when_it_is_here(gateway, tmp_path) -> None:
    """Nothing of it stays."""
    fill(gateway, tmp_path)
    third = make_vector(tmp_path / "third.safetensors", 3).read_bytes()
    with gateway.client as client:
        params = {"name": "third"}
        refused(client.post("/v1/task_vectors", params=params, content=iter([third])))
        assert client.get("/v1/task_vectors/third").status_code == 404
    incoming = gateway.config.store / "incoming"
    assert [path for path in incoming.rglob("*") if path.is_file()] == []


def test_the_same_file_counts_once(gateway, tmp_path) -> None:
    """Under any number of names: it is one file, which a tenant may name again when it is full."""
    with gateway.client as client:
        file = make_vector(tmp_path / "v.safetensors")
        for name in ("a", "b", "c", "d"):
            push(client, file, name)
        push(client, make_vector(tmp_path / "w.safetensors", 1), "e")
        params = {"name": "f"}
        answer = client.post("/v1/task_vectors", params=params, content=iter([file.read_bytes()]))
        assert answer.status_code == 201


def test_a_pull_is_held_to_it_too(gateway, tmp_path) -> None:
    """By the size of what was fetched."""
    fill(gateway, tmp_path)
    file = make_vector(tmp_path / "third.safetensors", 3)
    with gateway.client as client:
        body = {"source": f"file://{file}", "name": "third"}
        refused(client.post("/v1/task_vectors/pulls", json=body))


def test_an_upload_published_late_is_checked_again(gateway, tmp_path, nbytes) -> None:
    """Others may have taken the room meanwhile; the upload stays, and can be published later."""
    third = make_vector(tmp_path / "third.safetensors", 3).read_bytes()
    with gateway.client as client:
        headers = {
            "upload-length": str(nbytes),
            "content-type": "application/offset+octet-stream",
            **TUS,
        }
        upload = client.post("/v1/uploads", headers=headers, content=third)
        assert upload.status_code == 201
        fill(gateway, tmp_path)
        place = upload.headers["location"]
        params = {"upload": place.rpartition("/")[2]}
        refused(client.post("/v1/task_vectors", params=params, json={"name": "third"}))
        assert client.head(place, headers=TUS).status_code == 200


def test_only_a_tenants_own_namespaces_count(tmp_path, database_url: str) -> None:
    """`acme` is not `acme2`, in either database."""
    config = make_config(tmp_path, database_url=database_url)
    sizes = {}
    for seed, name in enumerate(["acme/a", "acme/b", "acme2/c", "plain"]):
        file = make_vector(tmp_path / "v.safetensors", seed)
        sizes[name] = file.stat().st_size, publish(config, file, name)
    with opened(config) as vectors:
        stored = vectors.catalog.stored
        assert stored(["acme"], None).nbytes == sum(sizes[n][0] for n in ("acme/a", "acme/b"))
        assert (
            stored(["acme", "acme2"], None).nbytes
            == sum(s for s, _ in sizes.values()) - sizes["plain"][0]
        )
        assert stored([""], None).nbytes == sizes["plain"][0]
        assert stored(None, None).nbytes == sum(s for s, _ in sizes.values())
        assert stored([], None) == Stored(0)
        assert stored(["acme"], sizes["acme/a"][1]).has_file
        assert not stored(["acme2"], sizes["acme/a"][1]).has_file
        assert stored(["acme2"], None).largest == ("acme2/c@1", sizes["acme2/c"][0])


def test_an_experiment_too_many_is_refused_with_what_to_do(tmp_path) -> None:
    """Whatever the status of those that there are; one that is deleted makes room."""
    config = make_config(tmp_path, limits=LimitsBook(Limits(experiments=2)))
    variants = [{"key": key, "model": "base-model"} for key in ("a", "b")]
    with running(config) as gateway, gateway.wait_ready().client as client:
        for name in ("one", "two"):
            body = {"name": name, "variants": variants}
            assert client.post("/v1/experiments", json=body).status_code == 201
        body = {"name": "three", "variants": variants}
        answer = client.post("/v1/experiments", json=body)
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert error["code"] == "experiments_quota_exceeded"
        assert "'open' has 2 experiments, and its limit is 2" in error["message"]
        assert client.delete("/v1/experiments/one").status_code == 200
        assert client.post("/v1/experiments", json=body).status_code == 201
