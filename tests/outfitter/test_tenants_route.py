"""The routes of tenants, keys, limits and the trail, and a gateway that asks for keys."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.config import GatewayConfig
from tests.outfitter.harness import (
    Running,
    make_config,
    make_vector,
    new_keys,
    push,
    running,
    wait_for,
)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A gateway that asks for keys, and the operator's."""
    config = make_config(tmp_path_factory.mktemp("keyed"), auth="keys")
    key = new_keys(config, operator="admin")["operator"]
    with running(config) as gateway:
        yield gateway.wait_ready(), key


@pytest.fixture
def admin(keyed: tuple[Running, str]) -> Iterator[httpx.Client]:
    gateway, key = keyed
    with gateway.holding(key) as client:
        yield client


def new_key(admin: httpx.Client, tenant: str, *scopes: str, **fields: object) -> dict:
    body = {"name": "k", "scopes": [*scopes], **fields}
    response = admin.post(f"/v1/tenants/{tenant}/keys", json=body)
    assert response.status_code == 201, response.text
    return response.json()


def refused(response: httpx.Response, status: int, code: str, *words: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert all(word in error["message"] for word in words), error["message"]


def test_a_tenant_is_made_shown_and_listed(admin: httpx.Client) -> None:
    """With the namespace of its own name."""
    made = admin.post("/v1/tenants", json={"name": "acme"})
    assert made.status_code == 201
    assert {k: v for k, v in made.json().items() if k != "created_at"} == {
        "id": "acme",
        "object": "tenant",
        "namespaces": ["acme"],
        "disabled": False,
        "limits": {},
    }
    assert admin.get("/v1/tenants/acme").json() == made.json()
    first = admin.get("/v1/tenants", params={"limit": 1}).json()
    assert (first["data"], first["has_more"], first["after"]) == ([made.json()], True, "acme")
    second = admin.get("/v1/tenants", params={"limit": 1, "after": "acme"}).json()
    assert [tenant["id"] for tenant in second["data"]] == ["operator"]
    assert second["has_more"] is False


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "words"),
    [
        ("POST", "", {}, 400, "missing_name", "name is required"),
        ("POST", "", {"name": "Acme"}, 400, "invalid_tenant", "'Acme'"),
        ("POST", "", {"name": "open"}, 400, "invalid_tenant", "reserved"),
        ("POST", "", {"name": "a", "x": 1}, 400, "unknown_parameter", "unknown field 'x'"),
        ("POST", "", {"name": "operator"}, 409, "conflict", "is there already"),
        ("GET", "/nobody", None, 404, "tenant_not_found", "'nobody'"),
        ("PATCH", "/operator", {"disabled": "yes"}, 400, "invalid_parameter", "disabled"),
        ("PATCH", "/nobody/limits", {"x": 1}, 404, "tenant_not_found", "'nobody'"),
        ("PUT", "/operator/namespaces/A", None, 400, "invalid_tenant", "'A'"),
        ("DELETE", "/operator/namespaces/x", None, 404, "tenant_not_found", "no namespace 'x'"),
        ("DELETE", "/operator/namespaces/operator", None, 409, "conflict", "own name"),
        ("POST", "/nobody/keys", {"name": "k"}, 404, "tenant_not_found", "'nobody'"),
        ("POST", "/operator/keys", {"name": 5}, 400, "missing_name", "name"),
        ("POST", "/operator/keys", {"name": ""}, 400, "invalid_tenant", "printable"),
        *(
            ("POST", "/operator/keys", {"name": "k", **fields}, 400, code, word)
            for fields, code, word in (
                ({"scopes": "infer"}, "invalid_parameter", "scopes must be a list"),
                ({"scopes": ["root"]}, "invalid_tenant", "unknown scope 'root'"),
                ({"scopes": []}, "invalid_tenant", "needs a scope"),
                ({"expires_s": "1d"}, "invalid_parameter", "expires_s must be seconds"),
                ({"expires_s": -1}, "invalid_parameter", "expires_s must be seconds"),
                ({"expires_s": True}, "invalid_parameter", "expires_s must be seconds"),
                ({"expires_s": 1e11}, "invalid_tenant", "unsupported lifetime"),
            )
        ),
        ("POST", "/operator/keys/ofk_x/rotate", None, 404, "tenant_not_found", "no key 'ofk_x'"),
        ("DELETE", "/operator/keys/ofk_x", None, 404, "tenant_not_found", "no key 'ofk_x'"),
        ("GET", "?limit=0", None, 400, "invalid_parameter", "limit must be 1 to 1000"),
    ],
)
def test_what_cannot_be_is_refused(
    admin: httpx.Client, method: str, path: str, body: object, status: int, code: str, words: str
) -> None:
    """With the parameter, its value and what would be right."""
    options = {} if body is None else {"json": body}
    refused(admin.request(method, f"/v1/tenants{path}", **options), status, code, words)


