"""The salt of the engine's prefix cache: one tenant never hits, nor times, another's blocks. Pure.

In open mode there is one tenant, and the client's own salt is relayed as it is.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping

from outfitter.control.principal import Principal
from outfitter.errors import ApiError
from taskvectors.values import kind_of

CACHE_SALT = "cache_salt"
MAX_SALT = 1024


def salted(
    body: Mapping[str, object], principal: Principal, known: frozenset[str] | None
) -> dict[str, object]:
    """`body` with the salt that the engine is told.

    known: the fields that the engine has; None when nobody can tell, and then it is told. Raises
    ApiError: 400 for a salt that is none, 404 where the engine takes none.
    """
    fields = dict(body)
    if not principal.cache_secret:
        return fields
    if known is not None and CACHE_SALT not in known:
        message = f"the served engine cannot keep tenants apart here: it knows no {CACHE_SALT}"
        raise ApiError(404, message, "unsupported_route")
    own = fields.get(CACHE_SALT)
    if own is not None and not (isinstance(own, str) and 0 < len(own) <= MAX_SALT):
        what = f"a string of {len(own)} characters" if isinstance(own, str) else kind_of(own)
        message = f"{CACHE_SALT} must be a string of 1 to {MAX_SALT} characters, not {what}"
        raise ApiError(400, message, "invalid_parameter", CACHE_SALT)
    fields[CACHE_SALT] = salt_of(principal, own)
    return fields


def salt_of(principal: Principal, own: str | None) -> str:
    """A tenant's salt, and of those that it chooses itself another one for each."""
    text = b"tenant" if own is None else b"own:" + own.encode("utf-8", "surrogatepass")
    digest = hmac.new(principal.cache_secret, text, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
