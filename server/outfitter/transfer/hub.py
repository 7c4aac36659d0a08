"""The Hugging Face Hub: `hf://owner/repo[@revision][/path/in/repo.safetensors]`.

The revision is resolved to a commit once, and all files are read at that commit. Who allows an
`hf://` prefix trusts the Hub to say where its files are kept: its redirects are followed.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from outfitter.errors import SourceFailed
from outfitter.state.records import Details
from outfitter.transfer.adapters import fetch_adapter
from outfitter.transfer.allowed import Allowed
from outfitter.transfer.download import download
from outfitter.transfer.fetched import Fetched, Progress
from outfitter.transfer.locations import SUFFIX, Location
from outfitter.transfer.web import Web
from taskvectors.errors import InvalidReference
from taskvectors.exchange.peft_folder import CONFIG

CARD = "README.md"
TIMEOUT_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HTTP_ERROR: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
"""Of the HTTP library that this version of huggingface-hub is built on."""


@dataclass(frozen=True)
class _Repo:
    """A commit of a repository. files: each with its sha256 in hex, where the Hub knows it."""

    name: str
    commit: str
    files: dict[str, str | None]
    endpoint: str

    def url(self, file: str) -> str:
        """Of a file at this commit."""
        return hf_hub_url(self.name, file, revision=self.commit, endpoint=self.endpoint)

    def choose(self, path: str) -> str:
        """The one task vector file of a folder; raises SourceFailed."""
        inside = f"{path}/" if path else ""
        found = [
            file
            for file in self.files
            if file.startswith(inside) and file.endswith(SUFFIX) and "/" not in file[len(inside) :]
        ]
        if len(found) == 1:
            return found[0]
        where = f"hf://{self.name}" + (f"/{path}" if path else "")
        if not found:
            raise SourceFailed(f"{where} has no {CONFIG} and no *{SUFFIX}")
        names = ", ".join(sorted(found)[:5])
        raise SourceFailed(f"{where} has {len(found)} files, such as {names}; name one")


def fetch(
    location: Location,
    target: Path,
    *,
    limit: int,
    progress: Progress,
    allowed: Allowed | None = None,  # noqa: ARG001 - the Hub may lead anywhere, see above
) -> Fetched:
    """Fetch the file that the URL names, else the folder's adapter, else its only file.

    Raises SourceFailed, InvalidReference, UnsupportedAdapter, InvalidCheckpoint, OSError.
    """
    name, revision, path = _parts(location)
    repo = _resolve(name, revision)
    with Web(headers=build_hf_headers(library_name="outfitter")) as web:

        def copy(file: str, to: Path, most: int) -> None:
            _copy(web, repo, file, to, most, progress)

        inside = f"{path}/" if path else ""
        if f"{inside}{CONFIG}" in repo.files:
            fetch_adapter(lambda file, to, most: copy(inside + file, to, most), target, limit=limit)
        else:
            path = path if path.endswith(SUFFIX) else repo.choose(path)
            copy(path, target, limit)
        card = web.document(repo.url(CARD)) if CARD in repo.files else None
    details = Details(card=card.decode(errors="replace") if card else None)
    fits = location.name if len(location.segments) > 1 else name.rpartition("/")[2]
    source = f"hf://{repo.name}@{repo.commit}" + (f"/{path}" if path else "")
    return Fetched(source, repo.commit, fits, details)


def _parts(location: Location) -> tuple[str, str | None, str]:
    """Repository, revision, path in it; raises InvalidReference."""
    repo, at, revision = (location.segments or ("",))[0].partition("@")
    rest = location.segments[1:]
    if revision == "refs" and len(rest) >= 2:
        revision, rest = "/".join((revision, *rest[:2])), rest[2:]
    if not repo or (at and not revision):
        raise InvalidReference(
            f"invalid source {str(location)[:200]!r}: write hf://owner/repo[@revision][/path]"
        )
    return f"{location.authority}/{repo}", revision or None, "/".join(rest)


def _resolve(name: str, revision: str | None) -> _Repo:
    """Ask the Hub for the commit and its files; raises SourceFailed."""
    api = HfApi(library_name="outfitter")
    try:
        info = api.model_info(name, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
    except (_HTTP_ERROR, OSError, ValueError) as error:
        at = f"@{revision}" if revision else ""
        raise SourceFailed(f"cannot read hf://{name}{at}: {_first_line(error)}") from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise SourceFailed(f"the Hub does not say which commit hf://{name} is at")
    files = {file.rfilename: _sha256(file.lfs) for file in info.siblings or ()}
    return _Repo(name, str(info.sha), files, api.endpoint)


def _sha256(lfs: Any) -> str | None:
    return None if lfs is None else str(lfs.sha256)


def _copy(web: Web, repo: _Repo, file: str, to: Path, limit: int, progress: Progress) -> None:
    if file not in repo.files:
        raise SourceFailed(f"hf://{repo.name}@{repo.commit} has no {file[:200]}")
    digest = download(web, repo.url(file), to, limit=limit, progress=progress)
    if (right := repo.files[file]) is not None and digest != right:
        raise SourceFailed(f"the Hub gave {file[:200]} with digest {digest}, not {right}")


def _first_line(error: Exception) -> str:
    """Without the advice and the links that follow it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
