"""Task vectors come in whole and valid, or not at all."""

import contextlib
import http.client
import json
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from outfitter.vectors import Draft
from taskvectors.errors import ChecksumMismatch
from taskvectors.format import file_digest
from tests.outfitter.harness import (
    FINGERPRINT,
    Running,
    make_config,
    make_vector,
    opened,
    publish,
    push,
    wait_for,
)
from tests.outfitter.test_completions import error_of


def incoming(gateway: Running) -> list[Path]:
    return list((gateway.config.store / "incoming").glob("*.part"))


def post(client: httpx.Client, content: object, name: str = "bad", **options) -> httpx.Response:
    return client.post("/v1/task_vectors", params={"name": name}, content=content, **options)


@pytest.fixture(autouse=True)
def nothing_left(gateway: Running) -> Iterator[None]:
    """Whatever a test uploads, nothing half-done stays behind."""
    yield
    wait_for(lambda: incoming(gateway) == [])


def test_an_upload_is_described(client: httpx.Client, tmp_path: Path) -> None:
    """Name, version, digest, base and numbers; the same again is the same version."""
    file = make_vector(tmp_path / "v", seed=11)
    answer = push(client, file, "acme/first")
    digest = f"sha256:{file_digest(file)}"
    assert answer.pop("created_at") > 0
    assert answer == {
        "id": digest,
        "object": "task_vector",
        "name": "acme/first",
        "version": 1,
        "digest": digest,
        "bytes": file.stat().st_size,
        "base": {"name": "base", "fingerprint": FINGERPRINT},
        "parameters": 2,
        "nnz": 7,
        "density": 7 / 36,
        "method": None,
        "tags": ["latest"],
        "license": "MIT",
        "languages": [],
        "description": None,
        "labels": [],
        "has_card": False,
        "is_signed": False,
        "publisher": None,
        "downloads": 0,
        "deleted": False,
    }
    assert push(client, file, "acme/first")["version"] == 1
    assert push(client, make_vector(tmp_path / "w", seed=12), "acme/first")["version"] == 2


def test_an_upload_may_say_more(client: httpx.Client, tmp_path: Path) -> None:
    """Details and tags, in the query; the file's own are the rest."""
    params = {"name": "acme/more", "tag": ["stable", "v2"], "language": "pt-br", "label": "law"}
    raw = make_vector(tmp_path / "v", seed=17).read_bytes()
    response = client.post("/v1/task_vectors", params={**params, "description": "d"}, content=raw)
    found = response.json()
    assert sorted(found["tags"]) == ["latest", "stable", "v2"]
    assert (found["languages"], found["labels"]) == (["pt-BR"], ["law"])
    assert (found["description"], found["license"]) == ("d", "MIT")


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"nmae": "x"}, 400, "unknown_parameter"),
        ({"name": ["x", "y"]}, 400, "invalid_parameter"),
        ({"license": ["MIT", "0BSD"]}, 400, "invalid_parameter"),
        ({"license": "NO-SUCH"}, 422, "invalid_details"),
        ({"tag": "Not A Tag"}, 400, "invalid_reference"),
        ({"tag": "latest"}, 409, "conflict"),
        ({"language": "?"}, 422, "invalid_details"),
    ],
)
def test_what_cannot_be_said_is_refused(
    client: httpx.Client, tmp_path: Path, params: dict[str, object], status: int, code: str
) -> None:
    """And nothing is published."""
    raw = make_vector(tmp_path / "v", seed=18).read_bytes()
    response = client.post("/v1/task_vectors", params={"name": "said", **params}, content=raw)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert client.get("/v1/task_vectors/said").status_code == 404


def test_uploads_are_found_and_deleted(client: httpx.Client, tmp_path: Path) -> None:
    """By name, by version and by digest."""
    digest = push(client, make_vector(tmp_path / "v", seed=13), "listed")["digest"]
    push(client, make_vector(tmp_path / "w", seed=14), "listed")
    assert client.get("/v1/task_vectors/listed").json()["version"] == 2
    assert client.get("/v1/task_vectors/listed@1").json()["digest"] == digest
    assert client.get(f"/v1/task_vectors/{digest}").json()["name"] == "listed"
    assert client.delete("/v1/task_vectors/listed@1").json()["deleted"] is True
    assert client.get("/v1/task_vectors/listed@1").status_code == 404
    assert client.delete("/v1/task_vectors/listed").status_code == 200
    missing = client.delete("/v1/task_vectors/listed")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "task_vector_not_found"


