"""The shared origin: a mounted folder, and a real S3 server."""

import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from taskvectors.errors import TierUnavailable, UnsupportedEngine, VectorNotFound
from taskvectors.store.origin import OriginTier

DATA = random.Random(5).randbytes((17 << 20) + 3)  # blocks are 8 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
PLACE = f"sha256/{DIGEST[:2]}/{DIGEST}.safetensors"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of a real S3 server with a bucket `shelf`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "k")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="shelf")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}"
    if request.param == "s3":
        request.getfixturevalue("s3")
    return f"{request.param}://shelf/{tmp_path.name}"


def read(tier: OriginTier, digest: str = DIGEST, size: int = len(DATA)) -> tuple[bytes, list[int]]:
    buffer, told = bytearray(size), []
    tier.fill(digest, memoryview(buffer), told.append)
    return bytes(buffer), told


def test_what_is_put_is_read_again(url: str) -> None:
    tier = OriginTier(url)
    assert tier.size(DIGEST) is None
    assert tier.head(DIGEST, 10) is None
    assert tier.put(DIGEST, memoryview(DATA))
    assert tier.put(DIGEST, memoryview(DATA)), "again is the same as once"
    other = OriginTier(url)
    assert other.size(DIGEST) == len(DATA)
    data, told = read(other)
    assert data == DATA
    assert told == sorted(told)
    assert told[-1] == len(DATA)
    assert other.head(DIGEST, 1000) == DATA[:1000]
    assert other.head(DIGEST, 10**9) == DATA
    assert other.stats().hits == 1


def test_it_lists_and_drops(url: str) -> None:
    tier = OriginTier(url)
    assert list(tier.files()) == []
    tier.put(DIGEST, memoryview(DATA))
    [found] = tier.files()
    assert (found.digest, found.size) == (DIGEST, len(DATA))
    assert abs(found.modified - time.time()) < 3600
    tier.drop(DIGEST)
    tier.drop(DIGEST)
    assert tier.size(DIGEST) is None
    assert list(tier.files()) == []


def test_a_file_that_is_not_there_or_too_short_is_not_found(url: str) -> None:
    tier = OriginTier(url)
    with pytest.raises(VectorNotFound, match="is not in the origin"):
        read(tier)
    tier.put(DIGEST, memoryview(DATA[:-1]))
    with pytest.raises(VectorNotFound, match="truncated in the origin"):
        read(tier)
    assert tier.stats().corrupt == 1


def test_a_local_file_appears_wholly_and_gets_a_fresh_time(tmp_path: Path) -> None:
    tier = OriginTier(f"file://{tmp_path}")
    tier.put(DIGEST, memoryview(DATA))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        f"{DIGEST}.safetensors"
    ]
    os.utime(tmp_path / PLACE, (1, 1))
    tier.put(DIGEST, memoryview(DATA))
    assert (tmp_path / PLACE).stat().st_mtime > 1e9


def test_what_a_killed_writer_left_is_swept_after_a_day(tmp_path: Path) -> None:
    tier = OriginTier(f"file://{tmp_path}")
    tier.put(DIGEST, memoryview(DATA))
    old, new = (tmp_path / PLACE).with_name(".a.tmp"), (tmp_path / PLACE).with_name(".b.tmp")
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    assert [file.digest for file in tier.files()] == [DIGEST]
    assert (old.exists(), new.exists()) == (False, True)


def test_a_share_that_is_not_mounted_is_away_and_not_empty(tmp_path: Path) -> None:
    """A publish fails, instead of filling the disk under the mount point."""
    tier = OriginTier(f"file://{tmp_path / 'share'}")
    with pytest.raises(TierUnavailable, match="mount the share"):
        tier.put(DIGEST, memoryview(DATA))
    with pytest.raises(TierUnavailable, match="mount the share"):
        tier.size(DIGEST)
    assert not (tmp_path / "share").exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = OriginTier(f"file://{tmp_path}")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TierUnavailable, match="No space left"):
        tier.put(DIGEST, memoryview(DATA))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_bucket_that_is_not_there_fails_the_put(s3: str) -> None:
    with pytest.raises(TierUnavailable):
        OriginTier("s3://nobody-made-it/x").put(DIGEST, memoryview(DATA))


def test_an_s3_server_that_is_away_is_left_alone(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    tier = OriginTier("s3://shelf/away")
    for _ in range(5):
        with pytest.raises(TierUnavailable):
            tier.size(DIGEST)
    assert not tier.stats().is_up
    assert sum("left alone" in record.message for record in caplog.records) == 1


def test_an_upload_that_breaks_leaves_no_object(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is closed after an error would complete what it has."""
    import s3fs

    def broken(*_: object) -> int:
        raise OSError("the connection broke")

    monkeypatch.setattr(s3fs.core.S3File, "write", broken)
    tier = OriginTier("s3://shelf/broken")
    with pytest.raises(TierUnavailable, match="the connection broke"):
        tier.put(DIGEST, memoryview(DATA))
    assert tier.size(DIGEST) is None


def test_many_threads_share_an_s3_origin(s3: str) -> None:
    tier = OriginTier("s3://shelf/threads")
    tier.put(DIGEST, memoryview(DATA))
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(read(tier)[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [DATA] * 6


def _read_in_child(tier: OriginTier, answer: "multiprocessing.SimpleQueue[bool]") -> None:
    answer.put(read(tier)[0] == DATA)


def test_a_fork_reads_with_connections_of_its_own(s3: str) -> None:
    tier = OriginTier("s3://shelf/fork")
    tier.put(DIGEST, memoryview(DATA))
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.SimpleQueue[bool] = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(tier, answer))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    assert answer.get()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/mnt/x", "must be a URL"),
        ("file://mnt/x", "file:///<absolute path>"),
        ("nonsense://x", "unsupported scheme 'nonsense'"),
    ],
)
def test_a_url_that_cannot_be_an_origin_is_refused(url: str, message: str) -> None:
    with pytest.raises(UnsupportedEngine, match=message):
        OriginTier(url)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UnsupportedEngine, match=r"pip install 'outfitter\[s3\]'"):
        OriginTier("s3://shelf/x")
