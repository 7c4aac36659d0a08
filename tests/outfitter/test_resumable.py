"""Uploads by the tus protocol: taken up again after any break, published whole or not at all."""

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from outfitter.routes import body
from outfitter.state import uploads as state
from taskvectors.format import file_digest
from tests.outfitter.harness import Running, make_config, make_vector, running, wait_for
from tests.outfitter.test_completions import error_of

TUS = {"tus-resumable": "1.0.0"}
BYTES = {**TUS, "content-type": "application/offset+octet-stream"}


def folder(gateway: Running) -> Path:
    return gateway.config.store / "incoming" / "uploads"


@pytest.fixture(autouse=True)
def nothing_left(gateway: Running) -> Iterator[None]:
    """Each test begins without uploads, and leaves no part of a file elsewhere."""
    for path in folder(gateway).iterdir() if folder(gateway).exists() else ():
        path.unlink()
    yield
    wait_for(lambda: not list((gateway.config.store / "incoming").glob("*.part")))


def create(client: httpx.Client, length: int, **headers: str) -> str:
    """The path of a new upload."""
    response = client.post("/v1/uploads", headers={**TUS, "upload-length": str(length), **headers})
    assert response.status_code == 201, response.text
    return response.headers["location"]


def patch(client: httpx.Client, path: str, offset: int, data: object, **headers: str):
    fields = {**BYTES, "upload-offset": str(offset), **headers}
    return client.patch(path, content=data, headers=fields)


def offset_of(client: httpx.Client, path: str) -> int:
    response = client.head(path, headers=TUS)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    return int(response.headers["upload-offset"])


def publish(client: httpx.Client, path: str, **fields: object) -> httpx.Response:
    params = {"upload": path.rpartition("/")[2]}
    return client.post("/v1/task_vectors", params=params, json=fields)


