"""A client of the gateway's own routes, for the command line."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from outfitter.errors import shorten
from outfitter.urls import shown

KEY_VARIABLE = "OUTFITTER_API_KEY"
MAX_ANSWER = 64 << 20
"""Bytes of an answer that is read."""
TIMEOUT = httpx.Timeout(60, connect=10, read=900)
"""Seconds; publishing a large file takes long to answer."""


class GatewayError(Exception):
    """The gateway cannot be reached, or said no."""


class Unreachable(GatewayError):
    """The connection failed or broke."""


class GatewayRefused(GatewayError):
    """The gateway answered with an error. status: HTTP's; code: the gateway's own."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class GatewayClient:
    """Speaks to the gateway at `url`, a context manager. Every method raises GatewayError."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`key`: sent with every request; the environment's when None."""
        self.url = url.rstrip("/")
        self.name = shown(self.url)
        """The same without user and password, to be printed."""
        try:
            parts = urlsplit(self.url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_url = False
        if not is_url:
            raise GatewayError(
                f"unsupported --url {self.name!r}; use http://host:8000 or https://host"
            )
        given = key or os.environ.get(KEY_VARIABLE) or ""
        if not (given.isascii() and given.isprintable()):
            raise GatewayError(f"unsupported {KEY_VARIABLE}; use a key such as ofk_…")
        self.headers = {"authorization": f"Bearer {given}"} if given else {}
        self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False, headers=self.headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        """A page of the listing."""
        return self.json("GET", "/v1/task_vectors", params=dict(query))

    def show(self, reference: str) -> dict[str, Any]:
        """What a reference stands for."""
        return self.json("GET", _path(reference))

    def card(self, reference: str) -> str:
        """Its card; raises GatewayRefused where there is none."""
        return self.request("GET", f"{_path(reference)}/card").content.decode(errors="replace")

    def tag(self, reference: str, tag: str) -> dict[str, Any]:
        """Let a tag point at what a reference stands for now."""
        found = self.show(reference)
        path = f"{_path(str(found.get('name')))}/tags/{quote(tag, safe='')}"
        return self.json("PUT", path, json={"version": found.get("version")})

    def untag(self, name: str, tag: str) -> dict[str, Any]:
        """Take a tag away."""
        return self.json("DELETE", f"{_path(name)}/tags/{quote(tag, safe='')}")

    def delete(self, reference: str) -> dict[str, Any]:
        """Remove what a reference names."""
        return self.json("DELETE", _path(reference))

    def save_loadout(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Save a loadout. fields: as for `POST /v1/loadouts`."""
        return self.json("POST", "/v1/loadouts", json=dict(fields))

    def loadouts(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        """A page of the saved loadouts, or with `name` the versions of one."""
        return self.json("GET", "/v1/loadouts", params=dict(query))

    def loadout(self, reference: str) -> dict[str, Any]:
        """A saved loadout."""
        return self.json("GET", _loadout_path(reference))

    def move_loadout(self, name: str, version: int) -> dict[str, Any]:
        """Let a bare name mean a version."""
        return self.json("PATCH", _loadout_path(name), json={"latest": version})

    def delete_loadout(self, reference: str) -> dict[str, Any]:
        """Forget a saved loadout, or one version of it."""
        return self.json("DELETE", _loadout_path(reference))

    def experiments(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        """A page of the experiments."""
        return self.json("GET", "/v1/experiments", params=dict(query))

    def experiment(self, name: str, part: str = "") -> dict[str, Any]:
        """An experiment, or a part of what is told of it, such as `versions`."""
        return self.json("GET", _experiment_path(name, part))

    def experiment_text(self, name: str, part: str) -> str:
        """A part that is text, such as `events` or `results?format=csv`."""
        return self.request("GET", _experiment_path(name, part)).text

    def define_experiment(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Define an experiment. fields: as for `POST /v1/experiments`."""
        return self.json("POST", "/v1/experiments", json=dict(fields))

    def change_experiment(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of its definition."""
        return self.json("PATCH", _experiment_path(name), json=dict(fields))

    def act_on_experiment(
        self, name: str, action: str, fields: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Let it `start`, `pause`, `stop` or `ship`."""
        return self.json("POST", _experiment_path(name, action), json=dict(fields or {}))

    def delete_experiment(self, name: str) -> dict[str, Any]:
        """Forget one that does not run."""
        return self.json("DELETE", _experiment_path(name))

    def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON object that is answered."""
        fields = _object(self.request(method, path, **options).content)
        if fields is None:
            raise GatewayError(f"{self.name} does not answer as a gateway: no JSON object")
        return fields

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A good answer, read whole."""
        with (
            self._reaching(),
            self._client.stream(method, self.url + path, **options) as response,
        ):
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise GatewayError(f"{self.name} answers with more than {MAX_ANSWER} bytes")
            status, headers = response.status_code, response.headers
        if not 200 <= status < 300:
            if status == 401 and not self.headers:
                text = f"{self.name} asks for a key (401); put one into {KEY_VARIABLE}"
                raise GatewayRefused(text, status, "invalid_api_key")
            raise refusal(status, bytes(body))
        headers.pop("content-encoding", None)  # it is decoded
        return httpx.Response(status, headers=headers, content=bytes(body))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Unreachable(f"cannot reach the gateway at {self.name}: {error}") from error


def _path(reference: str) -> str:
    return f"/v1/task_vectors/{quote(reference, safe='/@:')}"


def _loadout_path(reference: str) -> str:
    return f"/v1/loadouts/{quote(reference, safe='/@:')}"


def _experiment_path(name: str, part: str = "") -> str:
    return f"/v1/experiments/{quote(name, safe='/')}{'/' if part else ''}{part}"


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def refusal(status: int, body: bytes) -> GatewayRefused:
    """The error that a body tells of, in OpenAI's form or any other."""
    error = (_object(body) or {}).get("error")
    told = error if isinstance(error, dict) else {}
    message = told.get("message")
    text = message if isinstance(message, str) else body[:200].decode(errors="replace")
    code = told.get("code")
    return GatewayRefused(
        shorten(f"the gateway answered {status}: {text}"),
        status,
        code if isinstance(code, str) else None,
    )
