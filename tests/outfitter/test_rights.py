"""Who may see and change what; and that the database says the same."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from outfitter.control.principal import OPEN, Principal, Scope
from outfitter.control.rights import (
    Access,
    Kind,
    Viewer,
    Visibility,
    check_change,
    check_scope,
    may_change,
    may_see,
    namespace_of,
    viewer_of,
)
from outfitter.errors import ApiError, NotYours
from outfitter.state.catalog import Catalog
from outfitter.state.grants import access_of, set_access, visible
from outfitter.state.models import LoadoutNameRow, NameRow

ACME = Viewer("acme", frozenset({"acme", "acme-labs"}))
PRIVATE, PUBLIC = Visibility.PRIVATE, Visibility.PUBLIC
PATHS = ("json", "acme/json", "Acme/JSON", "acme-labs/json", "acmeX/json", "umbra/json", "acme0/a")


@pytest.mark.parametrize(
    ("path", "access", "is_seen"),
    [
        ("acme/json", Access(PRIVATE), True),
        ("ACME/json", Access(PRIVATE), True),
        ("umbra/json", Access(PRIVATE), False),
        ("umbra/json", Access(PUBLIC), True),
        ("umbra/json", Access(PRIVATE, frozenset({"acme"})), True),
        ("umbra/json", Access(PRIVATE, frozenset({"acme-labs"})), False),
        ("json", Access(PUBLIC), True),
        ("json", Access(PRIVATE), False),
        ("json", Access(PRIVATE, frozenset({"acme"})), True),
    ],
)
def test_a_tenant_sees_its_own_and_what_is_shared(path: str, access: Access, is_seen: bool) -> None:
    """A share names a tenant, not one of its namespaces."""
    assert may_see(ACME, path, access) is is_seen
    assert may_see(None, path, access)


def test_a_new_name_is_private_in_a_namespace_and_public_without_one() -> None:
    """Before its owner says otherwise."""
    assert Access.default("acme/json") == Access(PRIVATE)
    assert Access.default("json") == Access(PUBLIC)


@pytest.mark.parametrize("path", PATHS)
def test_only_the_owner_changes_a_name(path: str) -> None:
    """Nobody but an admin changes the library; what a refusal says names no other namespace."""
    owns = namespace_of(path) in ACME.namespaces
    assert may_change(ACME, path) is owns
    assert may_change(None, path)
    if owns:
        check_change(ACME, path)
    else:
        with pytest.raises(NotYours) as caught:
            check_change(ACME, path)
        assert str(caught.value).replace(path, "") == (
            "'' is not in a namespace of the tenant 'acme', whose keys may publish and change"
            " acme/…, acme-labs/…"
        )


def test_an_admin_is_bound_by_no_rights() -> None:
    """Nor is anybody in open mode."""
    holder = Principal("acme", "ofk_a", frozenset({Scope.INFER}), frozenset({"acme"}))
    assert viewer_of(holder) == Viewer("acme", frozenset({"acme"}))
    assert viewer_of(Principal("acme", "ofk_a", frozenset({Scope.ADMIN}))) is None
    assert viewer_of(OPEN) is None


def test_a_missing_scope_is_named() -> None:
    """In the message and in the header, with what the key has."""
    holder = Principal("acme", "ofk_a", frozenset({Scope.INFER}))
    check_scope(holder, (Scope.PUBLISH, Scope.INFER))
    check_scope(holder, ())
    check_scope(Principal("acme", "ofk_a", frozenset({Scope.ADMIN})), (Scope.OPERATE,))
    with pytest.raises(ApiError, match="lacks the scope 'publish'; it has infer") as caught:
        check_scope(holder, (Scope.PUBLISH,))
    assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")
    assert 'scope="publish"' in caught.value.headers["www-authenticate"]


@pytest.fixture
def session_with_names(database_url: str):
    """A database that has every name of PATHS, once as a vector and once as a loadout."""
    catalog = Catalog(database_url)
    with catalog.database.writing() as session:
        for key in {path.lower() for path in PATHS}:
            session.add(NameRow(key=key, namespace=namespace_of(key), path=key, next_version=1))
            session.add(LoadoutNameRow(key=key, path=key, next_version=1))
    yield catalog
    catalog.close()


def _seen(session: Session, viewer: Viewer | None, kind: Kind) -> set[str]:
    key = NameRow.key if kind is Kind.TASK_VECTOR else LoadoutNameRow.key
    return set(session.scalars(select(key).where(visible(viewer, kind, key))))


ACCESSES = st.builds(
    Access,
    st.sampled_from(Visibility),
    st.frozensets(st.sampled_from(["acme", "umbra", "acme-labs", "hooli"])),
)
VIEWERS = st.none() | st.builds(
    Viewer,
    st.sampled_from(["acme", "umbra", "hooli"]),
    st.frozensets(st.sampled_from(["acme", "umbra", "acme-labs"])),
)


def test_the_database_says_what_the_rule_says(session_with_names: Catalog) -> None:
    """For every viewer and whatever was said of each name, of each kind apart."""
    keys = sorted({path.lower() for path in PATHS})

    @given(
        VIEWERS, st.dictionaries(st.tuples(st.sampled_from(Kind), st.sampled_from(keys)), ACCESSES)
    )
    def agree(viewer: Viewer | None, said: dict[tuple[Kind, str], Access]) -> None:
        with session_with_names.database.changing() as session:
            for (kind, key), access in said.items():
                set_access(session, kind, key, access)
            for kind in Kind:
                known = {key: access_of(session, kind, key) for key in keys}
                assert known == {key: said.get((kind, key), Access.default(key)) for key in keys}
                expected = {key for key in keys if may_see(viewer, key, known[key])}
                assert _seen(session, viewer, kind) == expected
            session.rollback()

    agree()


def test_tenants_are_told_apart_by_the_resolver(tmp_path: Path) -> None:
    """What is remembered for one is not said to another."""
    from outfitter.state.changes import Changes
    from outfitter.state.resolver import Resolver
    from taskvectors.errors import VectorNotFound
    from tests.outfitter.state.making import publish, ref

    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite3'}")
    publish(catalog, "acme/json", 1)
    resolver = Resolver(catalog, Changes(None, "x"))
    for _ in range(2):
        assert resolver.version(ref("acme/json"), ACME).name == "acme/json"
        with pytest.raises(VectorNotFound):
            resolver.version(ref("acme/json"), Viewer("umbra", frozenset({"umbra"})))
        assert resolver.version(ref("acme/json")).name == "acme/json"
    resolver.close()
    catalog.close()
