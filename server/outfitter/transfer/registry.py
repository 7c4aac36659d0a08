"""Artefacts in an OCI registry, by oras: the same manifest and blobs as in a layout."""

import functools
import io
import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import httpx

from outfitter.config import InvalidConfig
from outfitter.errors import SourceFailed
from outfitter.state.records import Version
from outfitter.transfer.descriptors import Descriptor, copy_checked
from outfitter.transfer.fetched import Fetched, Progress, no_progress
from outfitter.transfer.modelpack import MANIFEST, MAX_MANIFEST, TAG, Package, pack, unpack

SCHEME = "oci://"
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two blocks of an answer."""

_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::\d{1,5})?|\[[0-9a-fA-F:]{2,45}\](?::\d{1,5})?)"
    r"/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    rf"(?::(?P<tag>{TAG.pattern})|@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)


@dataclass(frozen=True)
class Place:
    """A repository in a registry, and what of it. tag: or the digest of a manifest."""

    host: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host/repository:tag` or `host/repository@sha256:…`; raises InvalidConfig."""
        match = _REFERENCE.fullmatch(text.removeprefix(SCHEME)) if len(text) <= 512 else None
        if match is None:
            raise InvalidConfig(
                f"invalid place {text[:200]!r} in a registry: use host/repository:tag, in"
                " lowercase, such as ghcr.io/acme/json:3"
            )
        return cls(match["host"], match["repository"], match["digest"] or match["tag"] or "latest")

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, where registries speak plain HTTP."""
        host = re.sub(r":\d+$", "", self.host).strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if ':' in self.tag else ':'}{self.tag}"


def push(
    version: Version,
    file: Path,
    place: Place,
    *,
    plain_http: bool = False,
    progress: Progress = no_progress,
) -> str:
    """Upload a version, the manifest last; return the manifest's digest. Raises SourceFailed."""
    package = pack(version)
    if ":" in place.tag:
        raise InvalidConfig(f"cannot push to {place}: name a tag, not a digest")
    with _session(place, plain_http) as session:
        session.upload_file(package.weight, file, progress)
        for data in package.blobs.values():
            session.upload(Descriptor.of("", data), data)
        session.upload_manifest(package)
    return package.descriptor.digest


def fetch(
    url: str, target: Path, *, limit: int, progress: Progress, plain_http: bool = False
) -> Fetched:
    """Fetch from `oci://host/repository:tag`; raises SourceFailed."""
    try:
        place = Place.parse(url)
    except InvalidConfig as error:
        raise SourceFailed(str(error)) from error
    with _session(place, plain_http) as session:
        manifest = session.manifest()
        contents = unpack(manifest, session.read)
        if contents.weight.size > limit:
            raise SourceFailed(
                f"the file has {contents.weight.size} bytes; at most {limit} are taken"
            )
        session.download(contents.weight, target, progress)
    revision = f"sha256:{Descriptor.of(MANIFEST, manifest).digest}"
    found = contents.name, contents.details, contents.signature
    return Fetched(f"{SCHEME}{place}", revision, *found)


@contextmanager
def _session(place: Place, plain_http: bool) -> Iterator["_Session"]:
    """A connection to a registry; what goes wrong in it is SourceFailed."""
    try:
        import oras.provider
        import requests
        import urllib3
    except ImportError as error:
        raise InvalidConfig(
            f"registries need oras ({error}); install it with: pip install 'outfitter[oci]'"
        ) from error
    try:
        yield _Session(place, _client(oras, requests, place, plain_http or place.is_loopback))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise SourceFailed(f"the registry {place.host} does not answer: {error}") from error


def _client(oras: Any, requests: Any, place: Place, insecure: bool) -> Any:
    """oras without its minutes of retries, with timeouts, and the sign-in that is asked for."""

    class Timed(requests.adapters.HTTPAdapter):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            return super().send(request, **options | {"timeout": TIMEOUT_S})

    scheme = "http" if insecure else "https"
    with requests.Session() as probe:
        probe.mount(f"{scheme}://", Timed())
        answer = probe.get(f"{scheme}://{place.host}/v2/", allow_redirects=False)
    asks = answer.headers.get("www-authenticate", "").lower()
    backend = "basic" if asks.startswith("basic") else "token"
    client = oras.provider.Registry(place.host, insecure=insecure, auth_backend=backend)
    for prefix in ("http://", "https://"):
        client.session.mount(prefix, Timed())
    client.session.headers["Accept-Encoding"] = "identity"
    client.do_request = functools.partial(_request, client, place)
    return client


