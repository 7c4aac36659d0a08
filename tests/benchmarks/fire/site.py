"""What is fired at: the processes of one gateway, its state, its tenants and their keys."""

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from outfitter.accounts import Accounts, By
from outfitter.config import GatewayConfig
from outfitter.control.limits import Limits
from taskvectors.checkpoint import Checkpoint, fingerprint
from tests import services
from tests.benchmarks.fire import gateway as under_fire
from tests.benchmarks.fire.gateway import DRAIN_S, MAX_RUNNING, MAX_WAIT_S, MAX_WAITING
from tests.outfitter.harness import free_port, make_vector, opened

TENANTS: Mapping[str, Mapping[str, object]] = {
    "free": {},
    "flood": {},
    "metered": {"requests_per_minute": 600, "tokens_per_minute": 20_000},
    "narrow": {"concurrent_requests": 4, "queue": 8},
}
"""Their limits. `flood` is the one that sends many requests at once now and then."""
OPERATOR = "free"
NUM_VECTORS = 4
"""Of each tenant: `free/v0` to `free/v3`."""
START_S = 600.0
OUTFITTER = str(Path(sys.executable).with_name("outfitter"))


@dataclass
class Site:
    """A gateway that runs, and what may be killed around it.

    keys: of each tenant, to ask and to publish. operator: a key that sees the numbers.
    """

    folder: Path
    model: Path | None
    config: GatewayConfig
    valkey: services.Valkey
    postgres: services.Postgres
    process: psutil.Popen
    keys: dict[str, str] = field(default_factory=dict)
    operator: str = ""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return self.config.url

    @property
    def model_name(self) -> str:
        """Of the base."""
        return under_fire.MODEL

    @property
    def log(self) -> str:
        """What the gateway and its engine said."""
        return (self.folder / "log").read_text(errors="replace")

    def engine_processes(self) -> list[psutil.Process]:
        """The API process of the engine and vLLM's own, not the guard around them."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = process.cmdline() or [""]
                is_api = "--uds" in command and not any(
                    part.endswith("guard.py") for part in command
                )
                if is_api or command[0].startswith("VLLM::"):
                    found.append(process)
        return found

    def vector(self, seed: int) -> Path:
        """A small task vector file; another seed is another file."""
        path = self.folder / f"vector{seed}.safetensors"
        if self.model is None:
            return make_vector(path, seed)
        return self._maker.sparse(path.stem, seed, 0.03, self._maker.linears(range(2))).path

    @functools.cached_property
    def _maker(self) -> Any:
        """Of vectors for the real model."""
        from tests.end_to_end.synthetic import Maker  # torch is slow to import

        assert self.model is not None
        checkpoint = Checkpoint.open(self.model)
        shapes = {name: checkpoint.info(name)[0] for name in checkpoint.names}
        return Maker(shapes, fingerprint(self.model), self.folder)

    def wait_ready(self) -> None:
        """Until the engine answers; fail with the log when it does not."""
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.log[-5000:]
            assert time.monotonic() < deadline, self.log[-5000:]
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            time.sleep(0.1)

    def ask(self, method: str, path: str, key: str, **options: object) -> httpx.Response:
        """One request of a tenant's, outside the books."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(folder: Path, model: Path | None) -> Iterator[Site]:
    """Everything started, tenants and models made; every process is gone after."""
    with services.valkey(folder) as valkey, services.postgres() as postgres:
        database_url = services.new_database(postgres.url, "fire")
        config = under_fire.config_of(folder, free_port(), database_url, valkey.url)
        keys, operator = _tenants(config)
        with (folder / "log").open("wb") as sink:
            command = _command(folder, config, model, database_url, valkey.url)
            process = psutil.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        site = Site(folder, model, config, valkey, postgres, process, keys, operator)
        try:
            site.wait_ready()
            _publish(site)
            yield site
        finally:
            _end(process)


def _command(
    folder: Path, config: GatewayConfig, model: Path | None, database_url: str, redis_url: str
) -> list[str]:
    if model is None:
        module = "tests.benchmarks.fire.gateway"
        return [
            sys.executable,
            "-m",
            module,
            str(folder),
            str(config.port),
            database_url,
            redis_url,
        ]
    return [
        *(OUTFITTER, "serve", "--model", str(model), "--name", under_fire.MODEL),
        *("--store", str(config.store), "--port", str(config.port), "--dtype", "float32"),
        *("--database-url", database_url, "--redis-url", redis_url, "--redis-prefix", "fire"),
        *("--auth", "keys", "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING)),
        *("--max-wait", f"{MAX_WAIT_S}s", "--drain-seconds", str(DRAIN_S)),
        *("--slots", "16", "--max-model-len", "1024", "--no-access-log"),
    ]


def _tenants(config: GatewayConfig) -> tuple[dict[str, str], str]:
    """A key of each tenant, and one of the operator's."""
    keys = {}
    with opened(config) as vectors:
        accounts = Accounts(vectors.catalog.database, vectors.resolver, Limits.parse)
        for tenant, limits in TENANTS.items():
            accounts.create_tenant(By(), tenant)
            if limits:
                accounts.change_limits(By(), tenant, limits)
            keys[tenant] = accounts.create_key(By(), tenant, "k", ["infer", "publish"])[1]
        operator = accounts.create_key(By(), OPERATOR, "o", ["operate", "admin"])[1]
    return keys, operator


def _publish(site: Site) -> None:
    """The vectors of each tenant, and a saved loadout of them, `free/bot`."""
    for number, (tenant, key) in enumerate(site.keys.items()):
        for k in range(NUM_VECTORS):
            raw = site.vector(NUM_VECTORS * number + k).read_bytes()
            params = {"name": f"{tenant}/v{k}"}
            answer = site.ask("POST", "/v1/task_vectors", key, params=params, content=raw)
            assert answer.status_code == 201, answer.text
        body = {
            "name": f"{tenant}/bot",
            "task_vectors": {f"{tenant}/v0": 0.5, f"{tenant}/v1": -0.2},
        }
        answer = site.ask("POST", "/v1/loadouts", key, json=body)
        assert answer.status_code == 201, answer.text


def _end(process: psutil.Popen) -> None:
    """Kill what is left of it; after an orderly end there is nothing."""
    if process.poll() is None:
        left = [process, *process.children(recursive=True)]
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=30)
