"""Where a source is: its URL in parts, without the spellings that hide what they mean."""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from outfitter.errors import shorten
from taskvectors.errors import InvalidReference

WEB = {"http": 80, "https": 443}
HOSTS = (*WEB, "outfitter", "oci")
"""Schemes whose second part is a host; of others it is an owner or a bucket, in its own case."""
LOCAL = ("file", "oci")
"""Schemes that may name folders of this machine."""
SUFFIX = ".safetensors"

MAX_URL = 4096
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}(?=:)")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]*:[0-9a-f:.]*")
_AUTHORITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SPELLED = re.compile(r"[\x21-\x7e]+")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_IPV6 = re.compile(r"(?<=//)\[[0-9A-Fa-f:.]*\]")


@dataclass(frozen=True)
class Location:
    """A URL that means what it says: no `..`, no userinfo, no fragment, no two sources in one.

    authority: host and port of HOSTS (lower case, the default port left out), else the owner or
    bucket. segments: of the path, as they were spelled. query: of http and https only.
    is_absolute: false for `oci:folder`, which counts from the current folder.
    """

    scheme: str
    authority: str
    segments: tuple[str, ...]
    query: str = ""
    is_absolute: bool = True

    @classmethod
    def parse(cls, url: str) -> "Location":
        """Read `scheme://…` or `oci:…`; raises InvalidReference."""
        _check_spelling(url)
        try:
            parts = urlsplit(url)
            authority = _authority(parts)
        except ValueError as error:
            raise _invalid(url, str(error)) from error
        if "?" in url and parts.scheme not in WEB:
            raise _invalid(url, "only http and https have a ?query")
        is_absolute = parts.path.startswith("/") or bool(authority)
        if not is_absolute and parts.scheme != "oci":
            raise _invalid(url, f"write {parts.scheme}://, and what to fetch")
        segments = _segments(url, parts.path)
        return cls(parts.scheme, authority, segments, parts.query, is_absolute)

    @property
    def path(self) -> str:
        """Of the URL."""
        return "/" * self.is_absolute + "/".join(self.segments)

    @property
    def url(self) -> str:
        """All of it, the query too, which may hold a secret."""
        return f"{self}?{self.query}" if self.query else str(self)

    @property
    def last(self) -> str:
        """The last segment, or the authority of a URL without any."""
        return self.segments[-1] if self.segments else self.authority

    @property
    def is_file(self) -> bool:
        """Whether it names a safetensors file, and not a folder or a reference."""
        return bool(self.segments) and self.last.endswith(SUFFIX)

    @property
    def name(self) -> str | None:
        """The last part of a name that would fit."""
        stem = self.last.removesuffix(SUFFIX).partition("@")[0]
        return stem if _PART.fullmatch(stem) else None

    def __str__(self) -> str:
        """Without the query, which may hold a secret."""
        slashes = "" if self.scheme == "oci" and not self.authority else "//"
        return f"{self.scheme}:{slashes}{self.authority}{self.path}"

    def child(self, name: str) -> "Location":
        """What `name` is in this folder."""
        return Location(self.scheme, self.authority, (*self.segments, name), self.query)


def scheme_of(url: str) -> str:
    """The part before the first colon, in lower case; empty where there is none."""
    match = _SCHEME.match(url)
    return match[0].lower() if match else ""


def _check_spelling(url: str) -> None:
    if len(url) > MAX_URL:
        raise _invalid(url, f"it has {len(url)} characters; at most {MAX_URL} are read")
    if not _SPELLED.fullmatch(url):
        raise _invalid(url, "write spaces and other characters percent-encoded, hosts in ASCII")
    for mark, why in (
        ("\\", "write / between the parts of a path"),
        ("::", "name one source, without ::"),
        ("#", "there is no part of a source to name after #"),
    ):
        if mark in _IPV6.sub("", url, count=1):
            raise _invalid(url, why)
    if not scheme_of(url):
        raise _invalid(url, "begin with a scheme, such as https:// or file:///")


def _authority(parts: SplitResult) -> str:
    """Raises ValueError."""
    if "@" in parts.netloc:
        raise ValueError("leave out user and password")
    if parts.scheme in LOCAL and not parts.netloc:
        return ""
    if parts.scheme == "file":
        raise ValueError("a local path begins with file:///")
    if parts.scheme not in HOSTS:
        if not _AUTHORITY.fullmatch(parts.netloc):
            raise ValueError(f"{parts.netloc[:80]!r} is no owner or bucket")
        return parts.netloc
    host, port = parts.hostname or "", parts.port
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host[:80]!r} is no host")
    shown = f"[{host}]" if ":" in host else host
    return shown if port in (None, WEB.get(parts.scheme)) else f"{shown}:{port}"


def _segments(url: str, path: str) -> tuple[str, ...]:
    inner = path.removeprefix("/").removesuffix("/")
    segments = tuple(inner.split("/")) if inner else ()
    for segment in segments:
        plain = _decoded(segment)
        if plain in ("", ".", "..") or any(c in plain for c in "/\\\0"):
            raise _invalid(url, f"{segment[:80]!r} is no part of a plain path")
    return segments


def _decoded(segment: str) -> str:
    """As the most eager reader on the way would read it."""
    for _ in range(8):
        plain = unquote(segment, errors="replace")
        if plain == segment:
            break
        segment = plain
    return segment


def _invalid(url: str, why: str) -> InvalidReference:
    return InvalidReference(shorten(f"invalid source {url[:200]!r}: {why}"))
