"""vLLM's own API server with the plugin, on a unix socket: first tokens as a client sees them."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from taskvectors.bench.engines import (
    DEFAULTS,
    STOP_TIMEOUT_S,
    EngineFailed,
    EngineSpec,
    last_lines,
)
from taskvectors.spec import Loadout

START_TIMEOUT_S = 900.0
BASE = "base"
LOADOUT_HEADER = "x-taskvectors-loadout"
_FLAGS = ("--enable-lora", "--max-lora-rank", "1", "--disable-uvicorn-access-log")


class Server:
    """An API server in a child process; use as a context manager. Raises EngineFailed.

    spec: of the plugin's engine.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._log: IO[bytes]

    def __enter__(self) -> "Server":
        self._folder = tempfile.TemporaryDirectory(prefix="outfitter-bench-")
        self._socket = Path(self._folder.name) / "engine.sock"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and our arguments)
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**DEFAULTS, **os.environ, **self._spec.environment()},
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def first_token(self, loadout: Loadout, prompt: int) -> float:
        """Seconds from a request on a new connection to its answer of one token."""
        ids = [(7 * time.perf_counter_ns() + 3 * j) % 500 + 10 for j in range(prompt)]
        body = {"model": loadout.engine_name, "prompt": ids, "max_tokens": 1, "temperature": 0}
        begin = time.perf_counter()
        status, answer = self._ask("POST", "/v1/completions", json.dumps(body), loadout.canonical)
        seconds = time.perf_counter() - begin
        if status != http.client.OK:
            raise EngineFailed(f"the API server answered {status}: {answer[:500]}")
        return seconds

    def _arguments(self) -> list[str]:
        given: dict[str, Any] = self._spec.arguments()
        named = ("dtype", "max_model_len", "max_num_seqs", "seed", "load_format", "max_loras")
        arguments = ["--model", str(self._spec.model), "--served-model-name", BASE]
        arguments += ["--uds", str(self._socket), *_FLAGS, "--no-enable-prefix-caching"]
        for name in named:
            if name in given:
                arguments += [f"--{name.replace('_', '-')}", str(given[name])]
        arguments += ["--enforce-eager"] if self._spec.eager else []
        arguments += ["--skip-tokenizer-init"] if given.get("skip_tokenizer_init") else []
        return [*arguments, "--additional-config", json.dumps(given["additional_config"])]

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._ask("GET", "/health")[0] == http.client.OK:
                    return
            except OSError:
                time.sleep(0.5)
        raise EngineFailed(f"the API server did not start\n{last_lines(self._log)}")

    def _ask(
        self, method: str, path: str, body: str | None = None, loadout: str = ""
    ) -> tuple[int, str]:
        connection = _UnixConnection(self._socket)
        try:
            headers = {"content-type": "application/json"}
            headers |= {LOADOUT_HEADER: loadout} if loadout else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
