"""API keys: how they look, when one is good, and what the engine's cache is salted with."""

import hashlib
import hmac
from dataclasses import replace

import pytest

from outfitter.control import keys
from outfitter.control.keys import Holder, Token, admit, token_of
from outfitter.control.principal import OPEN, Principal, Scope
from outfitter.control.salting import salted
from outfitter.errors import ApiError

TOKEN = Token("ofk_q4euduet2u", "G1h0F-szKQFjPiHYlFMCnlazKzWH98-PELtIVI174v4")
HOLDER = Holder(
    TOKEN.id,
    TOKEN.hash,
    "acme",
    frozenset({Scope.INFER}),
    frozenset({"acme"}),
    cache_secret=b"s" * 32,
)


def test_a_key_shows_its_id_and_hides_its_secret() -> None:
    """Only the hash of 256 random bits is kept, and no text of the objects has the secret."""
    assert Token.parse(TOKEN.text) == TOKEN
    assert TOKEN.text == f"{TOKEN.id}_{TOKEN.secret}"
    assert 12 <= len(TOKEN.id) <= 16
    assert TOKEN.hash == hashlib.sha256(TOKEN.secret.encode()).hexdigest()
    assert Token.new() != TOKEN
    principal = admit(TOKEN, HOLDER, 0)
    for text in (repr(TOKEN), repr(HOLDER), repr(principal)):
        assert TOKEN.secret not in text
        assert TOKEN.hash not in text
        assert "sss" not in text


@pytest.mark.parametrize(
    "text",
    ["", "ofk_", "sk-abc", TOKEN.id, f"{TOKEN.text}x", f"{TOKEN.id}_{'ä' * 43}", f" {TOKEN.text}"],
)
def test_what_is_no_key_is_known_without_a_database(text: str) -> None:
    """Its form tells."""
    assert Token.parse(text) is None


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (None, "Bearer"),
        ("", "Bearer"),
        ("Bearer", 'Bearer error="invalid_token"'),
        (f"Basic {TOKEN.text}", 'Bearer error="invalid_token"'),
        (TOKEN.text, 'Bearer error="invalid_token"'),
    ],
)
def test_a_request_without_a_key_is_told_how_to_send_one(
    header: str | None, challenge: str
) -> None:
    """401 as OpenAI says it; the message does not repeat what was sent."""
    with pytest.raises(ApiError, match="Authorization: Bearer ofk_") as caught:
        token_of(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.headers == {"www-authenticate": challenge}
    assert TOKEN.secret not in str(caught.value)


def test_a_good_key_is_admitted() -> None:
    """The scheme's case does not matter."""
    token = token_of(f"bEARER {TOKEN.text}")
    principal = admit(token, HOLDER, 0)
    assert principal == Principal("acme", TOKEN.id, frozenset({Scope.INFER}), frozenset({"acme"}))
    assert principal.cache_secret == b"s" * 32


@pytest.mark.parametrize(
    ("changes", "now", "status", "text"),
    [
        ({"revoked": 5}, 4, 401, "was revoked"),
        ({"expires": 5}, 5, 401, "has expired"),
        ({"is_disabled": True}, 0, 403, "tenant 'acme' is disabled"),
    ],
)
def test_a_key_that_is_over_is_refused(changes: dict, now: float, status: int, text: str) -> None:
    """Its holder is told why; whoever has only the id is not."""
    holder = replace(HOLDER, **changes)
    with pytest.raises(ApiError, match=text) as caught:
        admit(TOKEN, holder, now)
    assert caught.value.status == status
    with pytest.raises(ApiError, match="incorrect API key"):
        admit(Token(TOKEN.id, Token.new().secret), holder, now)
    admit(TOKEN, replace(HOLDER, expires=5), 4.9)


def test_an_unknown_id_is_compared_like_a_wrong_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time, against a hash that nothing has."""
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    told = []
    for holder in (None, HOLDER):
        with pytest.raises(ApiError) as caught:
            admit(Token(TOKEN.id, "x" * 43), holder, 0)
        told.append((caught.value.body, caught.value.headers))
    assert told[0] == told[1]
    assert [len(other) for _, other in compared] == [64, 64]


SALTED = {"cache_salt", "model"}


def test_each_tenant_has_its_own_salt() -> None:
    """Always the same one, which tells nothing of the secret; the client's own goes into it."""
    one, other = (
        Principal(n, n, frozenset(), cache_secret=n.encode() * 8) for n in ("acme", "umb")
    )
    plain = salted({"model": "m"}, one, frozenset(SALTED))
    assert plain == salted({"model": "m"}, one, None)
    assert len(str(plain["cache_salt"])) == 43
    own = salted({"model": "m", "cache_salt": "mine"}, one, frozenset(SALTED))
    foreign = salted({"model": "m", "cache_salt": "mine"}, other, frozenset(SALTED))
    raw = salted({"cache_salt": str(plain["cache_salt"])}, other, frozenset(SALTED))
    tenant = salted({"cache_salt": "tenant"}, one, frozenset(SALTED))
    salts = [str(body["cache_salt"]) for body in (plain, own, foreign, raw, tenant)]
    assert len(set(salts)) == 5
    assert "mine" not in "".join(salts)


def test_where_the_engine_has_no_salts_tenants_are_told_so() -> None:
    """Rather than finding each other's prompts by time; what reads no cache needs none."""
    one = Principal("acme", "ofk_a", frozenset(), cache_secret=b"1")
    with pytest.raises(ApiError, match="cannot keep tenants apart") as caught:
        salted({"model": "m"}, one, frozenset({"model"}))
    assert (caught.value.status, caught.value.code) == (404, "unsupported_route")
    assert salted({"model": "m"}, OPEN, frozenset({"model"})) == {"model": "m"}


def test_open_mode_leaves_salts_alone() -> None:
    """Where there is one tenant, the client knows better."""
    body = {"model": "m", "cache_salt": "raw"}
    assert salted(body, OPEN, frozenset(SALTED)) == body


@pytest.mark.parametrize("salt", ["", "x" * 1025, 5, ["a"], True])
def test_a_salt_that_is_none_is_refused(salt: object) -> None:
    """By name."""
    one = Principal("acme", "ofk_a", frozenset(), cache_secret=b"1")
    with pytest.raises(ApiError, match="cache_salt must be a string of 1 to 1024") as caught:
        salted({"cache_salt": salt}, one, frozenset(SALTED))
    assert (caught.value.status, caught.value.param) == (400, "cache_salt")
