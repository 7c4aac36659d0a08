"""Giving a file to a gateway: by the tus protocol, from where an earlier try stopped."""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from outfitter.client import GatewayClient, GatewayError, GatewayRefused, Unreachable
from taskvectors.durable import replacing
from taskvectors.format import file_digest

ATTEMPTS = 6
"""In a row without a byte more."""
BACKOFF_S = 0.25
"""The first pause; each further one in a row is twice as long."""
BLOCK = 1 << 20
_TUS = {"tus-resumable": "1.0.0"}
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PASSING_STATUS = (423, 429, 502, 504)
_PASSING_CODES = ("upload_not_found", "upload_mismatch")


class Uploading:
    """One file on its way to a gateway.

    memory: a folder that remembers, by gateway and digest, which upload a file belongs to.
    progress: told the bytes of each step, which are negative where some did not arrive.
    """

    def __init__(
        self, client: GatewayClient, file: Path, memory: Path, progress: Callable[[int], None]
    ) -> None:
        self._client, self._file, self._progress = client, file, progress
        self._size = file.stat().st_size
        self.digest = file_digest(file)
        key = hashlib.sha256(f"{client.url}\n{self.digest}".encode()).hexdigest()
        self._note = memory / key
        self._offset = 0
        """How much the gateway is known to have."""
        self._told = 0
        self._is_asked = False
        """Whether the gateway was asked to publish it."""
        self._is_met = False
        """Whether there was a gateway at all."""

    def publish(self, draft: Mapping[str, object]) -> dict[str, Any]:
        """Upload what is missing, then publish it as `draft` says; the gateway's answer.

        Broken connections are tried again while bytes arrive. Raises GatewayError, OSError.
        """
        failures = 0
        while True:
            before = self._offset
            try:
                return self._checked(self._attempt(draft))
            except GatewayError as error:
                failures = 0 if self._offset > before else failures + 1
                self._is_met |= not isinstance(error.__cause__, httpx.ConnectError)
                if not self._is_met or not _is_passing(error) or failures >= ATTEMPTS:
                    raise
            time.sleep(BACKOFF_S * 2**failures)

    def _attempt(self, draft: Mapping[str, object]) -> dict[str, Any]:
        upload = self._resumed() or self._created()
        if self._offset < self._size:
            self._send(upload)
        try:
            self._is_asked, was_asked = True, self._is_asked
            answer = self._client.json(
                "POST", "/v1/task_vectors", params={"upload": upload}, json=dict(draft)
            )
        except GatewayRefused as error:
            if error.code != "upload_not_found" or not was_asked:
                raise
            answer = self._published(draft, error)
        self._note.unlink(missing_ok=True)
        return answer

    def _published(self, draft: Mapping[str, object], error: GatewayRefused) -> dict[str, Any]:
        """What an earlier request published, the answer of which was lost."""
        try:
            return self._client.show(f"{draft['name']}@sha256:{self.digest}")
        except GatewayRefused:
            self._is_asked = False  # so it starts anew
            raise error from None

    def _resumed(self) -> str | None:
        """The upload of an earlier try, if the gateway still has it."""
        try:
            upload = self._note.read_text("ascii")
        except (OSError, ValueError):
            return None
        if not _ID.fullmatch(upload):
            return None
        try:
            found = self._client.request("HEAD", f"/v1/uploads/{upload}", headers=_TUS)
        except GatewayRefused as error:
            if error.status not in (403, 404, 410):
                raise
            if self._is_asked:  # perhaps it is published
                return upload
            return None
        if _number(found.headers, "upload-length") != self._size:
            return None
        self._is_met = True
        self._reached(_number(found.headers, "upload-offset"))
        return upload

    def _created(self) -> str:
        headers = {**_TUS, "upload-length": str(self._size)}
        found = self._client.request("POST", "/v1/uploads", headers=headers)
        upload: str = urlsplit(found.headers.get("location", "")).path.rpartition("/")[2]
        if not _ID.fullmatch(upload):
            raise GatewayError(f"{self._client.name} does not say where to upload to")
        with contextlib.suppress(OSError):  # a rerun would start again, no more
            self._note.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._note) as note:
                note.write(upload.encode())
        self._is_met = True
        self._reached(0)
        return upload

    def _send(self, upload: str) -> None:
        headers = {
            **_TUS,
            "upload-offset": str(self._offset),
            "content-type": "application/offset+octet-stream",
            "content-length": str(self._size - self._offset),
        }
        path = f"/v1/uploads/{upload}"
        answer = self._client.request("PATCH", path, headers=headers, content=self._rest())
        self._reached(_number(answer.headers, "upload-offset"))
        if self._offset != self._size:
            raise Unreachable(f"{self._client.name} took {self._offset} bytes of {self._size}")

    def _rest(self) -> Iterator[bytes]:
        left = self._size - self._offset
        with self._file.open("rb") as file:
            file.seek(self._offset)
            while left and (block := file.read(min(BLOCK, left))):
                yield block
                left -= len(block)
                self._tell(self._told + len(block))

    def _reached(self, offset: int) -> None:
        self._offset = min(offset, self._size)
        self._tell(self._offset)

    def _tell(self, done: int) -> None:
        self._progress(done - self._told)
        self._told = done

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer.get("digest") != f"sha256:{self.digest}":
            raise GatewayError(
                f"{self._client.name} published {str(answer.get('digest'))[:80]!r}, not"
                f" sha256:{self.digest}"
            )
        return answer


def _is_passing(error: GatewayError) -> bool:
    """Whether it may go better in a moment."""
    if isinstance(error, GatewayRefused):
        return error.status in _PASSING_STATUS or error.code in _PASSING_CODES
    return isinstance(error, Unreachable)


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers.get(name, "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise GatewayError(f"the gateway's answer has no {name}")
    return int(text)
