"""Tenants, keys, rights and the trail in a database, and keys that several gateways know."""

import contextlib
import secrets
import time
from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from outfitter.accounts import Accounts, By
from outfitter.control.keys import Token
from outfitter.control.outcome import Outcome
from outfitter.control.principal import LOCAL, Principal, Scope
from outfitter.control.rights import Access, Kind, Viewer, Visibility
from outfitter.errors import (
    ApiError,
    CatalogConflict,
    CatalogUnavailable,
    InvalidDetails,
    InvalidTenant,
    TenantNotFound,
)
from outfitter.state import keyring as keyring_module
from outfitter.state import trail as trail_module
from outfitter.state import uses as uses_module
from outfitter.state.catalog import Catalog
from outfitter.state.changes import Changes
from outfitter.state.resolver import Resolver
from outfitter.state.tenancy import TrailQuery
from tests.outfitter.harness import wait_for
from tests.outfitter.state.making import loadout_of, publish, ref

BY = By(Principal("operator", "ofk_operator", frozenset({Scope.ADMIN})), "req-1")


class Replica:
    """One gateway's view of the database."""

    def __init__(self, url: str) -> None:
        self.catalog = Catalog(url)
        self.resolver = Resolver(self.catalog, Changes(None, "x"))
        self.accounts = Accounts(self.catalog.database, self.resolver)

    def tells(self, text: str) -> Principal:
        """On whose behalf a key is sent."""
        token = Token.parse(text)
        assert token is not None
        keyring = self.accounts.keyring
        return keyring.remembered(token) or keyring.principal(token)

    def close(self) -> None:
        self.resolver.close()
        self.catalog.close()


@pytest.fixture
def replica(database_url: str) -> Iterator[Replica]:
    found = Replica(database_url)
    yield found
    found.close()


@pytest.fixture
def accounts(replica: Replica) -> Accounts:
    return replica.accounts


def is_let_in(replica: Replica, text: str) -> bool:
    try:
        replica.tells(text)
    except ApiError:
        return False
    return True


def refusal(replica: Replica, text: str) -> str:
    with pytest.raises(ApiError) as caught:
        replica.tells(text)
    return str(caught.value)


def test_a_tenant_owns_the_namespace_of_its_name(accounts: Accounts) -> None:
    """And those that it is given, as long as they are nobody else's."""
    made = accounts.create_tenant(BY, "acme")
    assert (made.namespaces, made.is_disabled, dict(made.limits)) == (("acme",), False, {})
    accounts.create_tenant(BY, "umbra")
    assert accounts.add_namespace(BY, "acme", "acme-labs").namespaces == ("acme", "acme-labs")
    with pytest.raises(CatalogConflict, match="'acme-labs' belongs to the tenant 'acme'"):
        accounts.add_namespace(BY, "umbra", "acme-labs")
    with pytest.raises(CatalogConflict, match="keeps the namespace of its own name"):
        accounts.remove_namespace(BY, "acme", "acme")
    with pytest.raises(TenantNotFound, match="has no namespace 'umbra'"):
        accounts.remove_namespace(BY, "acme", "umbra")
    assert accounts.remove_namespace(BY, "acme", "acme-labs").namespaces == ("acme",)
    with pytest.raises(CatalogConflict, match="'acme' is there already"):
        accounts.create_tenant(BY, "acme")
    assert [tenant.name for tenant in accounts.tenants()] == ["acme", "umbra"]
    assert [tenant.name for tenant in accounts.tenants(1, "acme")] == ["umbra"]


@pytest.mark.parametrize("name", ["", "Acme", "-a", "a/b", "a" * 97, "open", "local", "ä"])
def test_a_name_that_cannot_be_a_tenant_is_refused(accounts: Accounts, name: str) -> None:
    """Lower case only: namespaces compare without it."""
    with pytest.raises(InvalidTenant, match="invalid tenant"):
        accounts.create_tenant(BY, name)


