"""The Hugging Face Hub, by a stand-in: tests cannot reach the real one.

It speaks the routes that are used, as the Hub's own clients expect them: a repository's facts at
a revision, and its files at a commit by way of a redirect to where they are kept.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from outfitter.errors import SourceFailed, SourceNotAllowed
from outfitter.transfer.sources import fetch
from taskvectors.errors import InvalidReference
from taskvectors.exchange import import_adapter
from taskvectors.format import file_digest
from tests.outfitter.harness import make_vector
from tests.outfitter.transfer.test_files import adapter
from tests.outfitter.transfer.web_server import WebServer, send, serving

COMMIT = "1234567890" * 4
LIMIT = 10**6
CARD = b"---\nlicense: mit\n---\n# Legal\n"


@dataclass
class Hub:
    """The stand-in, and the server where it keeps large files."""

    web: WebServer
    storage: WebServer
    token: str | None = None

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> None:
        """A repository with one commit; safetensors are kept elsewhere, as the Hub does."""
        siblings = []
        for name, body in files.items():
            sibling: dict = {"rfilename": name, "size": len(body)}
            path = f"/{repo}/resolve/{COMMIT}/{name}"
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(body).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(body), "pointerSize": 134}
                self.storage.give(f"/{sha256}", body)
                self.web.redirect(path, f"{self.storage.url}/{sha256}?Signature=secret")
            else:
                self.web.give(path, body)
            siblings.append(sibling)
        facts = {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        quoted = revision.replace("/", "%2F")
        for at in ("",) if revision == "main" else (f"/revision/{quoted}",):
            self._answer(f"/api/models/{repo}{at}", facts)

    def _answer(self, path: str, facts: dict) -> None:
        def answer(request: object) -> None:
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                headers = {
                    "x-error-code": "RepoNotFound",
                    "x-error-message": "Repository Not Found",
                }
                send(request, 401, b"{}", headers)
                return
            body = json.dumps(facts).encode()
            send(request, 200, body, {"content-type": "application/json"})

        self.web.answers[path] = answer


@pytest.fixture
def hub(web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub that huggingface-hub speaks to in this test; no token is at hand."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
    template = web.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as storage:
        yield Hub(web, storage)


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return make_vector(tmp_path / "v.safetensors").read_bytes()


def test_the_only_file_of_a_repository(hub: Hub, tmp_path: Path, body: bytes) -> None:
    """At the commit that the revision is now, with its card."""
    hub.add("acme/legal", {"v.safetensors": body, "README.md": CARD, "sub/w.safetensors": b"w"})
    fetched = fetch("hf://acme/legal", tmp_path / "t", limit=LIMIT, allowed=["hf://acme"])
    assert (tmp_path / "t").read_bytes() == body
    assert fetched.revision == COMMIT
    assert fetched.source == f"hf://acme/legal@{COMMIT}/v.safetensors"
    assert fetched.name == "legal"
    assert fetched.details.card == CARD.decode()
    assert all("main" not in path for path, _ in hub.web.requests if "/resolve/" in path)


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", COMMIT])
def test_a_file_at_a_revision(hub: Hub, tmp_path: Path, body: bytes, revision: str) -> None:
    """A tag, a pull request, a commit."""
    hub.add("acme/many", {"a/v.safetensors": body, "b.safetensors": b"b"}, revision)
    url = f"hf://acme/many@{revision}/a/v.safetensors"
    fetched = fetch(url, tmp_path / "t", limit=LIMIT, allowed=["hf://acme/many"])
    assert (tmp_path / "t").read_bytes() == body
    assert (fetched.name, fetched.revision) == ("v", COMMIT)


def test_an_adapter_is_imported(hub: Hub, tmp_path: Path) -> None:
    """At the root of a repository or in a folder of it."""
    folder = adapter(tmp_path / "adapter")
    files = {part.name: part.read_bytes() for part in folder.iterdir()}
    hub.add("acme/lora", {**files, "README.md": CARD})
    hub.add("acme/loras", {f"legal/{name}": body for name, body in files.items()})
    expected = import_adapter(folder, tmp_path / "expected")
    fetched = fetch("hf://acme/lora", tmp_path / "t", limit=LIMIT, allowed=None)
    assert file_digest(tmp_path / "t") == expected
    assert fetched.details.card == CARD.decode()
    fetched = fetch("hf://acme/loras/legal", tmp_path / "u", limit=LIMIT, allowed=None)
    assert (file_digest(tmp_path / "u"), fetched.name) == (expected, "legal")


def test_a_private_repository_needs_the_token(
    hub: Hub, tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is the Hub's, and is not told to where it keeps the files."""
    hub.token = "hf_secret"
    hub.add("acme/private", {"v.safetensors": body})
    with pytest.raises(SourceFailed, match="cannot read hf://acme/private"):
        fetch("hf://acme/private", tmp_path / "t", limit=LIMIT, allowed=None)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    fetched = fetch("hf://acme/private", tmp_path / "t", limit=LIMIT, allowed=None)
    assert "secret" not in fetched.source
    [(path, headers)] = hub.storage.requests
    assert path.endswith("?Signature=secret")
    assert "authorization" not in headers


