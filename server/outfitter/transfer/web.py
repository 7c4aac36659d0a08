"""GET over HTTP: redirects are followed only to where they may lead, answers are bounded."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx

from outfitter.errors import SourceFailed, SourceNotAllowed
from outfitter.transfer.allowed import Allowed
from outfitter.transfer.locations import WEB, Location
from taskvectors.errors import InvalidReference

MAX_REDIRECTS = 5
MAX_DOCUMENT = 4 << 20
"""Bytes of an answer that is read whole, such as JSON or a card."""
BACKOFF_S = 0.25
"""The first pause after a connection that broke; later ones are longer."""
TIMEOUT = httpx.Timeout(30, connect=10)
_REDIRECTS = (301, 302, 303, 307, 308)


class Web:
    """GET requests to one source. headers: for its own origin only, such as a token."""

    def __init__(
        self, *, allowed: Allowed | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self._allowed = allowed
        self._headers = dict(headers or {})
        self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False)

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """The answer, redirects followed, its body not read yet.

        Raises SourceFailed, SourceNotAllowed, httpx.TransportError.
        """
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            own = self._headers if _origin(url) == origin else {}
            sent = {"accept-encoding": "identity", **own, **(headers or {})}
            with contextlib.closing(self._send(url, sent)) as response:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                url = self._next(url, response.headers.get("location", ""))
        raise SourceFailed(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def document(self, url: str) -> bytes | None:
        """A small body; None for a 404. Raises SourceFailed, SourceNotAllowed."""
        for pause in (BACKOFF_S, 4 * BACKOFF_S, None):
            try:
                with self.get(url) as response:
                    if response.status_code == 404:
                        return None
                    check_status(url, response)
                    return _read(url, response)
            except httpx.HTTPError as error:
                if pause is None:
                    raise unreachable(url, error) from error
                time.sleep(pause)
        raise AssertionError

    def json(self, url: str) -> dict[str, Any]:
        """A JSON object; raises SourceFailed, SourceNotAllowed."""
        body = self.document(url)
        if body is None:
            raise SourceFailed(f"there is no {shown(url)}")
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SourceFailed(f"{shown(url)} does not answer in JSON") from error
        if not isinstance(fields, dict):
            raise SourceFailed(f"{shown(url)} does not answer with a JSON object")
        return fields

    def _send(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        try:
            request = self._client.build_request("GET", url, headers=headers)
        except httpx.InvalidURL as error:
            raise unreachable(url, error) from error
        return self._client.send(request, stream=True)

    def _next(self, url: str, target: str) -> str:
        """Where a redirect leads; raises SourceFailed, SourceNotAllowed."""
        try:
            found = urldefrag(urljoin(url, target)).url
            scheme = urlsplit(found).scheme
            allowed = self._allowed is None or self._allowed.covers(Location.parse(found))
        except (ValueError, InvalidReference) as error:
            raise SourceFailed(f"{shown(url)} redirects to {target[:200]!r}: {error}") from error
        if scheme not in WEB or (url.startswith("https:") and scheme != "https"):
            raise SourceFailed(f"{shown(url)} redirects to {target[:200]!r}, which is not safe")
        if not allowed:
            where = shown(found)[:200]
            raise SourceNotAllowed(f"{shown(url)} redirects to {where!r}, which is not allowed")
        return found


def check_status(url: str, response: httpx.Response) -> None:
    """Raise SourceFailed unless the answer is a plain 200 or 206."""
    if response.status_code not in (200, 206):
        raise SourceFailed(f"{shown(url)} answered {response.status_code}")
    coding = response.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise SourceFailed(f"{shown(url)} answered in the coding {coding[:40]!r}; not asked for")


def unreachable(url: str, error: Exception) -> SourceFailed:
    """What to say when the connection fails."""
    return SourceFailed(f"cannot read {shown(url)}: {str(error) or type(error).__name__}")


def shown(url: str) -> str:
    """Without the query, which may hold a secret."""
    return url.partition("?")[0]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _read(url: str, response: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MAX_DOCUMENT:
            raise SourceFailed(f"{shown(url)} answers with more than {MAX_DOCUMENT} bytes")
    return bytes(body)
