"""One file over HTTP: bounded, hashed on the way, resumed where the connection broke."""

import hashlib
import re
import time
from pathlib import Path
from typing import BinaryIO

import httpx

from outfitter.errors import SourceFailed
from outfitter.transfer.fetched import Progress
from outfitter.transfer.web import Web, check_status, shown, unreachable

ATTEMPTS = 6
"""In a row without a byte; more are made while there is progress."""
BACKOFF_S = 0.25
GRACE_S = 60.0
MIN_BYTES_PER_S = 1024
"""On the average, once the grace is over: a source that drips holds a place for others."""
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_AGAIN = (429, 500, 502, 503, 504)


class Download:
    """The file at `url`, into `file`, which is empty and open for writing.

    digest: sha256 of what was written, in hex, when `run` is done. etag: the last one.
    """

    def __init__(self, web: Web, url: str, file: BinaryIO, limit: int, progress: Progress) -> None:
        self._web, self._url, self._file = web, url, file
        self._limit, self._progress = limit, progress
        self._hash = hashlib.sha256()
        self._done = 0
        self._total: int | None = None
        self._started = time.monotonic()
        self.etag: str | None = None

    @property
    def digest(self) -> str:
        """Of what is written so far."""
        return self._hash.hexdigest()

    def run(self) -> None:
        """Fetch all of it; raises SourceFailed, SourceNotAllowed, OSError."""
        failures = 0
        while True:
            before = self._done
            try:
                self._attempt()
            except _Broken as broken:
                failures = 0 if self._done > before else failures + 1
                if failures >= ATTEMPTS:
                    raise unreachable(self._url, broken.cause) from broken
                self._check_pace()
                time.sleep(BACKOFF_S * 2**failures)
            else:
                return

    def _attempt(self) -> None:
        headers = {}
        if self._done and self.etag:
            headers = {"range": f"bytes={self._done}-", "if-range": self.etag}
        try:
            with self._web.get(self._url, headers) as response:
                if response.status_code in _AGAIN:
                    raise _Broken(SourceFailed(f"answered {response.status_code}"))
                self._begin(response)
                for chunk in response.iter_raw():
                    self._write(chunk)
        except httpx.TransportError as error:
            raise _Broken(error) from error
        if self._total is not None and self._done != self._total:
            raise self._failed(f"ended after {self._done} bytes of {self._total}")

    def _begin(self, response: httpx.Response) -> None:
        """Read the head of an answer: does it go on, or start again?"""
        check_status(self._url, response)
        etag = response.headers.get("etag", "")
        if response.status_code == 206:
            self._check_range(response.headers.get("content-range", ""))
            if etag != self.etag:
                raise self._failed("changed while it was read")
        else:
            self._restart()
            length = response.headers.get("content-length", "")
            self._total = int(length) if re.fullmatch(r"\d{1,19}", length) else None
        self.etag = etag if etag.startswith('"') else None
        if (self._total or 0) > self._limit:
            raise self._failed(f"has {self._total} bytes; at most {self._limit} are taken")

    def _check_range(self, text: str) -> None:
        match = _RANGE.fullmatch(text)
        if match is None or int(match[1]) != self._done or int(match[3]) != self._total:
            raise self._failed(f"answered with the range {text[:80]!r}, not from {self._done} on")

    def _restart(self) -> None:
        self._progress(-self._done, None)
        self._file.seek(0)
        self._file.truncate()
        self._hash, self._done = hashlib.sha256(), 0

    def _write(self, chunk: bytes) -> None:
        most = self._limit if self._total is None else min(self._limit, self._total)
        if self._done + len(chunk) > most:
            raise self._failed(f"sends more than {most} bytes")
        self._file.write(chunk)
        self._hash.update(chunk)
        self._done += len(chunk)
        self._progress(len(chunk), self._total)
        self._check_pace()

    def _check_pace(self) -> None:
        seconds = time.monotonic() - self._started
        if seconds > GRACE_S and self._done < MIN_BYTES_PER_S * seconds:
            raise self._failed(f"gave {self._done} bytes in {seconds:.0f} s, which is too slow")

    def _failed(self, what: str) -> SourceFailed:
        return SourceFailed(f"{shown(self._url)} {what}")


class _Broken(Exception):
    """The connection broke; what came so far is good."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def download(web: Web, url: str, target: Path, *, limit: int, progress: Progress) -> str:
    """Write the file at `url` to the fresh path `target`; return its sha256 in hex.

    Raises SourceFailed, SourceNotAllowed, OSError.
    """
    with target.open("xb") as file:
        found = Download(web, url, file, limit, progress)
        found.run()
    return found.digest
