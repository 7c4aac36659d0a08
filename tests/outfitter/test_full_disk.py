"""A full disk: 507, nothing half, and everything works again when there is room."""

import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import httpx
import numpy as np
import pytest

from outfitter.vectors import Base
from taskvectors.format import write_vector
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.outfitter.harness import FINGERPRINT, Running, make_config, running, wait_for
from tests.outfitter.test_completions import error_of

SHAPE = (512, 512)
NBYTES = 4 * 512 * 512
TUS = {"tus-resumable": "1.0.0"}
BYTES = {**TUS, "content-type": "application/offset+octet-stream"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no small disk here: {error}")
    if done.returncode:
        pytest.skip(f"no small disk here: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def full(small: Path, tmp_path: Path) -> Iterator[Running]:
    """A gateway whose files are on the small disk; its catalog is elsewhere."""
    config = make_config(tmp_path / "state", max_upload_bytes=2 * NBYTES)
    url = config.database_url or f"sqlite:///{tmp_path / 'catalog.sqlite3'}"
    fields = {"database_url": url, "max_upload_bytes": 2 * NBYTES, "tiers": config.tiers}
    base = Base(FINGERPRINT, {"w": SHAPE})
    with running(make_config(small, **fields), prepare=lambda _: base) as gateway:
        yield gateway.wait_ready()


def make(folder: Path, seed: int) -> bytes:
    delta = DenseDelta(np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32))
    write_vector(TaskVector(BaseInfo("base", FINGERPRINT), {"w": delta}), folder / "made")
    return (folder / "made").read_bytes()


def listed(client: httpx.Client) -> list[str]:
    return [row["name"] for row in client.get("/v1/task_vectors").json()["data"]]


def test_a_full_disk_is_told_and_got_over(full: Running, tmp_path: Path) -> None:
    """Files until it is full; the one that does not fit leaves nothing; then room is made."""
    with full.client as client:
        names = []
        for seed in range(9):
            params = {"name": f"full/{seed}"}
            answer = client.post("/v1/task_vectors", params=params, content=make(tmp_path, seed))
            if answer.status_code != 201:
                break
            names.append(params["name"])
        assert answer.status_code == 507
        assert error_of(answer)["code"] == "store_full"
        assert error_of(answer)["type"] == "server_error"
        assert len(names) == 3
        assert listed(client) == names
        wait_for(lambda: not list((full.config.store / "incoming").glob("*.part")))
        assert len(list((full.config.store / "blobs").rglob("*.safetensors"))) == 3
        for seed, name in enumerate(names):
            found = client.get(f"/v1/task_vectors/{name}/file").content
            assert found == make(tmp_path, seed)
        next((full.config.store / "blobs").rglob("*.safetensors")).unlink()
        again = client.post("/v1/task_vectors", params=params, content=make(tmp_path, seed + 1))
        assert again.status_code == 201, again.text
        assert client.get(f"/v1/task_vectors/{params['name']}/file").content == make(tmp_path, 3)


def test_an_upload_goes_on_when_there_is_room(full: Running, tmp_path: Path) -> None:
    """What fitted is kept, and the offset says how much that is."""
    filler = full.config.store / "filler"
    raw = make(tmp_path, 30)
    with full.client as client:
        headers = {**TUS, "upload-length": str(len(raw))}
        path = client.post("/v1/uploads", headers=headers).headers["location"]
        filler.write_bytes(b"x" * (4 * 2**20 - NBYTES // 2 - 2**16))
        answer = client.patch(path, content=raw, headers={**BYTES, "upload-offset": "0"})
        assert answer.status_code == 507
        assert error_of(answer)["code"] == "store_full"
        offset = int(client.head(path, headers=TUS).headers["upload-offset"])
        assert 0 < offset < len(raw)
        filler.unlink()
        headers = {**BYTES, "upload-offset": str(offset)}
        assert client.patch(path, content=raw[offset:], headers=headers).status_code == 204
        params = {"upload": path[-32:]}
        answer = client.post("/v1/task_vectors", params=params, json={"name": "full/later"})
        assert answer.status_code == 201, answer.text
        assert client.get("/v1/task_vectors/full/later/file").content == raw


def fill(file: FileIO) -> None:
    while file.write(b"x" * 2**16):
        pass


def test_no_upload_begins_without_room(full: Running) -> None:
    """507, and no trace of it."""
    filler = full.config.store / "filler"
    with full.client as client, filler.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            fill(file)
        answer = client.post("/v1/uploads", headers={**TUS, "upload-length": "10"})
        assert answer.status_code == 507
        assert error_of(answer)["code"] == "store_full"
        assert list((full.config.store / "incoming" / "uploads").iterdir()) == []
        filler.unlink()
        file.truncate(0)
        headers = {**TUS, "upload-length": "10"}
        assert client.post("/v1/uploads", headers=headers).status_code == 201
