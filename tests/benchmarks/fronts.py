"""What stands between a client and the stand-in, or does not: each as a process that is ours."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.outfitter.harness import free_port, make_vector, push

VECTOR = "v"
START_TIMEOUT_S = 60.0
BASE: dict[str, Any] = {"model": "base-model"}
LOADOUT: dict[str, Any] = {**BASE, "task_vectors": {VECTOR: 0.5}}


@dataclass(frozen=True)
class Front:
    """Where requests go, what they say, and the process whose cost it is, if there is one."""

    name: str
    port: int
    fields: dict[str, Any] = field(default_factory=lambda: dict(BASE))
    process: psutil.Process | None = None

    @property
    def cpu_seconds(self) -> float:
        """User and system, all threads, since the process began."""
        if self.process is None:
            return 0.0
        times = self.process.cpu_times()
        return times.user + times.system

    @property
    def uss(self) -> int:
        """Bytes of memory that nobody shares."""
        assert self.process is not None
        return int(self.process.memory_full_info().uss)


@contextlib.contextmanager
def fronts(router: Path | None) -> Iterator[list[Front]]:
    """Direct, the gateway without and with a loadout, and `vllm-router`: all on one stand-in."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port, upstream = Path(name), free_port(), free_port()
        module = "tests.benchmarks.serve_upstream"
        command = [sys.executable, "-m", module, str(folder), str(port), str(upstream)]
        log = folder / "gateway.log"
        gateway = stack.enter_context(running(command, log, lambda: _is_ready(port)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            push(client, make_vector(folder / "vector"), VECTOR)
        found = [
            Front("direct", upstream),
            Front("outfitter, base", port, BASE, gateway),
            Front("outfitter, loadout", port, LOADOUT, gateway),
        ]
        if router is not None:
            process, router_port = stack.enter_context(_router(router, upstream, folder))
            found.append(Front("vllm-router", router_port, BASE, process))
        yield found


@contextlib.contextmanager
def _router(router: Path, upstream: int, folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    command = [str(router), "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port())]
    with running(command, folder / "router.log", lambda: _answers(port)) as process:
        yield process, port


@contextlib.contextmanager
def running(command: list[str], log: Path, is_up: Callable[[], bool]) -> Iterator[psutil.Process]:
    """A process that serves until the context ends; raises RuntimeError when it does not."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=40)


def router_path(given: str) -> Path | None:
    """The program `vllm-router`, a path or a name to look for; None if it is not there."""
    found = shutil.which(given)
    return None if found is None else Path(found).resolve()


def router_version(router: Path) -> str:
    """As its own environment's Python says."""
    code = "import importlib.metadata as m; print(m.version('vllm-router'))"
    command = [str(router.with_name("python")), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _is_ready(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200)
    except httpx.TransportError:
        return False


def _answers(port: int) -> bool:
    messages = [{"role": "user", "content": "events=1"}]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps({**BASE, "messages": messages}).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False
