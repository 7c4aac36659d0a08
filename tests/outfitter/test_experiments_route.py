"""The routes of experiments: from a draft to what was shipped, and what is refused."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import Running, make_config, make_vector, new_keys, push, running

CONTROL = {"key": "control", "model": "acme/bot"}
WARM = {"key": "warm", "task_vectors": {"acme/json": 0.8}}
X = "/v1/experiments"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, str]]]:
    """A gateway with a vector and a saved loadout of acme's, and keys by name."""
    root = tmp_path_factory.mktemp("experiments")
    config = make_config(root, auth="keys")
    keys = new_keys(
        config,
        acme="infer publish",
        acme__reader="infer",
        umbra="infer publish",
        operator="admin",
    )
    with running(config) as gateway:
        gateway.wait_ready()
        with gateway.holding(keys["acme"]) as acme:
            push(acme, make_vector(root / "json"), "acme/json")
            body = {"name": "acme/bot", "task_vectors": {"acme/json": 0.5}}
            assert acme.post("/v1/loadouts", json=body).status_code == 201
        yield gateway, keys


@pytest.fixture
def acme(keyed: tuple[Running, dict[str, str]]) -> Iterator[httpx.Client]:
    gateway, keys = keyed
    with gateway.holding(keys["acme"]) as client:
        yield client


@pytest.fixture
def admin(keyed: tuple[Running, dict[str, str]]) -> Iterator[httpx.Client]:
    gateway, keys = keyed
    with gateway.holding(keys["operator"]) as client:
        yield client


def made(client: httpx.Client, name: str, *actions: str, **fields: object) -> dict:
    """An experiment after some actions."""
    body = {"name": name, "variants": [CONTROL, WARM], **fields}
    answer = client.post(X, json=body)
    assert answer.status_code == 201, answer.text
    for action in actions:
        answer = client.post(f"{X}/{name}/{action}")
        assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str, param: str | None, *words: str) -> None:
    error = answer.json()["error"]
    told = (answer.status_code, error["code"], error["param"])
    assert told == (status, code, param), answer.text
    assert all(word in error["message"] for word in words), error["message"]


def test_a_draft_is_what_was_said(acme: httpx.Client) -> None:
    """With every default filled in; it serves nobody yet."""
    draft = made(acme, "acme/draft", hypothesis="Warmth helps.")
    assert (draft["id"], draft["model"]) == ("acme/draft@1", "exp:acme/draft")
    assert (draft["status"], draft["coverage_now"]) == ("draft", 0.0)
    assert draft["unit"] == {"by": "user"}
    assert acme.get(f"{X}/acme/draft").json() == draft
    assert draft in acme.get(X).json()["data"]
    assert draft not in acme.get(X, params={"status": "running"}).json()["data"]
    assert "exp:acme/draft" not in models(acme)


def models(client: httpx.Client) -> list[str]:
    return [one["id"] for one in client.get("/v1/models").json()["data"]]


def test_a_start_pins_what_the_variants_are(acme: httpx.Client) -> None:
    """A saved loadout at its version of then, however often it is saved later."""
    found = made(acme, "acme/pinned", "start")
    assert (found["status"], found["version"]) == ("running", 2)
    assert found["resolved"]["control"]["model"] == "acme/bot@1"
    assert found["resolved"]["warm"]["loadout"].startswith("sha256:")
    assert found["buckets"] == {"control": 5000, "warm": 5000}
    assert abs(found["started_at"] - time.time()) < 60
    assert "exp:acme/pinned" in models(acme)
    model = acme.get("/v1/models/exp:acme/pinned").json()
    assert (model["id"], model["owned_by"]) == ("exp:acme/pinned", "acme")
    assert model["experiment"] == {"status": "running", "variants": ["control", "warm"]}
    listed = acme.get(X, params={"status": "running"}).json()["data"]
    assert "acme/pinned" in [one["name"] for one in listed]


def test_it_pauses_goes_on_and_stops(acme: httpx.Client) -> None:
    """Each as a version, with who did it; what is over never goes on."""
    found = made(acme, "acme/course", "start", "pause", "start", "stop")
    assert (found["status"], found["version"]) == ("stopped", 5)
    assert found["buckets"] == {"control": 5000, "warm": 5000}
    versions = acme.get(f"{X}/acme/course/versions").json()["data"]
    assert [one["action"] for one in versions] == ["stop", "start", "pause", "start", "create"]
    assert {one["by"]["tenant"] for one in versions} == {"acme"}
    answer = acme.post(f"{X}/acme/course/start")
    refused(answer, 409, "experiment_status", None, "that is stopped", "draft or paused")