def test_a_tenant_is_disabled_and_enabled(keyed: tuple[Running, str], admin: httpx.Client) -> None:
    """Its keys are told so."""
    admin.post("/v1/tenants", json={"name": "stopped"})
    key = new_key(admin, "stopped", "infer")["key"]
    with keyed[0].holding(key) as client:
        assert client.get("/v1/models").status_code == 200
        answer = admin.patch("/v1/tenants/stopped", json={"disabled": True})
        assert answer.json()["disabled"] is True
        refused(client.get("/v1/models"), 403, "tenant_disabled", "'stopped' is disabled")
        admin.patch("/v1/tenants/stopped", json={"disabled": False})
        assert client.get("/v1/models").status_code == 200
    assert admin.delete("/v1/tenants/stopped").json()["deleted"] is True
    refused(admin.get("/v1/tenants/stopped"), 404, "tenant_not_found", "'stopped'")


def test_limits_are_kept_as_they_are_said(admin: httpx.Client) -> None:
    """Null takes one away."""
    admin.post("/v1/tenants", json={"name": "limited"})
    path = "/v1/tenants/limited/limits"
    admin.patch(path, json={"requests_per_minute": 5, "tokens_per_day": 7})
    answer = admin.patch(path, json={"tokens_per_day": None})
    assert answer.json() == {
        "object": "limits",
        "tenant": "limited",
        "limits": {"requests_per_minute": 5},
    }
    assert admin.get(path).json() == answer.json()


def test_a_key_is_shown_once(keyed: tuple[Running, str], admin: httpx.Client) -> None:
    """Afterwards only its visible part is."""
    admin.post("/v1/tenants", json={"name": "shown"})
    made = new_key(admin, "shown", "publish", "infer", expires_s=60)
    text = made.pop("key")
    assert re.fullmatch(r"ofk_[a-z0-9]{10}_[A-Za-z0-9_-]{43}", text)
    assert text.startswith(f"{made['id']}_")
    assert made["scopes"] == ["infer", "publish"]
    assert 58 <= made["expires_at"] - time.time() <= 61
    page = admin.get("/v1/tenants/shown/keys").json()
    assert page["data"] == [made]
    with keyed[0].holding(text) as client:
        assert client.get("/v1/task_vectors").status_code == 200
    assert text not in admin.get("/v1/audit").text


def test_a_key_is_rotated_and_revoked(keyed: tuple[Running, str], admin: httpx.Client) -> None:
    """The old one works through its grace, and not after it was revoked."""
    admin.post("/v1/tenants", json={"name": "turned"})
    old = new_key(admin, "turned", "infer")
    path = f"/v1/tenants/turned/keys/{old['id']}"
    new = admin.post(f"{path}/rotate", json={"grace_s": 60})
    assert new.status_code == 201
    assert new.json()["replaces"]["id"] == old["id"]
    assert 55 <= new.json()["replaces"]["expires_at"] - time.time() <= 61
    with keyed[0].holding(old["key"]) as first, keyed[0].holding(new.json()["key"]) as second:
        assert first.get("/v1/models").status_code == 200
        assert second.get("/v1/models").status_code == 200
        assert admin.delete(path).json()["revoked_at"] is not None
        refused(first.get("/v1/models"), 401, "invalid_api_key", "was revoked")
        assert second.get("/v1/models").status_code == 200


