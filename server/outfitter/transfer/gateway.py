"""Another Outfitter as a source: `https://host/ns/name@3`, `outfitter://host:8000/ns/name@stable`.

`outfitter://` is https, and http on the machine itself.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from outfitter.client import KEY_VARIABLE
from outfitter.errors import SourceFailed
from outfitter.state.records import Details
from outfitter.transfer.allowed import Allowed
from outfitter.transfer.download import download
from outfitter.transfer.fetched import Fetched, Progress
from outfitter.transfer.locations import Location
from outfitter.transfer.web import Web
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference

API = ("v1", "task_vectors")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def fetch(
    location: Location,
    target: Path,
    *,
    limit: int,
    progress: Progress,
    allowed: Allowed | None = None,
) -> Fetched:
    """Ask what the reference stands for, then fetch that file and check its digest.

    Raises InvalidReference, SourceFailed, SourceNotAllowed, OSError.
    """
    api, reference = _api_of(location)
    with Web(allowed=allowed, headers=_credentials(location, allowed)) as web:
        about = web.json(f"{api}/{_path(reference)}")
        digest, exact = _identity(location, about)
        got = download(web, f"{api}/{_path(exact)}/file", target, limit=limit, progress=progress)
        if got != digest:
            raise SourceFailed(f"{location} gave a file with digest {got}, not {digest}")
        card = web.document(f"{api}/{_path(exact)}/card") if about.get("has_card", True) else None
        signed = about.get("is_signed", True)
        signature = web.document(f"{api}/{_path(exact)}/signature") if signed else None
    return Fetched(
        source=f"{api.removesuffix('/'.join(('', *API)))}/{exact}",
        revision=f"sha256:{digest}",
        name=exact.name,
        details=_details(about, card),
        signature=_text(signature),
    )


def _credentials(location: Location, allowed: Allowed | None) -> dict[str, str]:
    """A person's own key, where the person says that an Outfitter is asked; never a server's."""
    key = os.environ.get(KEY_VARIABLE)
    if not key or location.scheme != "outfitter" or allowed is not None:
        return {}
    return {"authorization": f"Bearer {key}"}


def _api_of(location: Location) -> tuple[str, Reference]:
    """The URL of the routes, and what is asked of them. Raises InvalidReference."""
    segments = location.segments
    if segments[-4:-2] == API:
        before, rest = segments[:-4], segments[-2:]
    elif segments[-3:-1] == API:
        before, rest = segments[:-3], segments[-1:]
    else:
        before, rest = (), segments
    if not 1 <= len(rest) <= 2 or location.query:
        raise InvalidReference(
            f"invalid source {str(location)[:200]!r}: name a task vector of a gateway as"
            " https://host/namespace/name@3, or a file that ends in .safetensors"
        )
    scheme = _scheme(location) if location.scheme == "outfitter" else location.scheme
    return "/".join((f"{scheme}://{location.authority}", *before, *API)), Reference.parse(
        "/".join(rest)
    )


def _scheme(location: Location) -> str:
    host = re.sub(r":\d+$", "", location.authority).strip("[]")
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return "http" if is_here else "https"


def _identity(location: Location, about: Mapping[str, Any]) -> tuple[str, Reference]:
    """The digest, and the reference that always stands for it; raises SourceFailed."""
    name, version, digest = (about.get(key) for key in ("name", "version", "digest"))
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise SourceFailed(f"{location} does not answer as an Outfitter: there is no digest")
    if not isinstance(name, str) or not isinstance(version, int):
        return match[1], Reference(digest=match[1])
    try:
        return match[1], Reference.parse(f"{name}@{version}")
    except InvalidReference as error:
        raise SourceFailed(f"{location} does not answer as an Outfitter: {error}") from error


def _details(about: Mapping[str, Any], card: bytes | None) -> Details:
    """What the other gateway says; the own one validates it."""
    languages, labels = (
        tuple(entry for entry in value if isinstance(entry, str))
        if isinstance(value := about.get(key), list)
        else ()
        for key in ("languages", "labels")
    )
    license, description = (
        value if isinstance(value := about.get(key), str) else None
        for key in ("license", "description")
    )
    return Details(license, languages, description, _text(card), labels)


def _text(body: bytes | None) -> str | None:
    return body.decode(errors="replace") if body else None


def _path(reference: Reference) -> str:
    return quote(str(reference), safe="/@:")