def test_a_third_partys_client_uploads_in_pieces(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """With checksums, too; the whole is published once, and gone as an upload."""
    file = make_vector(tmp_path / "v", seed=61)
    tus = TusClient(f"{gateway.url}/v1/uploads")
    uploader = tus.uploader(str(file), chunk_size=100, upload_checksum=True)
    uploader.upload()
    path = urlsplit(uploader.url).path
    fields = {"license": "mit", "languages": ["en"], "labels": ["law"], "tags": ["stable"]}
    answer = publish(client, path, name="tus/first", **fields)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert found["digest"] == f"sha256:{file_digest(file)}"
    assert (found["license"], found["languages"], found["labels"]) == ("MIT", ["en"], ["law"])
    assert sorted(found["tags"]) == ["latest", "stable"]
    assert client.get("/v1/task_vectors/tus/first@stable/file").content == file.read_bytes()
    assert client.head(path, headers=TUS).status_code == 404
    assert publish(client, path, name="tus/first").status_code == 404
    assert list(folder(gateway).iterdir()) == []


def test_a_third_partys_client_resumes_where_it_was(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """Another process, later, that knows only the URL."""
    file = make_vector(tmp_path / "v", seed=62)
    tus = TusClient(f"{gateway.url}/v1/uploads")
    first = tus.uploader(str(file), chunk_size=64)
    first.upload(stop_at=192)
    second = tus.uploader(str(file), chunk_size=1000, url=first.url)
    assert second.offset == 192
    second.upload()
    path = urlsplit(first.url).path
    assert offset_of(client, path) == file.stat().st_size
    assert publish(client, path, name="tus/resumed").status_code == 201


def test_an_upload_outlives_the_gateway(tmp_path: Path) -> None:
    """Its state is on disk; another gateway on the same store takes it up."""
    file = make_vector(tmp_path / "v", seed=63)
    raw, config = file.read_bytes(), make_config(tmp_path / "root")
    with running(config) as gateway, gateway.client as client:
        path = create(client, len(raw), **{"upload-metadata": "filename dg=="})
        assert patch(client, path, 0, raw[:333]).headers["upload-offset"] == "333"
    with running(config) as gateway, gateway.wait_ready().client as client:
        head = client.head(path, headers=TUS).headers
        assert (head["upload-offset"], head["upload-length"]) == ("333", str(len(raw)))
        assert head["upload-metadata"] == "filename dg=="
        assert patch(client, path, 333, raw[333:]).status_code == 204
        assert publish(client, path, name="a/b").json()["digest"] == f"sha256:{file_digest(file)}"


def test_what_arrives_before_a_break_is_kept(
    gateway: Running, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends in the middle of a PATCH that announced more."""
    monkeypatch.setattr(body, "CHUNK_BYTES", 400)
    raw = make_vector(tmp_path / "v", seed=64).read_bytes()
    path = create(client, len(raw))
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc)
    connection.putrequest("PATCH", path)
    fields = {**BYTES, "upload-offset": "0", "content-length": str(len(raw))}
    for name, value in fields.items():
        connection.putheader(name, value)
    connection.endheaders(raw[:500])
    wait_for(lambda: offset_of(client, path) == 500)
    connection.close()
    wait_for(lambda: patch(client, path, 500, raw[500:]).status_code == 204)
    assert publish(client, path, name="tus/broken-off").status_code == 201


def test_a_piece_that_was_not_full_is_kept_too() -> None:
    """What came before the body broke off is written, in order, before the error is told."""
    written = bytearray()

    async def broken() -> AsyncIterator[bytes]:
        for piece in (b"x" * body.CHUNK_BYTES, b"y", b"z"):
            yield piece
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(body.receive(broken(), written.extend))
    assert written == b"x" * body.CHUNK_BYTES + b"yz"


def test_the_body_may_come_with_the_creation(client: httpx.Client, tmp_path: Path) -> None:
    """All of it, or a part."""
    raw = make_vector(tmp_path / "v", seed=65).read_bytes()
    headers = {**BYTES, "upload-length": str(len(raw))}
    for part in (raw, raw[:77]):
        response = client.post("/v1/uploads", headers=headers, content=part)
        assert response.status_code == 201
        assert response.headers["upload-offset"] == str(len(part))
        assert offset_of(client, response.headers["location"]) == len(part)


def test_another_offset_is_a_conflict(client: httpx.Client) -> None:
    """Before and behind where the upload is; nothing is written."""
    path = create(client, 100)
    assert patch(client, path, 0, b"x" * 40).status_code == 204
    for offset in (0, 39, 41, 100):
        response = patch(client, path, offset, b"y")
        assert response.status_code == 409
        assert response.headers["tus-resumable"] == "1.0.0"
        assert error_of(response)["code"] == "upload_mismatch"
        assert "at offset 40" in error_of(response)["message"]
    assert offset_of(client, path) == 40


def test_two_cannot_write_at_once(
    gateway: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told so at once; the first goes on; how far it is may be asked meanwhile."""
    monkeypatch.setattr(body, "CHUNK_BYTES", 1)
    path = create(client, 100)
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc)
    connection.putrequest("PATCH", path)
    for name, value in {**BYTES, "upload-offset": "0", "content-length": "10"}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x" * 5)
    wait_for(lambda: offset_of(client, path) == 5)
    locked = patch(client, path, 5, b"y")
    assert locked.status_code == 423
    assert error_of(locked)["code"] == "upload_locked"
    assert locked.headers["retry-after"] == "1"
    assert client.delete(path, headers=TUS).status_code == 423
    assert error_of(publish(client, path, name="x"))["code"] == "upload_locked"
    assert client.head(path, headers=TUS).status_code == 200
    connection.send(b"z" * 5)
    assert connection.getresponse().status == 204
    connection.close()
    assert offset_of(client, path) == 10


def test_more_than_was_announced_is_refused(client: httpx.Client) -> None:
    """413, announced or streamed; never more on disk than the length."""
    path = create(client, 10)
    for data in (b"x" * 11, (b"x" * 6 for _ in range(2))):
        response = patch(client, path, offset_of(client, path), data)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
    assert offset_of(client, path) <= 10


def test_a_wrong_checksum_takes_the_bytes_back(client: httpx.Client) -> None:
    """460, as the protocol says; then the right ones are taken."""
    path = create(client, 100)
    assert patch(client, path, 0, b"x" * 40).status_code == 204
    for name in ("sha1", "sha256"):
        right = base64.b64encode(hashlib.new(name, b"y" * 10).digest()).decode()
        before = offset_of(client, path)
        wrong = patch(client, path, before, b"z" * 10, **{"upload-checksum": f"{name} {right}"})
        assert wrong.status_code == 460
        assert error_of(wrong)["code"] == "checksum_mismatch"
        assert offset_of(client, path) == before
        taken = patch(client, path, before, b"y" * 10, **{"upload-checksum": f"{name} {right}"})
        assert taken.status_code == 204
    for header in ("md5 AA==", "sha1 ?", "sha1"):
        response = patch(client, path, 60, b"", **{"upload-checksum": header})
        assert response.status_code in (400, 460)


def test_an_upload_can_be_deleted(gateway: Running, client: httpx.Client) -> None:
    """Its bytes are gone, too."""
    path = create(client, 10)
    patch(client, path, 0, b"x")
    assert client.delete(path, headers=TUS).status_code == 204
    assert list(folder(gateway).iterdir()) == []
    for response in (
        client.head(path, headers=TUS),
        client.delete(path, headers=TUS),
        patch(client, path, 1, b"x"),
    ):
        assert response.status_code == 404
        assert response.headers["tus-resumable"] == "1.0.0"


@pytest.mark.parametrize("upload", ["nobody", "..%2f..%2fcatalog", "0" * 32, "%00", ""])
def test_an_id_never_becomes_a_path(client: httpx.Client, upload: str) -> None:
    """What is no id is not found; so is the id of nothing."""
    if upload:
        assert client.head(f"/v1/uploads/{upload}", headers=TUS).status_code == 404
    response = client.post(f"/v1/task_vectors?upload={upload}", json={"name": "x"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "upload_not_found"


def test_the_protocol_is_described(gateway: Running, client: httpx.Client) -> None:
    """OPTIONS needs no version; whoever speaks another one is told ours."""
    answer = client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(gateway.config.max_upload_bytes)
    assert "termination" in answer.headers["tus-extension"]
    for headers in ({}, {"tus-resumable": "0.2.2"}):
        refused = client.post("/v1/uploads", headers={**headers, "upload-length": "1"})
        assert refused.status_code == 412
        assert refused.headers["tus-version"] == "1.0.0"
        assert error_of(refused)["code"] == "unsupported_tus_version"


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "9" * 30, "٣"])
def test_a_length_must_be_a_number(client: httpx.Client, length: str) -> None:
    """Uploads of unknown length are not taken."""
    headers = {**TUS, "upload-length": length.encode()}
    response = client.post("/v1/uploads", headers=headers)
    assert response.status_code == 400
    assert error_of(response)["param"] == "upload-length"


def test_a_file_over_the_limit_is_refused_at_once(gateway: Running, client: httpx.Client) -> None:
    """Before a byte of it is sent."""
    headers = {**TUS, "upload-length": str(gateway.config.max_upload_bytes + 1)}
    response = client.post("/v1/uploads", headers=headers)
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"
    headers = {**TUS, "upload-length": "1", "upload-metadata": "x" * 5000}
    assert client.post("/v1/uploads", headers=headers).status_code == 400


def test_unfinished_uploads_are_bounded(
    gateway: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In number and in the bytes that they may become; who gives one up makes room."""
    monkeypatch.setattr(state, "MAX_UNFINISHED", 3)
    limit = gateway.config.max_upload_bytes
    paths = [create(client, limit) for _ in range(3)]
    refused = client.post("/v1/uploads", headers={**TUS, "upload-length": "1"})
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "too_many_uploads"
    assert error_of(refused)["type"] == "rate_limit_error"
    client.delete(paths[0], headers=TUS)
    create(client, 1)
    monkeypatch.setattr(state, "MAX_UNFINISHED", 64)
    create(client, limit)
    headers = {**TUS, "upload-length": str(limit)}
    assert client.post("/v1/uploads", headers=headers).status_code == 429


def test_what_nobody_touches_is_forgotten(gateway: Running, client: httpx.Client) -> None:
    """When the next upload begins; halves that a kill left, too, and what is younger stays."""
    create(client, 10)
    for name in (f".{'c' * 32}.json.1.tmp", f"{'a' * 32}.upload", f"{'b' * 32}.json"):
        (folder(gateway) / name).touch()
    long_ago = time.time() - state.LIFETIME_S - 60
    for path in folder(gateway).iterdir():
        os.utime(path, (long_ago, long_ago))
    touched = create(client, 10)
    os.utime(folder(gateway) / f"{touched[-32:]}.json", (long_ago, long_ago))
    create(client, 10)
    assert offset_of(client, touched) == 0
    assert len(list(folder(gateway).iterdir())) == 4


def test_a_part_is_not_published(client: httpx.Client) -> None:
    """The message says how much is missing."""
    path = create(client, 10)
    patch(client, path, 0, b"x" * 4)
    response = publish(client, path, name="part")
    assert response.status_code == 409
    assert error_of(response)["code"] == "upload_mismatch"
    assert "4 of 10 bytes" in error_of(response)["message"]


def test_what_can_be_mended_leaves_the_upload(client: httpx.Client, tmp_path: Path) -> None:
    """A wrong licence, name or field costs no second upload."""
    raw = make_vector(tmp_path / "v", seed=66).read_bytes()
    path = create(client, len(raw))
    patch(client, path, 0, raw)
    for fields, status in (
        ({"name": "tus/mended", "license": "NO-SUCH"}, 422),
        ({"name": "../up"}, 400),
        ({"name": "a@3"}, 400),
        ({"name": "tus/mended", "tags": ["Not A Tag"]}, 400),
        ({"name": "tus/mended", "licence": "MIT"}, 400),
        ({"name": 3}, 400),
        ({}, 400),
        ({"name": "tus/mended", "labels": "law"}, 400),
        ({"name": "tus/mended", "card": 1}, 400),
    ):
        response = publish(client, path, **fields)
        assert response.status_code == status, response.text
        error_of(response)
    assert client.get("/v1/task_vectors/tus/mended").status_code == 404
    assert publish(client, path, name="tus/mended", license="MIT").status_code == 201


def test_a_broken_file_ends_its_upload(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """No name or licence can mend it; a file of another base goes, too."""
    foreign = make_vector(tmp_path / "f", fingerprint="f" * 64).read_bytes()
    for raw, code in ((b"no task vector", "header_too_large"), (foreign, "base_mismatch")):
        path = create(client, len(raw))
        patch(client, path, 0, raw)
        response = publish(client, path, name="tus/bad")
        assert error_of(response)["code"] == code
        assert client.head(path, headers=TUS).status_code == 404
        assert list(folder(gateway).iterdir()) == []


def test_an_uploads_publication_is_json(client: httpx.Client) -> None:
    """Another content type, a body that is no object, and other parameters are refused."""
    path = create(client, 0)
    where = f"/v1/task_vectors?upload={path[-32:]}"
    assert client.post(where, content=b"x", headers=BYTES).status_code == 415
    assert client.post(where, json=[]).status_code == 400
    response = client.post(f"{where}&name=x", json={"name": "x"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "name"


def test_a_client_that_was_refused_hears_it(gateway: Running, tmp_path: Path) -> None:
    """What tuspy does with a file over the limit."""
    file = tmp_path / "large"
    file.write_bytes(b"x" * (gateway.config.max_upload_bytes + 1))
    with contextlib.suppress(ValueError), pytest.raises(TusCommunicationError) as caught:
        TusClient(f"{gateway.url}/v1/uploads").uploader(str(file), chunk_size=10).upload()
    assert caught.value.status_code == 413
    assert json.loads(caught.value.response_content)["error"]["code"] == "body_too_large"
