"""Clients in Node that nobody here wrote, against the gateway before the stand-in engine."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from outfitter.config import cache_home
from tests.outfitter.harness import make_config, make_vector, push, running

HERE = Path(__file__).parent
PACKAGE = ("package.json", "package-lock.json")
SCRIPT = HERE / "clients.test.mjs"
MIN_NODE = 20
INSTALL_S = 300


def test_the_lock_says_what_but_not_where_from() -> None:
    """Every package by its hash, and none by an address."""
    text = (HERE / "package-lock.json").read_text()
    assert "resolved" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


def installed() -> Path:
    """The folder with the locked packages, which is kept for the next time."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < MIN_NODE:
        pytest.skip(f"needs node {MIN_NODE} or newer, not {version.strip()}")
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = cache_home() / "node" / lock
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in PACKAGE:
            shutil.copyfile(HERE / name, folder / name)
        flags = ("--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(folder / "npm"))
        asked = subprocess.run(
            [npm, "ci", *flags], cwd=folder, capture_output=True, text=True, timeout=INSTALL_S
        )
        if asked.returncode != 0:
            pytest.skip(f"npm cannot install the locked packages: {asked.stderr[-500:]}")
        (folder / "complete").touch()
    return folder


@pytest.mark.timeout(INSTALL_S + 120)
def test_node_clients(tmp_path: Path) -> None:
    """OpenAI's own, and one that speaks the protocol by itself: whole, streamed, and failing."""
    folder = installed()
    shutil.copyfile(SCRIPT, folder / SCRIPT.name)
    with running(make_config(tmp_path)) as gateway:
        gateway.wait_ready()
        with gateway.client as client:
            push(client, make_vector(tmp_path / "v"), "node/json")
            saved = {"name": "node/bot", "task_vectors": {"node/json": 0.5}}
            assert client.post("/v1/loadouts", json=saved).status_code == 201
        asked = subprocess.run(
            ["node", "--test", "--test-reporter=tap", SCRIPT.name],
            cwd=folder,
            env={**os.environ, "OUTFITTER_URL": gateway.url},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    wanted = len(re.findall(r"(?m)^test\(", SCRIPT.read_text()))
    assert f"# pass {wanted}" in asked.stdout
