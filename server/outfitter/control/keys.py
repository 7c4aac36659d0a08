"""API keys: how they look, how they are kept, and whether one is good. Pure but for randomness.

`ofk_<id>_<secret>`: the id is visible and stored, of the secret only its sha256. The secret has 256
random bits, so that nothing slower than sha256 is needed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from outfitter.control.principal import Principal, Scope
from outfitter.errors import ApiError

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 10
_TOKEN = re.compile(r"(ofk_[a-z0-9]{8,12})_([A-Za-z0-9_-]{43})")
_NO_HASH = hashlib.sha256(b"no key has this secret").hexdigest()


@dataclass(frozen=True)
class Token:
    """A key as its holder sends it."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> "Token":
        """One that nobody had before."""
        id_ = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        return cls(f"ofk_{id_}", secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> "Token | None":
        """None for what cannot be a key."""
        match = _TOKEN.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    @property
    def text(self) -> str:
        """What is shown once, and sent with every request."""
        return f"{self.id}_{self.secret}"

    @property
    def hash(self) -> str:
        """What is stored of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


@dataclass(frozen=True)
class Holder:
    """A key with its tenant, as the database has them. Times: Unix, seconds."""

    id: str
    hash: str = field(repr=False)
    tenant: str
    scopes: frozenset[Scope]
    namespaces: frozenset[str]
    expires: int | None = None
    revoked: int | None = None
    is_disabled: bool = False
    limits: Mapping[str, object] = field(default_factory=dict, compare=False)
    cache_secret: bytes = field(default=b"", repr=False)


def admit(token: Token, holder: Holder | None, now: float) -> Principal:
    """On whose behalf a request with this key is served; raises ApiError (401, 403).

    An unknown id costs as much as a wrong secret, and neither is told from the other.
    """
    expected = _NO_HASH if holder is None else holder.hash
    is_right = hmac.compare_digest(token.hash, expected)
    if holder is None or not is_right:
        raise refused("incorrect API key")
    if holder.revoked is not None:
        raise refused(f"the API key {holder.id} was revoked")
    if holder.expires is not None and now >= holder.expires:
        raise refused(f"the API key {holder.id} has expired")
    if holder.is_disabled:
        message = f"the tenant {holder.tenant!r} is disabled; ask the operator"
        raise ApiError(403, message, "tenant_disabled")
    return Principal(
        holder.tenant,
        holder.id,
        holder.scopes,
        holder.namespaces,
        holder.limits,
        holder.cache_secret,
    )


def sent_key(headers: Mapping[str, str]) -> str | None:
    """What a request says of its key, as in an Authorization header; Anthropic's clients have
    another one."""
    own = headers.get("x-api-key")
    return headers.get("authorization") or (None if own is None else f"Bearer {own}")


def token_of(authorization: str | None) -> Token:
    """The key in an Authorization header; raises ApiError (401)."""
    if not authorization:
        raise refused("no API key: send `Authorization: Bearer ofk_…`", is_missing=True)
    scheme, _, text = authorization.partition(" ")
    token = Token.parse(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise refused("incorrect API key: send `Authorization: Bearer ofk_…`")
    return token


def refused(message: str, *, is_missing: bool = False) -> ApiError:
    """401 in OpenAI's shape."""
    challenge = "Bearer" if is_missing else 'Bearer error="invalid_token"'
    headers = {"www-authenticate": challenge}
    return ApiError(401, message, "invalid_api_key", headers=headers)
