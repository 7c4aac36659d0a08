"""On whose behalf a request is served: a tag from whoever stands before vLLM, and a share. Pure.

Without the header all requests are of one tenant.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from taskvectors.errors import InvalidLoadout

TENANT_HEADER = b"x-taskvectors-tenant"
SHARE_HEADER = b"x-taskvectors-share"
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Tenant:
    """share: its part of the pool, 0 to 1; None for an equal part."""

    tag: str = ""
    share: float | None = None


UNTAGGED = Tenant()
"""Whoever asks without a tag."""
ASKING: ContextVar[Tenant] = ContextVar("asking", default=UNTAGGED)
"""The tenant of the request that the current task serves."""


def tenant_of(headers: Iterable[tuple[bytes, bytes]]) -> Tenant:
    """The tenant that headers name; raises InvalidLoadout for a tag or share that cannot be."""
    found = dict(headers)
    tag, share = found.get(TENANT_HEADER), found.get(SHARE_HEADER)
    if tag is None:
        return UNTAGGED
    text = tag.decode("latin-1")
    if not _TAG.fullmatch(text):
        raise InvalidLoadout(
            f"{TENANT_HEADER.decode()} must be up to 64 letters, digits, '.', '_' and '-',"
            f" not {text[:80]!r}"
        )
    return Tenant(text, None if share is None else _share(share.decode("latin-1")))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidLoadout(
            f"{SHARE_HEADER.decode()} must be a number from 0 to 1, not {text[:80]!r}"
        )
    return share