def test_a_broken_file_is_kept_for_the_operator(
    client: httpx.Client,
    gateway: Running,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In quarantine with its reason, found by the log; the client's error does not say where."""
    raw = make_vector(tmp_path / "v", seed=19).read_bytes()[:-1] + b"\x77"
    folder = gateway.config.store / "quarantine"
    before = set(folder.glob("*.bin")) if folder.exists() else set()
    response = post(client, raw, "acme/broken")
    assert error_of(response)["code"] == "checksum_mismatch"
    (kept,) = set(folder.glob("*.bin")) - before
    assert kept.read_bytes() == raw
    reason = kept.with_suffix(".txt").read_text()
    assert "acme/broken" in reason
    assert error_of(response)["message"] in reason
    assert kept.name in caplog.text
    assert kept.stem not in response.text
    assert "quarantine" not in response.text


def test_the_quarantine_has_a_budget(tmp_path: Path) -> None:
    """The oldest go."""
    raw = make_vector(tmp_path / "v", seed=20).read_bytes()
    config = make_config(tmp_path / "root", quarantine_bytes=2 * len(raw) + 10)
    with opened(config) as vectors:
        for end in range(4):
            path = vectors.store.new_upload()
            path.write_bytes(raw[:-1] + bytes([0x70 + end]))
            with pytest.raises(ChecksumMismatch):
                vectors.publish(path, file_digest(path), Draft("x"), None)
            assert not path.exists()
        kept = [path.read_bytes()[-1] for path in (config.store / "quarantine").glob("*.bin")]
        assert sorted(kept) == [0x72, 0x73]


def test_a_file_over_the_limit_is_refused(client: httpx.Client) -> None:
    """413 before the body is read where the length is announced, else on the way."""
    for content in (b"x" * 70_000, (b"x" * 7_000 for _ in range(10))):
        response = post(client, content)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"


def _edit_header(file: Path, edit: object) -> bytes:
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def _set(key: str, value: str):
    return lambda header: header["__metadata__"].__setitem__(key, value)


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda file: b"", "truncated_file"),
        (lambda file: b"not a task vector file at all", "header_too_large"),
        (lambda file: file.read_bytes()[:-5], "truncated_file"),
        (lambda file: file.read_bytes() + b"more", "truncated_file"),
        (lambda file: struct.pack("<Q", 2**62) + b"{}", "header_too_large"),
        (lambda file: struct.pack("<Q", 4) + b"nope", "invalid_header"),
        (lambda file: _edit_header(file, _set("version", "9")), "unsupported_version"),
        (lambda file: _edit_header(file, _set("sha256", "{}")), "invalid_header"),
        (lambda file: file.read_bytes()[:-1] + b"\x77", "checksum_mismatch"),
    ],
)
def test_a_broken_file_is_refused(
    client: httpx.Client, tmp_path: Path, break_it: object, code: str
) -> None:
    """422 with a code of its own for each way to be broken, and no trace of it."""
    before = client.get("/v1/task_vectors").json()
    response = post(client, break_it(make_vector(tmp_path / "v")))
    assert response.status_code == 422, response.text
    assert error_of(response)["code"] == code
    assert client.get("/v1/task_vectors").json() == before


def test_a_vector_of_another_base_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    """By its fingerprint, or by its shapes where it has none."""
    foreign = make_vector(tmp_path / "f", fingerprint="f" * 64)
    misshapen = make_vector(tmp_path / "m", fingerprint=None, shape=(4, 8))
    for file, word in ((foreign, "f" * 64), (misshapen, "[4, 8]")):
        response = post(client, file.read_bytes())
        assert response.status_code == 422
        assert error_of(response)["code"] == "base_mismatch"
        assert word in error_of(response)["message"]