def test_a_tenant_goes_when_it_has_no_names(replica: Replica) -> None:
    """Nobody who is called so later inherits vectors, keys or what was shared with it."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    accounts.create_tenant(BY, "umbra")
    publish(replica.catalog, "acme/json", 1)
    publish(replica.catalog, "umbra/xml", 2)
    accounts.set_access(BY, Kind.TASK_VECTOR, "umbra/xml", share("acme"))
    _, text = accounts.create_key(BY, "acme", "k", ["infer"])
    with pytest.raises(CatalogConflict, match="still has 'acme/json'"):
        accounts.delete_tenant(BY, "acme")
    replica.catalog.delete(ref("acme/json"))
    accounts.delete_tenant(BY, "acme")
    assert refusal(replica, text) == "incorrect API key"
    with pytest.raises(TenantNotFound):
        accounts.tenant("acme")
    accounts.create_tenant(BY, "acme")
    assert accounts.access(Kind.TASK_VECTOR, "umbra/xml") == share()


def share(*tenants: str, visibility: Visibility = Visibility.PRIVATE) -> Access:
    return Access(visibility, frozenset(tenants))


def test_limits_are_merged_and_checked(replica: Replica) -> None:
    """By whoever knows what they mean; null takes one away."""

    def check(limits: object) -> None:
        if limits == {"requests": -1}:
            raise InvalidTenant("requests must be 0 or more")

    accounts = Accounts(replica.catalog.database, replica.resolver, check)
    accounts.create_tenant(BY, "acme")
    accounts.change_limits(BY, "acme", {"requests": 5, "tokens": 7})
    assert accounts.change_limits(BY, "acme", {"tokens": None}).limits == {"requests": 5}
    with pytest.raises(InvalidTenant, match="0 or more"):
        accounts.change_limits(BY, "acme", {"requests": -1})
    with pytest.raises(InvalidTenant, match="more than 16384 characters"):
        accounts.change_limits(BY, "acme", {"x": "y" * 20_000})
    assert accounts.tenant("acme").limits == {"requests": 5}
    _, text = accounts.create_key(BY, "acme", "k", ["infer"])
    keyring = replica.accounts.keyring
    assert keyring.limits_of("acme") == {}
    assert replica.tells(text).limits == {"requests": 5}
    assert keyring.limits_of("acme") == {"requests": 5}
    assert keyring.namespaces_of("acme") == ("acme",)
    accounts.change_limits(BY, "acme", {"requests": 9})
    replica.tells(text)
    assert keyring.limits_of("acme") == {"requests": 9}
    assert (keyring.limits_of("nobody"), keyring.namespaces_of("nobody")) == ({}, ())


def test_a_key_is_kept_without_its_secret(replica: Replica) -> None:
    """Nothing in any table has it."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    key, text = accounts.create_key(BY, "acme", "prod", ["publish", "infer"], expires_s=60)
    assert text.startswith(f"{key.id}_")
    assert key.scopes == (Scope.INFER, Scope.PUBLISH)
    assert key.expires is not None
    assert 58 <= key.expires - time.time() <= 61
    from outfitter.state.models import Base

    secret = text.removeprefix(f"{key.id}_")
    with replica.catalog.database.reading() as session:
        for table in Base.metadata.tables.values():
            assert secret not in str(session.execute(table.select()).all())
    principal = replica.tells(text)
    assert (principal.tenant, principal.key) == ("acme", key.id)
    assert principal.namespaces == {"acme"}


@pytest.mark.parametrize(
    ("name", "scopes", "text"),
    [
        ("", ["infer"], "1 to 128 printable"),
        ("a\nb", ["infer"], "1 to 128 printable"),
        ("k", [], "needs a scope"),
        ("k", ["root"], "unknown scope 'root'; choose infer, publish, operate, admin"),
    ],
)
def test_a_key_that_cannot_be_is_refused(
    accounts: Accounts, name: str, scopes: list[str], text: str
) -> None:
    """With what would be right."""
    accounts.create_tenant(BY, "acme")
    with pytest.raises(InvalidTenant, match=text):
        accounts.create_key(BY, "acme", name, scopes)


