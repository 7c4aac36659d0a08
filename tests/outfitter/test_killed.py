"""A gateway, or a client, that is killed in the middle of an upload: nothing half, nothing lost.

The gateway is a real process, forked from one that has imported everything, and ended by SIGKILL
at a random moment while a client uploads, resumes and publishes.
"""

import base64
import contextlib
import hashlib
import http.client
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from outfitter.commands.serve import run
from outfitter.vectors import Base
from taskvectors.format import write_vector
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.outfitter.harness import FINGERPRINT, Running, free_port, make_config, wait_for

SHAPE = (256, 128)
TUS = {"tus-resumable": "1.0.0"}
BYTES = {**TUS, "content-type": "application/offset+octet-stream"}
SEED = 20


def serve(root: str, port: int) -> None:
    """A gateway that takes uploads and never has an engine."""
    config = make_config(Path(root), port=port, drain_seconds=1, max_upload_bytes=2**20)
    base = Base(FINGERPRINT, {"w": SHAPE})
    sys.exit(run(config, command=lambda *_: ["sleep", "600"], prepare_base=lambda _: base))


class Server:
    """The gateway of one store, killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        self._process = self._context.Process(target=serve, args=(str(self.root), self.port))
        self._process.start()
        wait_for(self._answers, 60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.is_alive()
        with contextlib.suppress(httpx.HTTPError):
            reason = httpx.get(f"{self.url}/health/ready").json()["error"]["message"]
            return "fingerprinted" not in reason
        return False


def make(folder: Path, seed: int) -> bytes:
    """A file of more than a hundred kilobytes that no other seed gives."""
    delta = DenseDelta(np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32))
    file = folder / "made"
    write_vector(TaskVector(BaseInfo("base", FINGERPRINT), {"w": delta}), file)
    return file.read_bytes()


class Client:
    """Uploads one file after another, and remembers what was acknowledged."""

    def __init__(self, url: str, folder: Path, draw: random.Random) -> None:
        self._url, self._folder, self._draw = url, folder, draw
        self._made = 0
        self.published: dict[tuple[str, int], bytes] = {}
        self.unfinished: dict[str, tuple[bytes, int]] = {}
        """By path: the whole file, and the offset that was told last."""

    def work(self) -> None:
        """Until the gateway is gone."""
        with contextlib.suppress(httpx.TransportError), self._client() as client:
            while True:
                self._made += 1
                raw = make(self._folder, self._made)
                if self._draw.random() < 0.4:
                    self._post(client, raw)
                else:
                    self._upload(client, raw)

    def finish(self) -> None:
        """Take up what is unfinished, from what the gateway says that it has."""
        with self._client() as client:
            for path, (raw, known) in list(self.unfinished.items()):
                head = client.head(path, headers=TUS)
                if head.status_code == 404:  # it was published, and the answer was lost
                    name = f"killed/{path[-32:]}"
                    found = client.get(f"/v1/task_vectors/{name}/file")
                    assert found.content == raw, found.text[:200]
                    self.published[name, 1] = raw
                else:
                    offset = int(head.headers["upload-offset"])
                    assert known <= offset <= len(raw)
                    self._go_on(client, path, raw, offset)
                self.unfinished.pop(path, None)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, timeout=30)

    def _post(self, client: httpx.Client, raw: bytes) -> None:
        name = f"killed/post{self._made}"
        answer = client.post("/v1/task_vectors", params={"name": name}, content=self._slow(raw))
        assert answer.status_code == 201, answer.text
        self.published[name, answer.json()["version"]] = raw

    def _slow(self, raw: bytes) -> Iterator[bytes]:
        for begin in range(0, len(raw), 2**14):
            time.sleep(self._draw.random() * 0.002)
            yield raw[begin : begin + 2**14]

    def _upload(self, client: httpx.Client, raw: bytes) -> None:
        headers = {**TUS, "upload-length": str(len(raw))}
        path = client.post("/v1/uploads", headers=headers).headers["location"]
        self.unfinished[path] = (raw, 0)
        self._go_on(client, path, raw, 0)

    def _go_on(self, client: httpx.Client, path: str, raw: bytes, offset: int) -> None:
        while offset < len(raw):
            piece = raw[offset : offset + self._draw.randrange(1, 2**16)]
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            headers = {**BYTES, "upload-offset": str(offset)}
            if self._draw.random() < 0.3:
                headers["upload-checksum"] = f"sha256 {digest}"
            answer = client.patch(path, content=piece, headers=headers)
            assert answer.status_code == 204, answer.text
            offset = int(answer.headers["upload-offset"])
            self.unfinished[path] = (raw, offset)
        name = f"killed/{path[-32:]}"
        params = {"upload": path[-32:]}
        answer = client.post("/v1/task_vectors", params=params, json={"name": name})
        assert answer.status_code == 201, answer.text
        del self.unfinished[path]
        self.published[name, answer.json()["version"]] = raw


def check(url: str, store: Path, client: Client) -> None:
    """What is visible is whole, what was acknowledged is visible."""
    for blob in (store / "blobs").rglob("*.safetensors"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.stem
    seen, after = {}, None
    with httpx.Client(base_url=url, timeout=30) as http_:
        while True:
            params = {"versions": "all", "limit": "1000"} | ({"after": after} if after else {})
            page = http_.get("/v1/task_vectors", params=params).json()
            seen |= {(row["name"], row["version"]): row["digest"] for row in page["data"]}
            if (after := page["after"]) is None:
                break
        for (name, version), digest in seen.items():
            raw = http_.get(f"/v1/task_vectors/{name}@{version}/file").content
            assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest
    for key, raw in client.published.items():
        assert seen[key] == f"sha256:{hashlib.sha256(raw).hexdigest()}", key


def kill_often(folder: Path, times: int, seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    server = Server(folder / "root")
    client = Client(server.url, folder, draw)
    server.start()
    try:
        for _ in range(times):
            timer = threading.Timer(draw.uniform(0.0, 0.3), server.kill)
            timer.start()
            client.work()
            timer.join()
            server.start()
            check(server.url, folder / "root" / "store", client)
            client.finish()
        check(server.url, folder / "root" / "store", client)
    finally:
        server.kill()
    assert len(client.published) > times // 10  # a slow machine gets few done


def test_a_gateway_that_is_killed_forgets_nothing(tmp_path: Path) -> None:
    """Twenty times, at random moments."""
    kill_often(tmp_path, 20, SEED)


@pytest.mark.slow
def test_a_gateway_that_is_killed_a_hundred_times_forgets_nothing(tmp_path: Path) -> None:
    """The same, longer, and drawn anew in each run."""
    kill_often(tmp_path, 100, int.from_bytes(os.urandom(4)))


@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_is_killed_leaves_nothing(
    gateway: Running, client: httpx.Client, tmp_path: Path, seed: int
) -> None:
    """Wherever its bytes end, in the header or the body, announced or chunked."""
    draw = random.Random(seed)
    raw = make(tmp_path, seed)[: gateway.config.max_upload_bytes - 1]
    for _ in range(10):
        path = f"/v1/task_vectors?name=gone/x{seed}"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        whole = head + raw
        connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc)
        connection.connect()
        assert connection.sock is not None
        connection.sock.sendall(whole[: draw.randrange(1, len(whole))])
        connection.close()
    wait_for(lambda: not list((gateway.config.store / "incoming").glob("*.part")))
    assert client.get(f"/v1/task_vectors/gone/x{seed}").status_code == 404