def test_a_vector_of_another_base_in_the_store_is_not_served(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """What came into the store on another way is checked when it is asked for."""
    publish(gateway.config, make_vector(tmp_path / "f", fingerprint="f" * 64), "foreign")
    body = {"model": "base-model", "prompt": "x", "task_vectors": {"foreign": 1}}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 422
    assert error_of(response)["code"] == "base_mismatch"


@pytest.mark.parametrize("name", ["", "a@3", "a b", "../up", "/a", "a/b/c", "sha256:" + "0" * 64])
def test_a_bad_name_is_refused(client: httpx.Client, tmp_path: Path, name: str) -> None:
    """Names have no version, and nothing that could leave the store."""
    response = post(client, make_vector(tmp_path / "v").read_bytes(), name)
    assert response.status_code == 400
    assert error_of(response)["code"] in ("missing_name", "invalid_reference")


@pytest.mark.parametrize("path", ["", "nobody", "a%20b", "a/b/c", "..%2Fincoming"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_bad_reference_is_told_so(client: httpx.Client, method: str, path: str) -> None:
    """4xx in OpenAI's shape."""
    response = client.request(method, f"/v1/task_vectors/{path}")
    assert response.status_code in (400, 404)
    error_of(response)


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    """The error says which one is taken."""
    response = client.post("/v1/task_vectors?name=x", json={})
    assert response.status_code == 415
    assert "application/octet-stream" in error_of(response)["message"]


def test_an_upload_that_breaks_off_leaves_nothing(gateway: Running, tmp_path: Path) -> None:
    """A client that goes away in the middle is forgotten."""
    raw = make_vector(tmp_path / "v", seed=15).read_bytes()
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc)
    connection.putrequest("POST", "/v1/task_vectors?name=half")
    connection.putheader("content-length", str(len(raw)))
    connection.endheaders(raw[: len(raw) // 2])
    wait_for(lambda: len(incoming(gateway)) == 1)
    connection.close()
    wait_for(lambda: incoming(gateway) == [])
    with contextlib.closing(gateway.client) as client:
        assert client.get("/v1/task_vectors/half").status_code == 404


def trickle(url: str, path: str, *, pause: float) -> tuple[http.client.HTTPResponse, dict]:
    """Send a byte of a body of 1000 now and then, until there is an answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.putrequest("POST", path)
    connection.putheader("content-length", "1000")
    connection.endheaders()
    assert connection.sock is not None
    for _ in range(1000):
        readable, _, _ = select.select([connection.sock], [], [], pause)
        if readable:
            break
        connection.sock.send(b"x")
    response = connection.getresponse()
    return response, json.loads(response.read())


@pytest.mark.parametrize("path", ["/v1/task_vectors?name=slow", "/v1/completions"])
@pytest.mark.parametrize("pause", [0.1, 60.0])
def test_a_body_that_trickles_is_ended(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, path: str, pause: float
) -> None:
    """408 in OpenAI's shape, whether bytes stop or drip; the connection and the permit are free."""
    monkeypatch.setattr("outfitter.routes.body.PATIENCE_S", 0.5)
    response, answer = trickle(gateway.url, path, pause=pause)
    assert response.status == 408
    assert response.headers["connection"] == "close"
    assert answer["error"]["code"] == "body_too_slow"
    assert answer["error"]["type"] == "invalid_request_error"
    assert incoming(gateway) == []


def test_a_slow_but_steady_upload_is_taken(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough bytes in time renew the gateway's patience."""
    monkeypatch.setattr("outfitter.routes.body.PATIENCE_S", 0.5)
    monkeypatch.setattr("outfitter.routes.body.MIN_PROGRESS_BYTES", 100)
    raw = make_vector(tmp_path / "v", seed=16).read_bytes()
    parts = [raw[at : at + len(raw) // 8 + 1] for at in range(0, len(raw), len(raw) // 8 + 1)]

    def slowly() -> Iterator[bytes]:
        for part in parts:
            time.sleep(0.15)
            yield part

    assert post(client, slowly(), "steady").status_code == 201


def test_a_value_that_is_not_finite_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    """A NaN would silence every request that it meets."""
    import hashlib

    file = make_vector(tmp_path / "v")
    raw = bytearray(file.read_bytes())
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    begin, end = header["model.norm.weight.delta"]["data_offsets"]
    raw[8 + size + begin : 8 + size + begin + 4] = np.float32("nan").tobytes()
    file.write_bytes(raw)
    digest = hashlib.sha256(raw[8 + size + begin : 8 + size + end]).hexdigest()
    sums = json.loads(header["__metadata__"]["sha256"])
    sums["model.norm.weight.delta"] = digest
    response = post(client, _edit_header(file, _set("sha256", json.dumps(sums))))
    assert error_of(response)["code"] == "non_finite_value", response.text
