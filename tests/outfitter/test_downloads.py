"""Downloads: the right bytes, whole or in parts, of exactly what was asked for."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import Running, make_vector, push, wait_for
from tests.outfitter.test_completions import error_of

PATH = "/v1/task_vectors"
CARD = "---\nlicense: mit\n---\n# Grüße\n"


@pytest.fixture(scope="module")
def raw(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The bytes of `dl/one`, which is version 1."""
    file = make_vector(tmp_path_factory.mktemp("dl") / "v", seed=71)
    with gateway.client as client:
        push(client, file, "dl/one")
        yield file.read_bytes()
        client.delete(f"{PATH}/dl/one")


def test_a_file_is_downloaded(client: httpx.Client, raw: bytes) -> None:
    """With its digest as a strong ETag and a name that no shell minds."""
    digest = hashlib.sha256(raw).hexdigest()
    for reference in ("dl/one", "dl/one@1", "dl/one@latest", f"sha256:{digest}", digest):
        answer = client.get(f"{PATH}/{reference}/file")
        assert answer.status_code == 200
        assert answer.content == raw
        assert answer.headers["etag"] == f'"sha256:{digest}"'
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == (
            'attachment; filename="dl-one-1.safetensors"'
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
    head = client.head(f"{PATH}/dl/one/file")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(raw))
    assert head.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("0-", 0, None), ("0-0", 0, 1), ("5-9", 5, 10), ("7-", 7, None), ("-4", -4, None)],
)
def test_a_range_is_downloaded(
    client: httpx.Client, raw: bytes, asked: str, begin: int, end: int | None
) -> None:
    """206 with exactly these bytes."""
    answer = client.get(f"{PATH}/dl/one/file", headers={"range": f"bytes={asked}"})
    assert answer.status_code == 206
    assert answer.content == raw[begin:end]
    start = begin % len(raw)
    where = f"bytes {start}-{start + len(answer.content) - 1}/{len(raw)}"
    assert answer.headers["content-range"] == where


def test_several_ranges_come_as_parts(client: httpx.Client, raw: bytes) -> None:
    """As RFC 9110 has it."""
    answer = client.get(f"{PATH}/dl/one/file", headers={"range": "bytes=0-3,10-13"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
    assert raw[:4] in answer.content
    assert raw[10:14] in answer.content


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ("bytes=999999-", 416, "range_not_satisfiable"),
        ("bytes=9-5", 400, "invalid_range"),
        ("bytes=x-y", 400, "invalid_range"),
        ("lines=1-2", 400, "invalid_range"),
    ],
)
def test_a_bad_range_is_told_so(
    client: httpx.Client, raw: bytes, asked: str, status: int, code: str
) -> None:
    """In OpenAI's shape; 416 says how large the file is."""
    answer = client.get(f"{PATH}/dl/one/file", headers={"range": asked})
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(raw)}"


def test_what_is_known_already_is_not_sent(client: httpx.Client, raw: bytes) -> None:
    """304 for its ETag, weak, in a list, or any; 200 for another."""
    etag = client.head(f"{PATH}/dl/one/file").headers["etag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = client.get(f"{PATH}/dl/one/file", headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    answer = client.get(f"{PATH}/dl/one/file", headers={"if-none-match": '"x"'})
    assert answer.content == raw


def test_a_range_of_another_file_is_the_whole(client: httpx.Client, raw: bytes) -> None:
    """If-Range with the right ETag gives the range; with another, the file as it is now."""
    etag = client.head(f"{PATH}/dl/one/file").headers["etag"]
    headers = {"range": "bytes=3-5", "if-range": etag}
    answer = client.get(f"{PATH}/dl/one/file", headers=headers)
    assert (answer.status_code, answer.content) == (206, raw[3:6])
    answer = client.get(f"{PATH}/dl/one/file", headers={**headers, "if-range": '"sha256:old"'})
    assert (answer.status_code, answer.content) == (200, raw)


def test_downloads_are_counted_once(client: httpx.Client, raw: bytes) -> None:
    """Neither HEAD, nor 304, nor what goes on later is another download."""
    etag = client.head(f"{PATH}/dl/one/file").headers["etag"]

    def count() -> int:
        return int(client.get(f"{PATH}/dl/one@1").json()["downloads"])

    before = count()
    client.get(f"{PATH}/dl/one/file")
    client.get(f"{PATH}/dl/one/file", headers={"range": "bytes=0-99"})
    wait_for(lambda: count() == before + 2)
    client.get(f"{PATH}/dl/one/file", headers={"range": "bytes=100-"})
    client.get(f"{PATH}/dl/one/file", headers={"range": "bytes=-10"})
    client.get(f"{PATH}/dl/one/file", headers={"if-none-match": etag})
    client.head(f"{PATH}/dl/one/file")
    client.get(f"{PATH}/dl/one/file")
    wait_for(lambda: count() == before + 3)


def test_a_card_and_a_signature_have_their_own_routes(client: httpx.Client, raw: bytes) -> None:
    """404 with a code of its own while there is none."""
    for part in ("card", "signature"):
        missing = client.get(f"{PATH}/dl/one/{part}")
        assert missing.status_code == 404
        assert error_of(missing)["code"] == f"no_{part}"
    assert client.patch(f"{PATH}/dl/one", json={"card": CARD}).json()["has_card"] is True
    found = client.get(f"{PATH}/dl/one/card")
    assert found.headers["content-type"] == "text/markdown; charset=utf-8"
    assert found.content.decode() == CARD


def test_a_signature_is_given_back(client: httpx.Client, tmp_path: Path) -> None:
    """As JSON, as it was published."""
    raw = make_vector(tmp_path / "v", seed=72).read_bytes()
    tus = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}
    headers = {**tus, "upload-length": str(len(raw))}
    upload = client.post("/v1/uploads", headers=headers, content=raw).headers["location"]
    body = {"name": "dl/signed", "signature": {"mediaType": "x", "n": [1]}}
    answer = client.post(f"{PATH}?upload={upload[-32:]}", json=body)
    assert answer.json()["is_signed"] is True
    found = client.get(f"{PATH}/dl/signed/signature")
    assert found.headers["content-type"] == "application/json"
    assert found.json() == body["signature"]