def _request(client: Any, place: Place, *args: Any, **options: Any) -> Any:
    """What oras does for a request, once."""
    try:
        return type(client).do_request.__wrapped__(client, *args, **options)
    except (ValueError, AttributeError) as error:  # of oras: there is no login to answer with
        raise SourceFailed(
            f"the registry {place.host} refuses {place}: it asks for a login that"
            f" ~/.docker/config.json does not have ({type(error).__name__})"
        ) from error


class _Session:
    """One repository, as oras knows it."""

    def __init__(self, place: Place, client: Any) -> None:
        self._place, self._client = place, client
        self._container = client.get_container(f"{place.host}/{place.repository}")
        client.auth.load_configs(self._container)

    def manifest(self) -> bytes:
        """The bytes of the manifest under the tag; of a digest, checked."""
        wanted = self._place.tag
        url = self._url(f"manifests/{wanted}")
        with self._client.do_request(url, headers={"Accept": MANIFEST}, stream=True) as response:
            self._check(response, "manifest")
            data = _Body(response).read(MAX_MANIFEST + 1)
        if len(data) > MAX_MANIFEST:
            raise SourceFailed(f"the manifest has more than {MAX_MANIFEST} bytes")
        found = f"sha256:{Descriptor.of(MANIFEST, data).digest}"
        if ":" in wanted and found != wanted:
            raise SourceFailed(f"the registry gave the manifest {found} for {wanted}")
        return data

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob."""
        into = io.BytesIO()
        with self._blob(descriptor) as response:
            copy_checked(_Body(response), into, descriptor, no_progress)
        return into.getvalue()

    def download(self, descriptor: Descriptor, target: Path, progress: Progress) -> None:
        """The file itself, into a fresh path."""
        with self._blob(descriptor) as response, target.open("xb") as to:
            copy_checked(_Body(response), to, descriptor, progress)

    def upload_file(self, descriptor: Descriptor, file: Path, progress: Progress) -> None:
        """Upload a file, unless the registry has it."""
        with file.open("rb") as source:
            self._upload(descriptor, _Counted(source, descriptor.size, progress))

    def upload(self, descriptor: Descriptor, data: bytes) -> None:
        """Upload a small blob, unless the registry has it."""
        self._upload(descriptor, data)

    def upload_manifest(self, package: Package) -> None:
        """Make what was uploaded visible, byte for byte as it was packed."""
        url = self._url(f"manifests/{self._place.tag}")
        headers = {"Content-Type": MANIFEST}
        self._check(
            self._client.do_request(url, "PUT", data=package.manifest, headers=headers), "manifest"
        )

    def _upload(self, descriptor: Descriptor, body: Any) -> None:
        name = f"sha256:{descriptor.digest}"
        if self._client.blob_exists({"digest": name}, self._container):
            return
        url = httpx.URL(self._begin()).copy_merge_params({"digest": name})
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size),
        }
        if hasattr(self._client.auth, "_basic_auth"):  # oras would send the body once without
            headers |= self._client.auth.get_auth_header()
        self._check(self._client.do_request(str(url), "PUT", data=body, headers=headers), "blob")

    def _begin(self) -> str:
        """Where to upload a blob to."""
        url = self._url("blobs/uploads/")
        begun = self._client.do_request(url, "POST")
        if begun.status_code in (401, 403):  # the token is for reading: ask for one that writes
            self._client.auth.token = None
            begun = self._client.do_request(url, "POST")
        self._check(begun, "upload")
        return urljoin(url, str(begun.headers.get("location", "")))

    @contextmanager
    def _blob(self, descriptor: Descriptor) -> Iterator[Any]:
        name = f"sha256:{descriptor.digest}"
        with self._client.get_blob(self._container, name, stream=True) as response:
            self._check(response, f"blob {name}")
            yield response

    def _url(self, path: str) -> str:
        return f"{self._client.prefix}://{self._place.host}/v2/{self._place.repository}/{path}"

    def _check(self, response: Any, what: str) -> None:
        if response.status_code not in (200, 201, 202):
            raise SourceFailed(
                f"{self._place}: the registry answered {response.status_code} for the {what}"
            )


@dataclass
class _Body:
    """The bytes of an answer as they came, so that nothing can unfold in memory."""

    response: Any

    def read(self, size: int, /) -> bytes:
        found = []
        while size and (block := self.response.raw.read(size, decode_content=False)):
            found.append(bytes(block))
            size -= len(block)
        return b"".join(found)


@dataclass
class _Counted:
    """A file that tells what was read of it, and begins anew after its end."""

    source: Any
    size: int
    progress: Progress

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1, /) -> bytes:
        block: bytes = self.source.read(size)
        if not block:
            self.source.seek(0)
        self.progress(len(block), self.size)
        return block