def test_a_namespace_is_given_and_taken(
    keyed: tuple[Running, str], admin: httpx.Client, tmp_path: Path
) -> None:
    """What is published there is the tenant's as long as the namespace is."""
    admin.post("/v1/tenants", json={"name": "wide"})
    key = new_key(admin, "wide", "infer", "publish")["key"]
    path = "/v1/tenants/wide/namespaces/wide-labs"
    assert admin.put(path).json()["namespaces"] == ["wide", "wide-labs"]
    with keyed[0].holding(key) as client:
        push(client, make_vector(tmp_path / "a", 11), "wide-labs/json")
        assert client.get("/v1/task_vectors/wide-labs/json").status_code == 200
        assert admin.delete(path).json()["namespaces"] == ["wide"]
        assert client.get("/v1/task_vectors/wide-labs/json").status_code == 404
        assert admin.get("/v1/task_vectors/wide-labs/json").status_code == 200


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=x", "limit must be"),
        ("since=yesterday", "since must be Unix time in seconds, not 'yesterday'"),
        ("who=me", "unknown query parameter 'who'"),
        ("after=x", "invalid cursor"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audit", "/v1/audit/loadouts"])
def test_a_question_to_the_trail_that_cannot_be_is_refused(
    admin: httpx.Client, path: str, query: str, words: str
) -> None:
    """By name."""
    answer = admin.get(f"{path}?{query}")
    assert answer.status_code in (400, 422)
    assert words in answer.json()["error"]["message"]


def test_changes_are_in_the_trail_with_their_request(admin: httpx.Client) -> None:
    """Who, what, when, and the id that the client gave."""
    headers = {"x-request-id": "req-77"}
    admin.post("/v1/tenants", json={"name": "traced"}, headers=headers)
    params = {"subject": "traced", "action": "tenant.create", "tenant": "operator"}
    [entry] = admin.get("/v1/audit", params=params).json()["data"]
    assert entry["request_id"] == "req-77"
    assert entry["key"].startswith("ofk_")
    assert abs(entry["at"] - time.time()) < 60


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"visibility": "secret"}, "unknown visibility 'secret'; choose private, public"),
        ({"shared_with": "acme"}, "shared_with must be a list"),
        ({"shared_with": ["No Body"]}, "invalid tenant 'No Body'"),
        ({"with": []}, "unknown field 'with'"),
    ],
)
def test_access_that_cannot_be_is_refused(
    admin: httpx.Client, tmp_path: Path, body: dict, words: str
) -> None:
    """And nothing changes."""
    push(admin, make_vector(tmp_path / "a", 12), "library")
    answer = admin.put("/v1/task_vectors/library/access", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    found = admin.get("/v1/task_vectors/library/access").json()
    assert (found["visibility"], found["shared_with"]) == ("public", [])


def test_a_vector_may_be_called_access(admin: httpx.Client, tmp_path: Path) -> None:
    """As it may be called file or card."""
    push(admin, make_vector(tmp_path / "a", 13), "lab/access")
    assert admin.get("/v1/task_vectors/lab/access").json()["name"] == "lab/access"
    assert admin.get("/v1/task_vectors/lab/access/access").json()["name"] == "lab/access"
    body = {"name": "lab/access", "task_vectors": {"lab/access": 1}}
    assert admin.post("/v1/loadouts", json=body).status_code == 201
    assert admin.get("/v1/loadouts/lab/access").json()["name"] == "lab/access"


def test_a_revoked_key_stops_on_the_other_gateway(tmp_path: Path) -> None:
    """Without any message between them."""
    config = make_config(tmp_path, auth="keys")
    keys = new_keys(config, operator="admin", acme="infer")
    with running(config) as one, running(config) as other:
        one.wait_ready()
        other.wait_ready()
        id_ = keys["acme"][:14]
        with one.holding(keys["operator"]) as admin, other.holding(keys["acme"]) as client:
            assert client.get("/v1/models").status_code == 200
            assert admin.delete(f"/v1/tenants/acme/keys/{id_}").status_code == 200
            wait_for(lambda: client.get("/v1/models").status_code == 401)


def test_what_was_counted_is_written_when_the_gateway_stops(tmp_path: Path) -> None:
    """When a key was used is known afterwards."""
    config: GatewayConfig = make_config(tmp_path, auth="keys")
    keys = new_keys(config, operator="admin")
    with running(config) as gateway, gateway.holding(keys["operator"]) as client:
        assert client.get("/v1/task_vectors").status_code == 200
    with running(config) as gateway, gateway.holding(keys["operator"]) as client:
        [found] = client.get("/v1/tenants/operator/keys").json()["data"]
        assert found["last_used_at"] is not None


def test_without_keys_everybody_is_the_operator(client: httpx.Client) -> None:
    """An open gateway ignores what is sent; there is one tenant."""
    for headers in ({}, {"authorization": "Bearer nonsense"}):
        assert client.get("/v1/tenants", headers=headers).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200
    body = {"model": "base-model", "prompt": "echo", "cache_salt": "raw"}
    answer = client.post("/v1/completions", json=body).json()
    assert '"cache_salt": "raw"' in answer["choices"][0]["text"]


def test_a_new_tenant_of_an_old_name_sees_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Neither its usage nor what it had used up of its limits."""
    config = make_config(tmp_path, auth="keys")
    operator = new_keys(config, operator="admin")["operator"]
    with running(config) as gateway, gateway.holding(operator) as admin:
        gateway.wait_ready()

        def begin() -> httpx.Client:
            assert admin.post("/v1/tenants", json={"name": "acme"}).status_code == 201
            limits = {"requests_per_minute": 5}
            assert admin.patch("/v1/tenants/acme/limits", json=limits).status_code == 200
            return gateway.holding(new_key(admin, "acme", "infer")["key"])

        def left(client: httpx.Client) -> str:
            body = {"model": "base-model", "prompt": "hi"}
            answer = client.post("/v1/completions", json=body)
            return answer.headers["x-ratelimit-remaining-requests"]

        def requests(client: httpx.Client) -> int:
            return sum(row["requests"] for row in client.get("/v1/usage").json()["data"])

        with begin() as old:
            assert [left(old) for _ in range(3)] == ["4", "3", "2"]
            wait_for(lambda: requests(old) == 3)
        assert admin.delete("/v1/tenants/acme").status_code == 200
        with begin() as new:
            assert requests(new) == 0
            assert left(new) == "4"
            wait_for(lambda: requests(new) == 1)
        assert requests(admin) >= 4