def test_an_edit_is_a_version(acme: httpx.Client) -> None:
    """Unless it changes nothing, or somebody else was faster."""
    made(acme, "acme/edited", "start")
    answer = acme.patch(f"{X}/acme/edited", json={"weights": {"warm": 3}, "version": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json()["buckets"] == {"control": 2500, "warm": 7500}
    assert acme.patch(f"{X}/acme/edited", json={"weights": {"warm": 3}}).json()["version"] == 3
    answer = acme.patch(f"{X}/acme/edited", json={"coverage": 0.5, "version": 2})
    refused(answer, 409, "conflict", None, "has version 3, not 2")
    answer = acme.patch(f"{X}/acme/edited", json={"alpha": 0.5})
    refused(answer, 409, "experiment_status", "alpha", "running")
    answer = acme.patch(f"{X}/acme/edited", json={"weights": {"cold": 3}})
    refused(answer, 400, "unknown_parameter", "weights.cold", "control, warm")
    answer = acme.patch(f"{X}/acme/edited", json={"name": "acme/other"})
    refused(answer, 400, "invalid_parameter", "name", "keeps its name")


def test_a_winner_is_saved_as_a_model(acme: httpx.Client) -> None:
    """As its next version, and everybody gets it."""
    made(acme, "acme/ship", "start")
    answer = acme.post(f"{X}/acme/ship/ship", json={"variant": "warm", "as": "acme/winner"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["status"], found["winner"]) == ("shipped", "warm")
    saved = acme.get("/v1/loadouts/acme/winner").json()
    assert saved["digest"] == found["resolved"]["warm"]["loadout"]
    assert saved["description"] == "won the experiment acme/ship@2"
    assert saved["task_vectors"] == {"acme/json": 0.8}
    newest = acme.get(f"{X}/acme/ship/versions").json()["data"][0]
    assert (newest["action"], newest["figures"]["saved"]) == ("ship", "acme/winner@1")
    assert newest["figures"]["verdict"]["kind"] == "nothing_yet"
    payload = acme.get(f"{X}/acme/ship/growthbook").json()
    assert payload["features"]["acme/ship"] == {"defaultValue": "warm", "rules": []}
    chat = {"model": "acme/winner", "messages": [{"role": "user", "content": "hi"}]}
    assert acme.post("/v1/chat/completions", json=chat).status_code == 200


def test_a_saved_control_can_be_shipped(acme: httpx.Client) -> None:
    """Also under the name that it had."""
    made(acme, "acme/back", "start", "stop")
    answer = acme.post(f"{X}/acme/back/ship", json={"variant": "control", "as": "acme/back-bot"})
    assert answer.json()["winner"] == "control", answer.text
    digest = acme.get("/v1/loadouts/acme/bot").json()["digest"]
    assert acme.get("/v1/loadouts/acme/back-bot").json()["digest"] == digest


def test_what_cannot_be_shipped(acme: httpx.Client, admin: httpx.Client) -> None:
    """A draft, a shadow, the base, another's name, and a promotion without the right."""
    shadow = {"key": "new", "task_vectors": {"acme/json": 1}, "shadow": 0.1}
    base = {"key": "base", "model": "base-model"}
    made(acme, "acme/unshipped", variants=[CONTROL, base, shadow])
    path = f"{X}/acme/unshipped/ship"
    refused(acme.post(path, json={"variant": "base"}), 409, "experiment_status", None, "draft")
    assert acme.post(f"{X}/acme/unshipped/start").status_code == 200
    parameter = "invalid_parameter"
    refused(acme.post(path, json={"variant": "new"}), 400, parameter, "variant", "control, base")
    refused(acme.post(path), 409, "no_winner", "variant", "no units yet", "name one")
    answer = acme.post(path, json={"variant": "base", "as": "acme/x"})
    refused(answer, 400, parameter, "as", "base itself")
    answer = acme.post(path, json={"variant": "control", "as": "umbra/x"})
    refused(answer, 403, "not_your_namespace", None, "acme/…")
    answer = acme.post(path, json={"variant": "control", "promote": True})
    refused(answer, 403, "insufficient_scope", None, "operate")
    answer = admin.post(path, json={"variant": "control", "promote": True})
    refused(answer, 403, "promotions_not_allowed", "promote")
    assert acme.get(f"{X}/acme/unshipped").json()["status"] == "running"


def test_what_is_refused_names_the_field(acme: httpx.Client) -> None:
    """Whatever a variant names must be there, and be somebody's own where it is to be shipped."""
    body = {"name": "acme/wrong", "variants": [CONTROL, WARM], "metrics": [{"name": "m"}]}
    for change, status, code, param in (
        ({"name": "umbra/tone"}, 403, "not_your_namespace", None),
        ({"name": "tone"}, 403, "not_your_namespace", None),
        ({"name": "acme/versions"}, 400, "invalid_parameter", "name"),
        ({"colour": 1}, 400, "unknown_parameter", "colour"),
        ({"variants": [CONTROL]}, 400, "invalid_parameter", "variants"),
        (
            {"variants": [CONTROL, {"key": "b", "model": "acme/none"}]},
            404,
            "task_vector_not_found",
            "variants[1].model",
        ),
        (
            {"variants": [CONTROL, {"key": "b", "task_vectors": {"acme/none": 1}}]},
            404,
            "task_vector_not_found",
            "variants[1].task_vectors",
        ),
        (
            {"primary": "m", "automatic": {"ship": "save", "ship_as": "umbra/bot"}},
            403,
            "not_your_namespace",
            None,
        ),
        ({"primary": "m", "automatic": {"ship": "promote"}}, 403, "insufficient_scope", None),
    ):
        refused(acme.post(X, json={**body, **change}), status, code, param)
    assert acme.get(f"{X}/acme/wrong").status_code == 404


def test_text_that_cannot_be_told_is_refused(acme: httpx.Client) -> None:
    """Half a character, in any field; else nobody could list experiments any more."""
    made(acme, "acme/told")
    body = {"name": "acme/untold", "variants": [CONTROL, WARM]}
    for half in (
        {"hypothesis": "\ud83d"},
        {"graders": [{"name": "g", "kind": "exact", "expected": "\ud83d"}]},
    ):
        answers = [acme.post(X, content=json.dumps({**body, **half}))]
        answers.append(acme.patch(f"{X}/acme/told", content=json.dumps(half)))
        for answer in answers:
            assert answer.status_code == 422, answer.text
            assert "a character that is no text" in answer.json()["error"]["message"]
    assert acme.get(X).status_code == 200


def test_who_may_what(keyed: tuple[Running, dict[str, str]], acme: httpx.Client) -> None:
    """Whoever may infer reads; whoever may publish changes; another tenant finds nothing."""
    gateway, keys = keyed
    made(acme, "acme/rights")
    with gateway.holding(keys["acme__reader"]) as reader:
        assert reader.get(f"{X}/acme/rights").status_code == 200
        answer = reader.post(f"{X}/acme/rights/start")
        refused(answer, 403, "insufficient_scope", None, "publish")
    with gateway.holding(keys["umbra"]) as umbra:
        for answer in (umbra.get(f"{X}/acme/rights"), umbra.post(f"{X}/acme/rights/start")):
            refused(answer, 404, "experiment_not_found", None)


def test_sharing(keyed: tuple[Running, dict[str, str]], acme: httpx.Client) -> None:
    """Whoever an experiment is shared with may see and use it, and change nothing."""
    gateway, keys = keyed
    made(acme, "acme/shared", "start")
    path = f"{X}/acme/shared"
    answer = acme.put(f"{path}/access", json={"shared_with": ["umbra"]})
    assert answer.json()["shared_with"] == ["umbra"], answer.text
    assert acme.get(f"{path}/access").json()["visibility"] == "private"
    with gateway.holding(keys["umbra"]) as umbra:
        assert umbra.get(path).json()["status"] == "running"
        chat = {"model": "exp:acme/shared", "messages": [{"role": "user", "content": "hi"}]}
        assert umbra.post("/v1/chat/completions", json=chat).status_code == 200
        for answer in (umbra.post(f"{path}/stop"), umbra.get(f"{path}/versions")):
            refused(answer, 403, "not_your_namespace", None)


def test_deleting(acme: httpx.Client) -> None:
    """A running one stays; one that is over is forgotten."""
    made(acme, "acme/gone", "start")
    refused(acme.delete(f"{X}/acme/gone"), 409, "conflict", None, "stop it first")
    assert acme.post(f"{X}/acme/gone/stop").status_code == 200
    assert acme.delete(f"{X}/acme/gone").json()["deleted"] is True
    assert acme.get(f"{X}/acme/gone").status_code == 404


def test_outside_tools_get_what_they_assign_by(acme: httpx.Client) -> None:
    """GrowthBook's payload, once there is something to assign by."""
    made(acme, "acme/outside")
    answer = acme.get(f"{X}/acme/outside/growthbook")
    refused(answer, 409, "experiment_status", None, "draft")
    assert acme.post(f"{X}/acme/outside/start").status_code == 200
    payload = acme.get(f"{X}/acme/outside/growthbook", params={"attribute": "user"}).json()
    rule = payload["features"]["acme/outside"]["rules"][0]
    assert (rule["hashAttribute"], rule["seed"]) == ("user", "acme/outside")
    assert [one["key"] for one in rule["meta"]] == ["control", "warm"]


def test_changes_stand_in_the_trail(acme: httpx.Client, admin: httpx.Client) -> None:
    """By version, with the key that made them."""
    made(acme, "acme/trail", "start")
    found = admin.get("/v1/audit", params={"action": "experiment.start"}).json()["data"]
    mine = [one for one in found if one["subject"] == "acme/trail@2"]
    assert [one["tenant"] for one in mine] == ["acme"]
    assert mine[0]["key"].startswith("ofk_")
    assert mine[0]["request_id"]


def test_two_gateways_agree(tmp_path: Path) -> None:
    """A change on one is seen by the other within a second."""
    config = make_config(tmp_path)
    with (
        running(config) as one,
        running(config) as two,
        one.wait_ready().client as first,
        two.wait_ready().client as second,
    ):
        push(first, make_vector(tmp_path / "v"), "json")
        variants = [
            {"key": "a", "model": "base-model"},
            {"key": "b", "task_vectors": {"json": 1}},
        ]
        assert first.post(X, json={"name": "t", "variants": variants}).status_code == 201
        assert second.post(f"{X}/t/start").json()["status"] == "running"
        deadline = time.monotonic() + 1
        while one.inner.registry.find(None, "t").version != 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert first.get(f"{X}/t").json() == second.get(f"{X}/t").json()
