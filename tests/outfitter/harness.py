"""A gateway in this process, real HTTP included, in front of the stand-in engine."""

import contextlib
import dataclasses
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from outfitter.accounts import Accounts, By
from outfitter.app import create_app
from outfitter.commands.listener import listen, server_config
from outfitter.config import GatewayConfig
from outfitter.engine import supervisor
from outfitter.gateway import Gateway, Hooks
from outfitter.opening import open_store
from outfitter.vectors import Base, Draft, Vectors
from taskvectors.format import file_digest, write_vector
from taskvectors.store.settings import TierSettings
from taskvectors.vector import BaseInfo, DenseDelta, SparseDelta, TaskVector
from tests import services

FINGERPRINT = "b" * 64
SHAPES = {"model.layers.0.mlp.up_proj.weight": (8, 4), "model.norm.weight": (4,)}
FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
supervisor.POLL_STARTING_S = 0.05  # the stand-in is there at once, some hundred times


@dataclasses.dataclass
class Running:
    """A gateway that answers at `url`."""

    url: str
    config: GatewayConfig
    log: list[str]
    announced: list[str]
    failures: list[str]
    app: FastAPI | None = None

    @property
    def inner(self) -> Gateway:
        """The gateway's own state; it lives in another thread."""
        assert self.app is not None
        return self.app.state.gateway

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def holding(self, key: str) -> httpx.Client:
        """A client that sends a key."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def wait_ready(self) -> "Running":
        wait_for(lambda: httpx.get(f"{self.url}/health/ready", timeout=60).status_code == 200)
        return self


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def fake_command(*extra: str) -> Callable[[GatewayConfig, Path, str], list[str]]:
    def command(config: GatewayConfig, uds: Path, fingerprint: str) -> list[str]:
        return [sys.executable, str(FAKE_ENGINE), "--uds", str(uds), *extra]

    return command


@contextlib.contextmanager
def running(
    config: GatewayConfig,
    *extra: str,
    prepare: Callable | None = None,
    on_ready: Callable[[], None] = lambda: None,
    **more: object,
) -> Iterator[Running]:
    """Serve `config` with the stand-in engine in a thread; `more` are further hooks."""
    base = Base(FINGERPRINT, SHAPES)
    listener = listen(dataclasses.replace(config, host="127.0.0.1", port=0))
    url = dataclasses.replace(config, port=listener.getsockname()[1]).url
    gateway = Running(url, config, [], [], [])
    hooks = Hooks(
        announce=gateway.announced.append,
        engine_log=gateway.log.append,
        on_ready=on_ready,
        on_failure=gateway.failures.append,
        prepare_base=prepare or (lambda config: base),
        command=fake_command(*extra),
        **more,
    )
    app = create_app(config, hooks)
    options = server_config(config, app)
    options.timeout_graceful_shutdown = 1
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    gateway.app = app
    try:
        yield gateway
    finally:
        server.should_exit = True
        thread.join(timeout=40)
        assert not thread.is_alive()


def make_config(root: Path, **settings: object) -> GatewayConfig:
    """A gateway of `root`; its state lies there, or on the servers that are given for tests."""
    given = services.given(root)
    redis = {key: given[key] for key in ("redis_url", "redis_prefix") if key in given}
    state = {"database_url": given.get("database_url"), "tiers": TierSettings(**redis)}
    fields = {"max_upload_bytes": 2**16, "max_body_bytes": 2**16, **state, **settings}
    return GatewayConfig(model=root / "model", name="base-model", store=root / "store", **fields)


def make_vector(
    path: Path, seed: int = 0, fingerprint: str | None = FINGERPRINT, shape: tuple = (8, 4)
) -> Path:
    """A small task vector file; another seed is another file."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(3).astype(np.float32)
    up = SparseDelta(shape, np.array([1, 5, 7]), values)
    norm = DenseDelta(rng.standard_normal(4).astype(np.float32))
    parameters = {"model.layers.0.mlp.up_proj.weight": up, "model.norm.weight": norm}
    write_vector(TaskVector(BaseInfo("base", fingerprint), parameters, {"license": "MIT"}), path)
    return path


def push(client: httpx.Client, file: Path, name: str) -> dict:
    response = client.post("/v1/task_vectors", params={"name": name}, content=file.read_bytes())
    assert response.status_code == 201, response.text
    return response.json()


def opened(config: GatewayConfig) -> Vectors:
    """The state of a gateway, without one."""
    return open_store(config)


def publish(config: GatewayConfig, file: Path, name: str) -> str:
    """Publish a file past the gateway, for any base; returns its digest."""
    with opened(config) as vectors:
        path = vectors.store.new_upload()
        shutil.copyfile(file, path)
        return vectors.publish(path, file_digest(path), Draft(name), None).digest


def new_keys(config: GatewayConfig, **scopes: str) -> dict[str, str]:
    """A key for each tenant, made past the gateway. scopes: of each, with spaces between.

    `acme__ops="operate"` is another key of acme.
    """
    with opened(config) as vectors:
        accounts = Accounts(vectors.catalog.database, vectors.resolver)
        known: set[str] = set()
        made = {}
        for name, wanted in scopes.items():
            tenant = name.partition("__")[0]
            if tenant not in known:
                accounts.create_tenant(By(), tenant)
                known.add(tenant)
            made[name] = accounts.create_key(By(), tenant, name, wanted.split())[1]
        return made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