def test_names_that_look_like_parts(client: httpx.Client, tmp_path: Path) -> None:
    """`a/file` is the file of `a`; without an `a`, the vector `a/file`; a pin always says which."""
    files = {
        name: make_vector(tmp_path / str(seed), seed=seed)
        for seed, name in enumerate(["file", "parts/file", "file/file", "tags/card"], 73)
    }
    for name, file in files.items():
        push(client, file, name)
    for name, file in files.items():
        digest = client.get(f"{PATH}/{name}@1").json()["digest"]
        assert digest == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        assert client.get(f"{PATH}/{name}@1/file").content == file.read_bytes()
    assert client.get(f"{PATH}/file").json()["name"] == "file"
    assert client.get(f"{PATH}/parts/file").json()["name"] == "parts/file"
    assert client.get(f"{PATH}/tags/card").json()["name"] == "tags/card"
    assert client.get(f"{PATH}/file/file").content == files["file"].read_bytes()
    assert client.get(f"{PATH}/file/file/file").content == files["file/file"].read_bytes()
    assert client.get(f"{PATH}/parts/file/file").content == files["parts/file"].read_bytes()
    push(client, files["file"], "parts")
    assert client.get(f"{PATH}/parts/file").content == files["file"].read_bytes()
    assert client.get(f"{PATH}/parts/file@1").json()["name"] == "parts/file"
    for name in (*files, "parts"):
        assert client.delete(f"{PATH}/{name}").status_code == 200


@pytest.mark.parametrize("reference", ["nobody", "a/b/c", "a%20b", "dl/one@99", "0" * 64, "@1"])
@pytest.mark.parametrize("part", ["file", "card", "signature"])
def test_nothing_is_downloaded_of_nothing(
    client: httpx.Client, raw: bytes, reference: str, part: str
) -> None:
    """4xx in OpenAI's shape."""
    answer = client.get(f"{PATH}/{reference}/{part}")
    assert answer.status_code in (400, 404)
    error_of(answer)


def test_a_digest_that_nobody_refers_to_is_not_given(client: httpx.Client, tmp_path: Path) -> None:
    """Though its file is still on the disk."""
    digest = push(client, make_vector(tmp_path / "v", seed=79), "dl/gone")["digest"]
    assert client.get(f"{PATH}/{digest}").status_code == 200
    client.delete(f"{PATH}/dl/gone")
    for path in (digest, f"{digest}/file"):
        assert client.get(f"{PATH}/{path}").status_code == 404


def test_a_file_that_is_lost_is_an_error_not_other_bytes(
    gateway: Running, client: httpx.Client, tmp_path: Path
) -> None:
    """Named in the catalog, gone from every tier."""
    found = push(client, make_vector(tmp_path / "v", seed=80), "dl/lost")
    digest = found["digest"].removeprefix("sha256:")
    (gateway.config.store / "blobs" / "sha256" / digest[:2] / f"{digest}.safetensors").unlink()
    answer = client.get(f"{PATH}/dl/lost/file")
    if answer.status_code == 200:  # another tier has it
        assert hashlib.sha256(answer.content).hexdigest() == digest
    else:
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "task_vector_not_found"
    client.delete(f"{PATH}/dl/lost")
