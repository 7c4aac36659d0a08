"""One real gateway over one real vLLM for the whole test session, and what it serves."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from taskvectors.checkpoint import Checkpoint, fingerprint
from tests import services
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker, Synthetic

OUTFITTER = str(Path(sys.executable).with_name("outfitter"))
START_TIMEOUT_S = 600
CLIENT_TIMEOUT_S = 300
SLOTS = 8
POOL_BYTES = 48 << 20
MODEL = "smollm2"
PROMPT = "The three most important things about a coat are"


@dataclass(frozen=True)
class Gateway:
    """A running `outfitter serve`."""

    url: str
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        """Status and JSON body of a GET."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait_until_ready(self) -> None:
        """Wait for /health/ready; fail with the log when it does not come."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.get("/health/ready")[0] == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        pytest.fail(f"the gateway did not become ready:\n{self.log.read_text()[-6000:]}")

    def push(self, vector: Synthetic) -> None:
        """`outfitter push`, as a user would."""
        outfitter("push", str(vector.path), "--name", vector.name, "--url", self.url)

    def upload(self, vector: Synthetic) -> None:
        """The same by HTTP, without starting a process."""
        request = urllib.request.Request(
            f"{self.url}/v1/task_vectors?name={vector.name}",
            data=vector.path.read_bytes(),
            headers={"content-type": "application/octet-stream"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 201

    def engine_processes(self) -> list[psutil.Process]:
        """vLLM's API server and everything below it."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if "guard.py" not in " ".join(child.cmdline())]

    def engine_socket(self) -> Path:
        """The unix socket that vLLM listens on."""
        [api] = [p for p in self.engine_processes() if "--uds" in p.cmdline()]
        return Path(api.cmdline()[api.cmdline().index("--uds") + 1])

    def client(self) -> openai.AsyncOpenAI:
        """The stock client, without retries so that every error is seen. On a busy machine its
        default of 5 s to connect is short."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=CLIENT_TIMEOUT_S
        )

    def ask(self, task_vectors: dict[str, float]) -> dict[str, Any]:
        """A short greedy completion with log probabilities, as JSON."""
        fields = {"model": self.model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        body = json.dumps({**fields, "logprobs": 1, "task_vectors": task_vectors}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", data=body, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.load(answer))


def outfitter(*args: str) -> str:
    """Run the command line; its output."""
    done = subprocess.run([OUTFITTER, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"outfitter {' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def serving(
    model: Path, name: str, folder: Path, *args: str, **environment: str
) -> Iterator[Gateway]:
    """`outfitter serve` on a free port, with a store of its own; every process is gone after.

    The variable SERVE_OPTIONS, such as `--compile`, goes to every server.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = folder / f"{name}.log"
    command = [
        *(OUTFITTER, "serve", "--model", str(model), "--name", name),
        *("--store", str(folder / f"{name}-store"), "--port", str(port), "--dtype", "float32"),
        *(*os.environ.get("SERVE_OPTIONS", "").split(), *args),
    ]
    with log.open("wb") as sink:
        state = environment or services.environment(folder / name)
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", **state},
        )
    gateway = Gateway(f"http://127.0.0.1:{port}", name, process, log)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)
        left = [child for child in started if child.is_running()]
        assert not left, f"the gateway left processes behind: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that kills the shared engine runs last."""
    items.sort(key=lambda item: "test_recovery" in item.nodeid)


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The default base, made by `make` before the tests run."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache) / "outfitter" / "smollm2-135m-instruct"
    if not (folder / "config.json").exists():
        pytest.fail(f"no model in {folder}; run `make test`, which prepares it")
    return folder


@pytest.fixture(scope="session")
def oracle(base_dir: Path) -> Oracle:
    """transformers on densely merged weights."""
    return Oracle(base_dir)


@pytest.fixture(scope="session")
def maker(base_dir: Path) -> Iterator[Maker]:
    """Draws task vectors for the default base."""
    checkpoint = Checkpoint.open(base_dir)
    shapes = {name: checkpoint.info(name)[0] for name in checkpoint.names}
    with tempfile.TemporaryDirectory() as folder:
        yield Maker(shapes, fingerprint(base_dir), Path(folder))


@pytest.fixture(scope="session")
def vectors(maker: Maker) -> dict[str, Synthetic]:
    """Low-rank, sparse and full (embedding, norms) vectors, by name."""
    made = [
        maker.low_rank("lowrank", seed=1, rank=8, size=0.08),
        maker.sparse("sparse", seed=2, size=0.06),
        maker.full("full", seed=3, size=0.02),
    ]
    return {vector.name: vector for vector in made}


@pytest.fixture(scope="session")
def big(maker: Maker, gateway: "Gateway") -> list[Synthetic]:
    """Ten pushed vectors of which the pool holds seven or eight."""
    made = [maker.sparse(f"big{i}", seed=80 + i, size=0.06) for i in range(10)]
    for vector in made:
        gateway.upload(vector)
    return made


@pytest.fixture(scope="session")
def gateway(
    base_dir: Path, vectors: dict[str, Synthetic], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The default base in float32 with 8 slots and a pool smaller than all vectors together.

    Its operator allows promotions.
    """
    folder = tmp_path_factory.mktemp("gateway")
    limits = ("--slots", str(SLOTS), "--pool-bytes", str(POOL_BYTES), "--max-model-len", "2048")
    with serving(base_dir, MODEL, folder, *limits, "--allow-promotions") as running:
        for vector in vectors.values():
            running.push(vector)
        yield running
