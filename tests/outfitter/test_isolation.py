"""Two tenants, every route, every form of reference: nothing of the other's is seen."""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import Engine, event

from outfitter.app import create_app
from outfitter.control.surface import NOT_OFFERED, ROUTES
from outfitter.experiments import autopilot
from tests.outfitter.harness import Running, make_config, make_vector, new_keys, push, running
from tests.outfitter.isolation import (
    ABSENT_DIGEST,
    MATRIX,
    TUS,
    Ask,
    Nobodys,
    NotOffered,
    Only,
    Twin,
    cases,
    comparable,
)

_BY_ITSELF = ("generation", "loadout_use", "usage", "BEGIN", "UPDATE keys")
SECRETS = ("zebra", "acme", "quagga", "ofk_")


@dataclass
class World:
    """A gateway with acme's things in it, and keys by name."""

    gateway: Running
    keys: dict[str, str]
    digests: list[str] = field(default_factory=list)
    twins: dict[str, list[Twin]] = field(default_factory=dict)

    clients: dict[str | None, httpx.Client] = field(default_factory=dict)

    def client(self, key: str | None) -> httpx.Client:
        if key not in self.clients:
            gateway = self.gateway
            made = gateway.client if key is None else gateway.holding(self.keys[key])
            self.clients[key] = made
        return self.clients[key]

    def close(self) -> None:
        for client in self.clients.values():
            client.close()

    def forgets(self) -> None:
        """Something changes, so that nothing is answered from memory."""
        path = "/v1/task_vectors/mine/tags/moved"
        answer = self.client("operator").put(path, json={"version": 1})
        assert answer.status_code == 200, answer.text

    def holds_nothing(self, response: httpx.Response) -> None:
        """Neither the body nor a header says anything of acme's."""
        text = f"{response.text} {response.headers}"
        for word in (*SECRETS, *self.digests):
            assert word not in text, f"{word} in {text}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("isolation")
    config = make_config(root, auth="keys", allow_promotions=True, pull_from=("s3://a/",))
    scopes = {"acme": "infer publish", "umbra": "infer publish", "operator": "admin"}
    keys = new_keys(config, **scopes, umbra__ops="infer publish operate", umbra__infer="infer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autopilot, "TICK_S", 3_600.0)  # its questions would be among those counted
        with running(config) as before:  # whose figures, which name tenants, end with it
            filled = World(before.wait_ready(), keys)
            _fill(filled, root)
            filled.close()
        with running(config) as gateway:
            found = World(gateway.wait_ready(), keys, filled.digests, filled.twins)
            yield found
            found.close()


def _fill(world: World, root: Path) -> None:
    acme = world.client("acme")
    for seed in (1, 2):
        file = make_vector(root / f"{seed}.safetensors", seed)
        params = {"name": "acme/zebra", "label": "quagga", "description": "a quagga"}
        found = acme.post("/v1/task_vectors", params=params, content=file.read_bytes())
        assert found.status_code == 201, found.text
        world.digests.append(found.json()["digest"].removeprefix("sha256:"))
    acme.put("/v1/task_vectors/acme/zebra/tags/stable", json={"version": 1})
    body = {"name": "acme/zebra-bot", "task_vectors": {"acme/zebra": 1}}
    assert acme.post("/v1/loadouts", json=body).status_code == 201
    for name, action in (("acme/zebra-test", ""), ("acme/zebra-run", "start")):
        mix = {"key": "b", "task_vectors": {"acme/zebra": 0.5}}
        body = {"name": name, "variants": [{"key": "a", "model": "acme/zebra-bot"}, mix]}
        assert acme.post("/v1/experiments", json=body).status_code == 201
        if action:
            assert acme.post(f"/v1/experiments/{name}/{action}").status_code == 200
    body = {"model": "exp:acme/zebra-run", "prompt": "x", "user": "acme-quagga"}
    answer = acme.post("/v1/completions", json=body, headers={"x-request-id": "zebra-request"})
    assert answer.status_code == 200, answer.text
    headers = {**TUS, "upload-length": "5"}
    upload = acme.post("/v1/uploads", headers=headers).headers["location"].rpartition("/")[2]
    umbra = world.client("umbra")
    push(umbra, make_vector(root / "3.safetensors", 3), "umbra/mine")
    operator = world.client("operator")
    push(operator, make_vector(root / "4.safetensors", 4), "mine")
    digest = world.digests[0]
    pins = [("", ""), ("@1", "@1"), ("@2", "@2"), ("@stable", "@stable"), ("@latest", "@latest")]
    pins += [(f"@sha256:{digest}", f"@sha256:{ABSENT_DIGEST}"), ("@9", "@9")]
    world.twins = {
        "vectors": [
            *(Twin(f"acme/zebra{theirs}", f"acme/zebro{other}") for theirs, other in pins),
            Twin("acme/zebr", "acme/qqqqq"),  # what is near, to be suggested
            Twin(f"sha256:{digest}", f"sha256:{ABSENT_DIGEST}"),
            Twin(digest, ABSENT_DIGEST),
        ],
        "names": [Twin("acme/zebra", "acme/qqqqq"), Twin("acme/zebra", "nobody/zebra")],
        "loadouts": [
            Twin(f"acme/zebra-bot{pin}", f"acme/qqqqq-bot{pin}") for pin in ("", "@1", "@9")
        ],
        "loadout_names": [Twin("acme/zebra-bot", "nobody/qqqqq-bot")],
        "experiments": [
            *(Twin(f"acme/zebra-{one}", f"acme/qqqqq-{one}") for one in ("test", "run")),
            Twin("acme/zebra-run", "nobody/zebra-run"),
        ],
        "requests": [Twin("zebra-request", "qqqqq-request")],
        "uploads": [Twin(upload, secrets.token_hex(16))],
        "fresh": [Twin("acme/zebra", "nobody/zebra"), Twin("acme/new", "nobody/new")],
    }


def test_every_route_is_declared() -> None:
    """Whoever adds a route says what another tenant gets there."""
    app = create_app(make_config(Path("/nowhere"), auth="keys"))
    routes = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert len(routes) > 50
    assert routes == set(MATRIX)
    assert all(MATRIX.values())


@pytest.mark.parametrize("route", sorted(MATRIX), ids=" ".join)
def test_without_a_key_nothing_is_told(world: World, route: tuple[str, str]) -> None:
    """401 in the shape of the route, whatever is asked for; only health needs none."""
    method, path = route
    path = path.replace("{reference:path}", "acme/zebra").replace("{name:path}", "acme/zebra")
    path = path.replace("{rest:path}", "x")
    if path.startswith("/health"):
        return
    for headers in ({}, {"authorization": "Bearer sk-none"}, {"authorization": "Basic x"}):
        client = world.client(None)
        response = client.request(method, path, headers={**TUS, **headers})
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            error = response.json()["error"]
            assert error["code"] == "invalid_api_key"
            is_anthropics = path.startswith("/v1/messages")
            kind = "authentication_error" if is_anthropics else "invalid_request_error"
            assert error["type"] == kind
            assert "zebra" not in response.text


@pytest.mark.parametrize(("name", "ask"), [*cases(Ask)], ids=[name for name, _ in cases(Ask)])
def test_what_is_anothers_does_not_exist(world: World, name: str, ask: Ask) -> None:
    """The same status, text and headers as for what nobody has, and the same questions asked."""
    for twin in world.twins[ask.twins]:
        theirs, nothing = (_asked(world, ask, r) for r in (twin.theirs, twin.nothing))
        assert theirs[0] == nothing[0], name
        assert theirs[0][0] == ask.status, theirs[0]
        assert theirs[1] == nothing[1], f"{name}: other questions for {twin}"


def _asked(
    world: World, ask: Ask, reference: str
) -> tuple[tuple[int, str, dict[str, str]], list[str]]:
    """The answer, and the questions to the database."""
    path, options = ask.make(reference)
    client = world.client(ask.key)
    world.forgets()
    client.get("/v1/models")  # the key is known now
    with counted() as statements:
        response = client.request(ask.method, path, **options)
    return comparable(response, reference), statements


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements meanwhile, without those that come by themselves now and then."""
    statements: list[str] = []
    lock = threading.Lock()

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if not any(word in statement for word in _BY_ITSELF):
            with lock:
                statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("name", "ask"), [*cases(Nobodys)], ids=[name for name, _ in cases(Nobodys)]
)
def test_lists_and_figures_hold_nothing_of_anothers(world: World, name: str, ask: Nobodys) -> None:
    """Whatever is filtered for."""
    options = dict(ask.options)
    client = world.client(ask.key)
    response = client.request(options.pop("method", "GET"), ask.path, **options)
    assert response.status_code < 300, name
    if ask.path == "/v1/store/stats":  # where the stand-in engine tells what it was asked
        response = httpx.Response(200, text=response.text.partition('"prefetched"')[0])
    world.holds_nothing(response)


@pytest.mark.parametrize(("name", "ask"), [*cases(Only)], ids=[name for name, _ in cases(Only)])
def test_a_scope_that_is_missing_is_named(world: World, name: str, ask: Only) -> None:
    """Before anything is looked up."""
    method, path, _ = name.split(" ", 2)
    filled = path.replace("{tenant}", "acme")
    client = world.client("umbra")
    with counted() as statements:
        response = client.request(method, filled)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "insufficient_scope"
    assert f"'{ask.scope}'" in response.json()["error"]["message"]
    assert f'scope="{ask.scope}"' in response.headers["www-authenticate"]
    assert all(" keys" in statement or "namespaces" in statement for statement in statements)
    world.holds_nothing(response)


WRITES = sorted(
    route
    for route, asks in MATRIX.items()
    if route[0] in ("POST", "PUT", "PATCH", "DELETE")
    and not any(isinstance(ask, Only) for ask in asks)
    and not any(isinstance(ask, NotOffered) for ask in asks)
    and route[1] not in {route.path for route in ROUTES}
    and not route[1].endswith("/interference")
    and route != ("POST", "/v1/feedback")  # which changes nothing but the figures of one's own
)


@pytest.mark.parametrize("route", WRITES, ids=" ".join)
def test_a_key_to_ask_with_changes_nothing(world: World, route: tuple[str, str]) -> None:
    """It lacks `publish`, also for what is its tenant's own."""
    method, path = route
    path = path.replace("{reference:path}", "umbra/mine").replace("{name:path}", "umbra/mine")
    client = world.client("umbra__infer")
    response = client.request(method, path, headers=TUS)
    assert response.status_code == 403
    assert "lacks the scope 'publish'; it has infer" in response.json()["error"]["message"]


def test_the_same_bytes_of_two_tenants_know_nothing_of_each_other(
    world: World, tmp_path: Path
) -> None:
    """Publishing what another has answers as publishing what is new; a digest names one's own."""
    first, fresh = make_vector(tmp_path / "a", 1), make_vector(tmp_path / "b", 77)
    umbra = world.client("umbra")
    acme = world.client("acme")
    same, new = (
        push(umbra, file, name) for file, name in ((first, "umbra/same"), (fresh, "umbra/new"))
    )
    changing = ("id", "digest", "name", "created_at")
    assert {k: v for k, v in same.items() if k not in changing} == {
        k: v for k, v in new.items() if k not in changing
    }
    reference = same["id"]
    assert umbra.get(f"/v1/task_vectors/{reference}").json()["name"] == "umbra/same"
    assert acme.get(f"/v1/task_vectors/{reference}").json()["name"] == "acme/zebra"
    assert umbra.get(f"/v1/task_vectors/{reference}/file").status_code == 200
    body = {"model": "base-model", "prompt": "hi", "task_vectors": {reference: 1.0}}
    served = umbra.post("/v1/completions", json=body).json()["task_vectors"]
    assert served["vectors"][0]["name"] == "umbra/same"
    for name in ("umbra/same", "umbra/new"):
        assert umbra.delete(f"/v1/task_vectors/{name}").status_code == 200
    assert umbra.get(f"/v1/task_vectors/{reference}").status_code == 404
    assert acme.get(f"/v1/task_vectors/{reference}/file").status_code == 200


def test_what_is_shared_is_seen_used_and_not_changed(world: World) -> None:
    """Until it is not shared any more: within a second nobody else sees it."""
    path = "/v1/task_vectors/acme/zebra"
    body = {"model": "base-model", "prompt": "hi", "task_vectors": {"acme/zebra@1": 1.0}}
    umbra = world.client("umbra")
    acme = world.client("acme")
    answer = acme.put(f"{path}/access", json={"shared_with": ["umbra"]})
    assert answer.json() == {
        "object": "access",
        "kind": "task_vector",
        "name": "acme/zebra",
        "visibility": "private",
        "shared_with": ["umbra"],
    }
    assert umbra.get(path).status_code == 200
    assert "acme/zebra" in umbra.get("/v1/task_vectors").text
    assert umbra.post("/v1/completions", json=body).status_code == 200
    for method, rest, options in (
        ("DELETE", "", {}),
        ("PATCH", "", {"json": {"description": "x"}}),
        ("PUT", "/tags/x", {"json": {"version": 1}}),
        ("DELETE", "/tags/stable", {}),
        ("GET", "/access", {}),
        ("PUT", "/access", {"json": {"visibility": "public"}}),
    ):
        refused = umbra.request(method, path + rest, **options)
        assert refused.status_code == 403, refused.text
        assert refused.json()["error"]["code"] == "not_your_namespace"
        assert "publish and change umbra/…" in refused.json()["error"]["message"]
    acme.put(f"{path}/access", json={"shared_with": []})
    assert umbra.get(path).status_code == 404
    time.sleep(0.6)
    assert umbra.post("/v1/completions", json=body).status_code == 404


@pytest.mark.parametrize(("path", "_"), [*NOT_OFFERED.items()])
def test_what_is_not_offered_is_so_for_everybody(world: World, path: str, _: str) -> None:
    """Whoever has a key is told why."""
    answer = world.client("umbra").post(path.replace("{rest:path}", "x"))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unsupported_route"


def test_a_shared_loadout_is_used_as_a_whole(world: World) -> None:
    """By the rights of its owner; what it is made of is no more open for that."""
    name = "/v1/loadouts/acme/zebra-bot"
    umbra = world.client("umbra__ops")
    acme = world.client("acme")
    acme.put(f"{name}/access", json={"visibility": "public"})
    assert umbra.get(name).status_code == 200
    assert "acme/zebra-bot" in umbra.get("/v1/models").text
    served = umbra.post("/v1/completions", json={"model": "acme/zebra-bot", "prompt": "hi"})
    assert served.status_code == 200, served.text
    promoted = umbra.post("/v1/promotions", json={"loadout": "acme/zebra-bot"})
    assert promoted.status_code == 200, promoted.text
    umbra.delete("/v1/promotions")
    assert umbra.get("/v1/task_vectors/acme/zebra").status_code == 404
    assert umbra.delete(name).status_code == 403
    acme.put(f"{name}/access", json={"visibility": "private"})
    assert umbra.get(name).status_code == 404


def test_a_loadout_goes_as_far_as_the_rights_of_its_owner(world: World) -> None:
    """A vector that is no longer shared serves no loadout that was saved with it."""
    body = {"name": "umbra/borrowed", "task_vectors": {"acme/zebra": 1}}
    access = "/v1/task_vectors/acme/zebra/access"
    umbra = world.client("umbra__ops")
    acme = world.client("acme")
    acme.put(access, json={"shared_with": ["umbra"]})
    assert umbra.post("/v1/loadouts", json=body).status_code == 201
    promotion = {"loadout": "umbra/borrowed"}
    assert umbra.post("/v1/promotions", json=promotion).status_code == 200
    umbra.delete("/v1/promotions")
    acme.put(access, json={"shared_with": []})
    body = {"model": "umbra/borrowed", "prompt": "hi"}
    assert umbra.post("/v1/completions", json=body).status_code == 404
    refused = umbra.post("/v1/promotions", json=promotion)
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == f"no task vector 'sha256:{world.digests[1]}'"
    assert umbra.delete("/v1/loadouts/umbra/borrowed").status_code == 200


def test_the_library_is_the_operators(world: World) -> None:
    """Everybody uses it, unless it is made private; nobody else publishes there."""
    file = {"params": {"name": "mine"}, "content": b"x"}
    umbra = world.client("umbra")
    operator = world.client("operator")
    assert umbra.get("/v1/task_vectors/mine").json()["publisher"] == "operator"
    assert umbra.post("/v1/task_vectors", **file).status_code == 403
    assert umbra.delete("/v1/task_vectors/mine").status_code == 403
    access = "/v1/task_vectors/mine/access"
    assert operator.put(access, json={"visibility": "private"}).status_code == 200
    assert umbra.get("/v1/task_vectors/mine").status_code == 404
    operator.put(access, json={"visibility": "public"})
    assert umbra.get("/v1/task_vectors/mine").status_code == 200


def test_the_operator_sees_everything(world: World) -> None:
    """And every change is in the trail, with the key that made it."""
    operator = world.client("operator")
    assert operator.get("/v1/task_vectors/acme/zebra").status_code == 200
    assert operator.get("/v1/loadouts/acme/zebra-bot").status_code == 200
    params = {"action": "task_vector.publish", "tenant": "acme"}
    page = operator.get("/v1/audit", params=params).json()
    assert [entry["subject"] for entry in page["data"]] == ["acme/zebra@2", "acme/zebra@1"]
    assert {entry["key"] for entry in page["data"]} == {world.keys["acme"].rpartition("_")[0][:14]}


def test_an_upload_belongs_to_its_tenant(world: World) -> None:
    """Its owner goes on with it; the other's full share of uploads is not counted."""
    umbra = world.client("umbra")
    acme = world.client("acme")
    headers = {**TUS, "upload-length": "5"}
    place = umbra.post("/v1/uploads", headers=headers).headers["location"]
    assert umbra.head(place, headers=TUS).status_code == 200
    assert acme.head(place, headers=TUS).status_code == 404
    assert acme.delete(place, headers=TUS).status_code == 404
    assert umbra.delete(place, headers=TUS).status_code == 204


def test_the_engine_is_told_another_salt_for_each_tenant(world: World) -> None:
    """So that the time of a first token tells nothing of another's prompts."""
    salts = {}
    for key in ("acme", "umbra", "umbra__ops"):
        for own in (None, "raw"):
            body = {"model": "base-model", "prompt": "echo"}
            fields = body if own is None else {**body, "cache_salt": own}
            client = world.client(key)
            answer = client.post("/v1/completions", json=fields).json()
            salts[key, own] = answer["choices"][0]["text"].partition('"cache_salt": "')[2][:43]
    assert all(len(salt) == 43 for salt in salts.values())
    assert salts["umbra", None] == salts["umbra__ops", None]
    assert len(set(salts.values())) == 4
    assert "raw" not in salts.values()
    asked = world.client("acme").post("/tokenize", json={"prompt": "one two"})
    assert asked.status_code == 200, "it has no salt, and needs none"


def test_a_key_may_be_sent_as_anthropics_clients_do(world: World) -> None:
    """In a header of its own; the one of OpenAI's clients goes first."""
    key = world.client("acme").headers["authorization"].removeprefix("Bearer ")
    ask = {"model": "base-model", "messages": [{"role": "user", "content": "go"}], "max_tokens": 9}

    def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{world.gateway.url}/v1/messages", json=ask, headers=named).status_code

    assert status(x_api_key=key) == 200
    assert status(x_api_key=f"{key[:-1]}~") == 401
    assert status(x_api_key=key, authorization="Bearer wrong") == 401
