"""The URLs of a store's state: what can be used, and what of them may be shown. Pure."""

import re

from outfitter.transfer.allowed import Allowed
from taskvectors.errors import InvalidReference

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_HARMLESS = re.compile(r"[\w./-]*")
ORIGIN_SCHEMES = ("file", "s3", "gs", "az", "abfs", "sftp")
DATABASES = ("sqlite", "postgres", "postgresql", "postgresql+psycopg")
_DATABASE_ADVICE = (
    "use sqlite:////folder/catalog.sqlite3 or postgresql://user:password@host:5432/database"
)
_REDIS_ADVICE = "use redis://host:6379/0, rediss://user:password@host:6379/0 or unix:///socket"
_ORIGIN_ADVICE = "use s3://bucket/folder, file:///folder or an absolute path"
_PULL_ADVICE = "use the start of a URL, such as hf://owner/, https://host/folder/ or s3://bucket/"


def shown(url: str) -> str:
    """`url` without user, password and query, so that it may be printed and logged."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _HARMLESS.fullmatch(url) else "…"
    user, _, place = rest.rpartition("@")
    if "?" in user or "#" in user:  # the @ may be a part of a secret
        return f"{scheme}://…"
    return f"{scheme}://{re.split('[?#]', place)[0]}"


def scheme_of(url: str) -> str:
    """In lower case; empty for a plain path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def database_problem(url: str) -> str | None:
    """Why the catalog cannot be in the database `url`; None when it can."""
    from sqlalchemy import make_url  # slow to import
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        return _DATABASE_ADVICE
    if parts.drivername not in DATABASES:
        return _DATABASE_ADVICE
    if parts.database in (None, "", ":memory:"):
        return f"it names no database; {_DATABASE_ADVICE}"
    return None


def redis_problem(url: str) -> str | None:
    """Why there can be no Redis at `url`; None when there can."""
    from redis.connection import parse_url  # slow to import

    try:
        parts = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        return f"{error}; {_REDIS_ADVICE}" if "://" not in str(error) else _REDIS_ADVICE
    if scheme_of(url) == "unix" and not parts.get("path"):
        return f"it names no socket; {_REDIS_ADVICE}"
    return None


def origin_problem(url: str) -> str | None:
    """Why the shared folder cannot be `url`; None when it can."""
    from fsspec import get_filesystem_class  # slow to import

    scheme = scheme_of(url)
    if not scheme:
        return None if url.startswith("/") else _ORIGIN_ADVICE
    place = url.partition("://")[2]
    if scheme not in ORIGIN_SCHEMES or not place or (scheme == "file" and place[0] != "/"):
        return _ORIGIN_ADVICE
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        return f"{error}" + (": pip install 'outfitter[s3]'" if scheme == "s3" else "")
    return None


def pull_problem(prefix: str) -> str | None:
    """Why sources cannot be allowed by `prefix`; None when they can."""
    try:
        Allowed.parse([prefix])
    except InvalidReference:  # its message may hold a password
        return _PULL_ADVICE
    return None
