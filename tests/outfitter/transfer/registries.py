"""A real OCI registry for tests, where its program is installed."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PROGRAM = shutil.which("docker-registry") or shutil.which("registry")

CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
USER, PASSWORD = "acme", "secret"
HTPASSWD = "acme:$2b$04$Qw1hX4s5tBAUaq6DLHqUh.WFueRX0UtRot3zuLBcWmaSHl8bwBNAC\n"
"""The same as bcrypt."""
AUTH = """
auth: {{htpasswd: {{realm: test, path: {path}}}}}
"""


@contextmanager
def registry(folder: Path, *, asks: bool = False) -> Iterator[str]:
    """`host:port` of a registry, which may ask for USER and PASSWORD."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir()
    text = CONFIG.format(root=folder / "data", port=port)
    if asks:
        (folder / "htpasswd").write_text(HTPASSWD)
        text += AUTH.format(path=folder / "htpasswd")
    (folder / "config.yml").write_text(text)
    process = subprocess.Popen(
        [str(PROGRAM), "serve", str(folder / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/v2/")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(url: str) -> None:
    for _ in range(500):
        try:
            if httpx.get(url).status_code in (200, 401):
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError("the registry did not start")