def test_what_the_hub_lacks_is_told(hub: Hub, tmp_path: Path, body: bytes) -> None:
    """A repository, a file, or a choice."""
    hub.add("acme/empty", {"README.md": CARD})
    hub.add("acme/two", {"a.safetensors": body, "b.safetensors": body})
    for url, why in (
        ("hf://acme/none", "cannot read hf://acme/none"),
        ("hf://acme/two@none", "cannot read hf://acme/two@none"),
        ("hf://acme/empty", "has no adapter_config.json and no"),
        ("hf://acme/two", "2 files, such as a.safetensors, b.safetensors; name one"),
        ("hf://acme/two/c.safetensors", "has no c.safetensors"),
        ("hf://acme/two/folder", "acme/two/folder has no"),
    ):
        with pytest.raises(SourceFailed, match=why):
            fetch(url, tmp_path / "t", limit=LIMIT, allowed=None)
    for url in ("hf://acme", "hf://acme/@main", "hf://acme/two@"):
        with pytest.raises(InvalidReference):
            fetch(url, tmp_path / "t", limit=LIMIT, allowed=None)
    with pytest.raises(SourceNotAllowed):
        fetch("hf://acme/two/a.safetensors", tmp_path / "t", limit=LIMIT, allowed=["hf://other"])
    assert not (tmp_path / "t").exists()


def test_other_bytes_than_the_hub_said_are_refused(hub: Hub, tmp_path: Path, body: bytes) -> None:
    """By their sha256, or by their number."""
    hub.add("acme/legal", {"v.safetensors": body})
    path = f"/{hashlib.sha256(body).hexdigest()}"
    hub.storage.give(path, body[:-1] + b"?")
    with pytest.raises(SourceFailed, match="with digest"):
        fetch("hf://acme/legal", tmp_path / "t", limit=LIMIT, allowed=None)
    hub.storage.give(path, b"x" * (LIMIT + 1))
    with pytest.raises(SourceFailed, match="at most"):
        fetch("hf://acme/legal", tmp_path / "t", limit=LIMIT, allowed=None)
    assert not (tmp_path / "t").exists()


def test_the_endpoint_of_the_environment_is_used(hub: Hub, tmp_path: Path, body: bytes) -> None:
    """HF_ENDPOINT, as for every other tool."""
    hub.add("acme/legal", {"v.safetensors": body})
    code = (
        "import sys, pathlib; from outfitter.transfer.sources import fetch; t = sys.argv[1];"
        "print(fetch('hf://acme/legal', pathlib.Path(t), limit=9**9, allowed=None).source)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.web.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, str(tmp_path / "t")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"hf://acme/legal@{COMMIT}/v.safetensors\n"
    assert (tmp_path / "t").read_bytes() == body