def test_a_revoked_key_stops_everywhere(replica: Replica, database_url: str) -> None:
    """Here at once, on another gateway when it next confirms the generation: within BOUND_S."""
    other = Replica(database_url)
    replica.accounts.create_tenant(BY, "acme")
    key, text = replica.accounts.create_key(BY, "acme", "k", ["infer"])
    assert other.tells(text) == replica.tells(text)
    replica.accounts.revoke_key(BY, "acme", key.id)
    assert "was revoked" in refusal(replica, text)
    wait_for(lambda: not is_let_in(other, text))
    assert "was revoked" in refusal(other, text)
    other.close()


def test_rotation_gives_a_new_key_and_the_old_one_a_grace(replica: Replica) -> None:
    """Both work until it is over; a key that is over is not rotated."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    key, text = accounts.create_key(BY, "acme", "k", ["infer", "publish"], expires_s=1000)
    new, new_text, old = accounts.rotate_key(BY, "acme", key.id, 60)
    assert (new.name, new.scopes, new.tenant) == (key.name, key.scopes, "acme")
    assert new.id != key.id
    assert 995 <= (new.expires or 0) - time.time() <= 1001
    assert 55 <= (old.expires or 0) - time.time() <= 61
    assert replica.tells(text).key == key.id
    assert replica.tells(new_text).key == new.id
    accounts.rotate_key(BY, "acme", key.id, 0)
    assert "has expired" in refusal(replica, text)
    with pytest.raises(CatalogConflict, match="is over"):
        accounts.rotate_key(BY, "acme", key.id, 60)
    with pytest.raises(TenantNotFound, match="has no key"):
        accounts.rotate_key(BY, "acme", "ofk_nobody", 60)
    with pytest.raises(InvalidTenant, match="unsupported lifetime"):
        accounts.rotate_key(BY, "acme", new.id, -1)


def test_a_tenant_has_no_power_over_anothers_key(accounts: Accounts) -> None:
    """The id alone does not do."""
    accounts.create_tenant(BY, "acme")
    accounts.create_tenant(BY, "umbra")
    key, _ = accounts.create_key(BY, "acme", "k", ["infer"])
    with pytest.raises(TenantNotFound, match="'umbra' has no key"):
        accounts.revoke_key(BY, "umbra", key.id)


def test_a_disabled_tenant_gets_in_no_more(replica: Replica) -> None:
    """Until it is enabled again."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    _, text = accounts.create_key(BY, "acme", "k", ["infer"])
    replica.tells(text)
    accounts.set_disabled(BY, "acme", True)
    assert "is disabled" in refusal(replica, text)
    accounts.set_disabled(BY, "acme", False)
    replica.tells(text)


def test_guessing_fills_no_memory_and_drives_out_no_good_key(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that nobody has are remembered apart, and few of them."""
    monkeypatch.setattr(keyring_module, "MAX_UNKNOWN", 8)
    replica.accounts.create_tenant(BY, "acme")
    _, text = replica.accounts.create_key(BY, "acme", "k", ["infer"])
    replica.tells(text)
    for _ in range(40):
        assert refusal(replica, Token.new().text) == "incorrect API key"
    assert len(replica.accounts.keyring) == 9
    asked: list[str] = []
    find = replica.accounts.keyring._find
    monkeypatch.setattr(
        replica.accounts.keyring, "_find", lambda id_: (asked.append(id_), find(id_))[1]
    )
    replica.tells(text)
    assert asked == []


def test_the_same_unknown_key_is_looked_up_once(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a wrong key costs the database nothing more."""
    asked: list[str] = []
    monkeypatch.setattr(replica.accounts.keyring, "_find", lambda id_: asked.append(id_))
    text = Token.new().text
    for _ in range(5):
        refusal(replica, text)
    assert len(asked) == 1


def test_known_keys_outlast_the_database_for_a_while(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown ones are told to come back, and so is everybody when the time is over."""
    replica.accounts.create_tenant(BY, "acme")
    _, text = replica.accounts.create_key(BY, "acme", "k", ["infer"])
    replica.tells(text)

    def away(*_: object) -> None:
        raise CatalogUnavailable("the catalog does not answer")

    monkeypatch.setattr(replica.resolver.generation, "_read", away)
    monkeypatch.setattr(replica.accounts.keyring, "_find", away)
    replica.resolver.generation.changed()
    assert replica.tells(text).tenant == "acme"
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    assert refusal(replica, wrong) == "incorrect API key"
    with pytest.raises(CatalogUnavailable):
        replica.tells(Token.new().text)
    monkeypatch.setattr(keyring_module, "OUTAGE_S", 0.0)
    with pytest.raises(CatalogUnavailable):
        replica.tells(text)


def test_a_key_that_was_revoked_here_does_not_outlast_an_outage(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if nobody asked for it since."""
    replica.accounts.create_tenant(BY, "acme")
    key, text = replica.accounts.create_key(BY, "acme", "k", ["infer"])
    replica.tells(text)
    replica.accounts.revoke_key(BY, "acme", key.id)

    def away() -> int:
        raise CatalogUnavailable("the catalog does not answer")

    monkeypatch.setattr(replica.resolver.generation, "_read", away)
    with pytest.raises(CatalogUnavailable):
        replica.tells(text)


@pytest.mark.parametrize("ending", ["disable", "delete", "rotate", "namespace"])
def test_what_was_ended_here_does_not_outlast_an_outage(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Keys of a tenant that is disabled, deleted or owns less, and a key that was replaced."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    accounts.add_namespace(BY, "acme", "more")
    key, text = accounts.create_key(BY, "acme", "k", ["infer"])
    replica.tells(text)
    end = {
        "disable": lambda: accounts.set_disabled(BY, "acme", True),
        "delete": lambda: accounts.delete_tenant(BY, "acme"),
        "rotate": lambda: accounts.rotate_key(BY, "acme", key.id, 0),
        "namespace": lambda: accounts.remove_namespace(BY, "acme", "more"),
    }
    end[ending]()

    def away() -> int:
        raise CatalogUnavailable("the catalog does not answer")

    monkeypatch.setattr(replica.resolver.generation, "_read", away)
    with pytest.raises(CatalogUnavailable):
        replica.tells(text)


def test_changes_are_in_the_trail(accounts: Accounts) -> None:
    """Who, with which key and request, what and how; by pages and filters."""
    accounts.create_tenant(BY, "acme")
    key, text = accounts.create_key(By(), "acme", "k", ["infer"])
    accounts.set_access(BY, Kind.TASK_VECTOR, "acme/json", share("umbra"))
    accounts.note(BY, "task_vector.delete", "acme/json")
    page, after = accounts.changes(TrailQuery())
    assert after is None
    assert [(entry.action, entry.subject) for entry in page] == [
        ("task_vector.delete", "acme/json"),
        ("task_vector.access", "acme/json"),
        ("key.create", key.id),
        ("tenant.create", "acme"),
    ]
    assert page[1].detail == {"visibility": "private", "shared_with": ["umbra"]}
    assert (page[3].tenant, page[3].key, page[3].request_id) == (
        "operator",
        "ofk_operator",
        "req-1",
    )
    assert (page[2].tenant, page[2].key) == (LOCAL.tenant, None)
    assert text not in str(page)
    first, after = accounts.changes(TrailQuery(limit=3))
    assert [*first, *accounts.changes(TrailQuery(limit=3, after=after))[0]] == [*page]
    with pytest.raises(InvalidDetails, match="invalid cursor"):
        accounts.changes(TrailQuery(tenant="operator", after=after))
    for query in (
        TrailQuery(tenant="operator", action="tenant.create"),
        TrailQuery(subject="acme", since=page[3].at, until=page[3].at + 1, key="ofk_operator"),
    ):
        assert accounts.changes(query)[0] == (page[3],)
    assert accounts.changes(TrailQuery(until=page[3].at))[0] == ()


def test_a_change_that_fails_is_not_in_the_trail(accounts: Accounts) -> None:
    """They are one transaction."""
    accounts.create_tenant(BY, "acme")
    with pytest.raises(CatalogConflict):
        accounts.create_tenant(BY, "acme")
    assert len(accounts.changes(TrailQuery())[0]) == 1


def outcome(key: str | None, loadout: str, tenant: str = "acme") -> Outcome:
    who = Principal(tenant, key, frozenset({Scope.INFER}))
    return Outcome("r", who, "/v1/completions", "m", None, loadout, False, 0.0)


def test_which_key_used_which_loadout_is_counted(
    replica: Replica, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hour, over replicas; nothing is written before a flush."""
    other = Replica(database_url)
    now = 1_800_000_000.0
    monkeypatch.setattr(uses_module.time, "time", lambda: now)
    for found, times in ((replica, 3), (other, 2)):
        for step in range(times):
            now = 1_800_000_000.0 + 100 * step
            found.accounts.uses.observe(outcome("ofk_a", "sha256:aa"))
    other.accounts.uses.observe(outcome(None, "base", "open"))
    assert replica.accounts.used_loadouts(TrailQuery())[0] == ()
    replica.accounts.flush()
    other.accounts.flush()
    other.accounts.flush()
    page, _ = replica.accounts.used_loadouts(TrailQuery(loadout="sha256:aa"))
    [use] = page
    assert (use.hour, use.tenant, use.key) == (1_800_000_000 // 3600 * 3600, "acme", "ofk_a")
    assert (use.count, use.first, use.last) == (5, 1_800_000_000, 1_800_000_200)
    [opened] = replica.accounts.used_loadouts(TrailQuery(tenant="open"))[0]
    assert (opened.key, opened.loadout, opened.count) == (None, "base", 1)
    first, after = replica.accounts.used_loadouts(TrailQuery(limit=1))
    rest, end = replica.accounts.used_loadouts(TrailQuery(limit=1, after=after))
    assert {first[0].loadout, rest[0].loadout} == {"base", "sha256:aa"}
    assert end is None
    other.close()


def test_a_request_that_was_refused_has_used_no_loadout(replica: Replica) -> None:
    """It is in the usage, as an error, and not in the trail."""
    replica.accounts.uses.observe(outcome("ofk_a", ""))
    replica.accounts.uses.observe(outcome("ofk_a", "base"))
    replica.accounts.flush()
    [use] = replica.accounts.used_loadouts(TrailQuery())[0]
    assert (use.loadout, use.count) == ("base", 1)


def test_uses_wait_for_the_database_and_then_are_bounded(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that fails loses nothing; too many rows are counted as lost, and told once."""
    accounts = replica.accounts
    accounts.uses.observe(outcome("ofk_a", "sha256:aa"))

    def away(*_: object) -> None:
        raise CatalogUnavailable("the catalog does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(trail_module, "write", away)
        accounts.flush()
    monkeypatch.setattr(uses_module, "MAX_PENDING", 2)
    for word in ("aa", "bb", "cc", "aa"):
        accounts.uses.observe(outcome("ofk_a", f"sha256:{word}"))
    assert accounts.uses.num_lost == 1
    accounts.flush()
    page, _ = accounts.used_loadouts(TrailQuery())
    assert {use.loadout: use.count for use in page} == {"sha256:aa": 3, "sha256:bb": 1}


def test_uses_whose_answer_got_lost_count_once(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has them, and the gateway does not know it; what came since is added."""
    accounts, database = replica.accounts, replica.catalog.database
    changing = database.changing

    @contextlib.contextmanager
    def committing_in_silence() -> Iterator[Session]:
        with changing() as session:
            yield session
        raise CatalogUnavailable("the connection was lost")

    accounts.uses.observe(outcome("ofk_a", "sha256:aa"))
    with monkeypatch.context() as patched:
        patched.setattr(database, "changing", committing_in_silence)
        accounts.flush()
    [use] = accounts.used_loadouts(TrailQuery())[0]
    assert use.count == 1
    accounts.uses.observe(outcome("ofk_a", "sha256:aa"))
    accounts.flush()
    [use] = accounts.used_loadouts(TrailQuery())[0]
    assert use.count == 2


def test_what_no_database_holds_does_not_end_the_trail(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log, and what comes after it is written down."""
    accounts = replica.accounts
    accounts.uses.observe(outcome("ofk_a", "sha256:aa"))

    def refuse(*_: object) -> None:
        raise InvalidDetails("the catalog cannot hold this")

    with monkeypatch.context() as patched:
        patched.setattr(trail_module, "write", refuse)
        accounts.flush()
    assert "1 uses of loadouts are lost" in caplog.text
    accounts.uses.observe(outcome("ofk_a", "sha256:bb"))
    accounts.flush()
    page, _ = accounts.used_loadouts(TrailQuery())
    assert {use.loadout: use.count for use in page} == {"sha256:bb": 1}


def test_a_key_remembers_roughly_when_it_was_used(replica: Replica) -> None:
    """To the minute, and written by the flush."""
    accounts = replica.accounts
    accounts.create_tenant(BY, "acme")
    _, text = accounts.create_key(BY, "acme", "k", ["infer"])
    assert accounts.keys("acme")[0].last_used is None
    replica.tells(text)
    generation = replica.catalog.generation()
    accounts.flush()
    last = accounts.keys("acme")[0].last_used
    assert last is not None
    assert last % 60 == 0
    assert time.time() - 120 < last <= time.time()
    assert replica.catalog.generation() == generation


def test_what_is_deleted_is_shared_with_nobody_when_it_comes_again(replica: Replica) -> None:
    """A name that is published anew begins private."""
    accounts, catalog = replica.accounts, replica.catalog
    accounts.create_tenant(BY, "acme")
    version = publish(catalog, "acme/json", 1)
    publish(catalog, "acme/json", 2)
    catalog.save_loadout("acme/bot", loadout_of(2), {"acme/json": 1}, None)
    for kind, name in ((Kind.TASK_VECTOR, "acme/json"), (Kind.LOADOUT, "acme/bot")):
        accounts.set_access(BY, kind, name, share("umbra", visibility=Visibility.PUBLIC))
    catalog.delete(ref(f"acme/json@{version.version}"))
    assert accounts.access(Kind.TASK_VECTOR, "acme/json").visibility is Visibility.PUBLIC
    catalog.delete(ref("acme/json"))
    catalog.delete_loadout("acme/bot")
    publish(catalog, "acme/json", 3)
    for kind, name in ((Kind.TASK_VECTOR, "acme/json"), (Kind.LOADOUT, "acme/bot")):
        assert accounts.access(kind, name) == share()


def test_the_owner_of_a_name_is_known_until_it_changes(replica: Replica) -> None:
    """Names of the library, and of namespaces that are nobody's, are the operator's."""
    accounts = replica.accounts
    assert accounts.owner_of("acme/bot") is None
    accounts.create_tenant(BY, "acme")
    assert accounts.owner_of("Acme/bot") == Viewer("acme", frozenset({"acme"}))
    accounts.add_namespace(BY, "acme", "labs")
    assert accounts.owner_of("labs/bot") == Viewer("acme", frozenset({"acme", "labs"}))
    assert accounts.owner_of("bot") is None


def test_a_share_may_name_a_tenant_that_is_not_there(accounts: Accounts) -> None:
    """So nobody finds out who is; but it must be a name, and there is a bound."""
    assert accounts.set_access(BY, Kind.TASK_VECTOR, "a/b", share("nobody")) == share("nobody")
    with pytest.raises(InvalidTenant, match="invalid tenant 'No Body'"):
        accounts.set_access(BY, Kind.TASK_VECTOR, "a/b", share("No Body"))
    many = share(*(f"t{secrets.token_hex(8)}" for _ in range(257)))
    with pytest.raises(InvalidTenant, match="at most 256"):
        accounts.set_access(BY, Kind.TASK_VECTOR, "a/b", many)
