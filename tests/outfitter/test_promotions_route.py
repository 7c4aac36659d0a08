"""Promotions at the gateway: shut by default, resolved like a request, told as the engine tells."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from outfitter.cli import app
from outfitter.state.records import Terms
from taskvectors.spec import Loadout, LoadoutItem
from tests.outfitter.harness import (
    Running,
    make_config,
    make_vector,
    opened,
    push,
    running,
    wait_for,
)
from tests.outfitter.test_completions import error_of

PATH = "/v1/promotions"


@pytest.fixture(scope="module")
def promoting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway whose operator allows promotions, with one vector and one saved loadout."""
    root = tmp_path_factory.mktemp("promoting")
    with running(make_config(root, allow_promotions=True)) as found:
        found.wait_ready()
        with found.client as client:
            push(client, make_vector(root / "v", seed=131), "skill")
            body = {"name": "team/bot", "task_vectors": {"skill": 0.25}}
            assert client.post("/v1/loadouts", json=body).status_code == 201
        yield found


@pytest.fixture
def operator(promoting: Running) -> Iterator[httpx.Client]:
    with promoting.client as client:
        yield client
        client.delete(PATH)


def test_a_loadout_is_promoted_and_demoted(operator: httpx.Client) -> None:
    """The engine is told digests, and its state is told in the words of the API."""
    assert operator.get(PATH).json()["promoted"] is False
    digest = operator.get("/v1/task_vectors/skill").json()["digest"]
    answer = operator.post(PATH, json={"task_vectors": {"skill": 0.5}})
    assert answer.status_code == 200, answer.text
    state = answer.json()
    assert (state["object"], state["promoted"]) == ("promotion", True)
    vectors = [{"digest": digest.removeprefix("sha256:"), "weight": 0.5}]
    assert state["resolved"] == {"method": "linear", "vectors": vectors}
    assert operator.get(PATH).json()["loadout"] == state["loadout"]
    assert operator.delete(PATH).json()["loadout"] is None
    assert operator.get(PATH).json()["promoted"] is False


def test_a_saved_loadout_of_another_base_is_not_promoted(
    promoting: Running, operator: httpx.Client
) -> None:
    """422, as a request for it would be."""
    digest = operator.get("/v1/task_vectors/skill").json()["digest"].removeprefix("sha256:")
    loadout = Loadout.build([LoadoutItem(digest, 1.0)])
    with opened(promoting.config) as vectors:
        vectors.save_loadout("far/bot", loadout, {}, None, Terms(base_fingerprint="f" * 64))
    answer = operator.post(PATH, json={"loadout": "far/bot"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "base_mismatch")
    assert operator.get(PATH).json()["promoted"] is False


def test_a_saved_loadout_is_promoted_by_name(operator: httpx.Client) -> None:
    """The latest version, or a pinned one."""
    saved = operator.get("/v1/loadouts/team/bot").json()
    for name in ("team/bot", "team/bot@1"):
        state = operator.post(PATH, json={"loadout": name}).json()
        assert state["loadout"] == saved["digest"]
        assert state["resolved"] == saved["resolved"]


def test_the_engine_is_asked_and_not_remembered(promoting: Running, operator: httpx.Client) -> None:
    """An engine that was started anew has promoted nothing, and the gateway says so."""
    operator.post(PATH, json={"task_vectors": {"skill": 0.5}})
    body = {"model": promoting.config.name, "prompt": "die"}
    assert operator.post("/v1/completions", json=body).status_code == 502
    wait_for(lambda: operator.get("/health/ready").json().get("engine_restarts") == 1)
    promoting.wait_ready()
    assert operator.get(PATH).json()["promoted"] is False


def test_a_checksum_is_asked_for(operator: httpx.Client) -> None:
    assert operator.get(f"{PATH}?checksum=true").json()["asked"] == "checksum=true"
    assert operator.get(PATH).json()["asked"] == ""


def test_without_permission_nothing_changes(client: httpx.Client) -> None:
    """403; what is promoted may be seen."""
    for answer in (
        client.post(PATH, json={"task_vectors": {"x": 1}}),
        client.delete(PATH),
        client.get(f"{PATH}?checksum=true"),
    ):
        assert (answer.status_code, error_of(answer)["code"]) == (403, "promotions_not_allowed")
    assert client.get(PATH).json()["promoted"] is False


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_parameter"),
        ({"task_vectors": {"skill": 1}, "loadout": "team/bot"}, 400, "invalid_parameter"),
        ({"task_vectors": {"skill": 1}, "model": "x"}, 400, "unknown_parameter"),
        ({"task_vectors": {}}, 400, "invalid_loadout"),
        ({"task_vectors": None}, 400, "invalid_loadout"),
        ({"task_vectors": {"skill": 0}}, 400, "invalid_loadout"),
        ({"task_vectors": {"skill": "much"}}, 400, "invalid_loadout"),
        ({"task_vectors": {"nobody": 1}}, 404, "task_vector_not_found"),
        ({"loadout": 3}, 400, "invalid_parameter"),
        ({"loadout": "team/bot@stable"}, 400, "invalid_reference"),
        ({"loadout": "team/nobody"}, 404, "task_vector_not_found"),
        ([], 400, "invalid_json"),
    ],
)
def test_what_cannot_be_promoted_is_refused(
    operator: httpx.Client, body: object, status: int, code: str
) -> None:
    """Before the engine hears of it."""
    answer = operator.post(PATH, json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
    assert operator.get(PATH).json()["promoted"] is False


def test_what_the_engine_refuses_is_told(operator: httpx.Client) -> None:
    answer = operator.post(PATH, json={"task_vectors": {"skill": 3.25}})
    assert (answer.status_code, error_of(answer)["code"]) == (507, "promotion_too_large")
    assert error_of(answer)["message"] == "no memory"


def test_the_commands_promote_show_and_demote(promoting: Running) -> None:
    """And refuse what is said twice."""

    def outfitter(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*args, "--url", promoting.url])
        return done.exit_code, " ".join(done.output.split())

    assert outfitter("promote")[0] == 0
    assert "nothing is promoted" in outfitter("promote")[1]
    assert "promoted: sha256:" in outfitter("promote", "skill=0.5")[1]
    assert "promoted: sha256:" in outfitter("promote", "--loadout", "team/bot")[1]
    assert '"promoted": false' in outfitter("demote", "--json")[1]
    for args in (("skill", "--loadout", "x"), ("skill", "skill=2"), ("skill=much",)):
        status, output = outfitter("promote", *args)
        assert (status, output[:6]) == (1, "error:")


def test_the_engine_is_told_a_canonical_loadout(operator: httpx.Client) -> None:
    state = operator.post(PATH, json={"task_vectors": [{"name": "skill", "weight": -1}]}).json()
    items = Loadout.from_canonical(_canonical(state["resolved"])).items
    assert [item.weight for item in items] == [-1.0]


def _canonical(resolved: dict) -> str:
    return json.dumps(resolved, sort_keys=True, separators=(",", ":"))


def test_this_gateway_is_its_own(promoting: Running, tmp_path: Path) -> None:
    """The setting is off unless it is given."""
    assert make_config(tmp_path).allow_promotions is False
    assert promoting.config.allow_promotions is True


def test_the_winner_of_an_experiment_is_promoted(operator: httpx.Client) -> None:
    """And saved as well, if that is asked for; the version says what became of it."""
    variants = [{"key": "a", "model": "base-model"}, {"key": "b", "task_vectors": {"skill": 0.5}}]
    body = {"name": "team/test", "variants": variants}
    assert operator.post("/v1/experiments", json=body).status_code == 201
    assert operator.post("/v1/experiments/team/test/start").status_code == 200
    wanted = {"variant": "b", "promote": True, "as": "team/winner"}
    answer = operator.post("/v1/experiments/team/test/ship", json=wanted)
    assert answer.status_code == 200, answer.text
    digest = answer.json()["resolved"]["b"]["loadout"]
    assert operator.get(PATH).json()["loadout"] == digest
    newest = operator.get("/v1/experiments/team/test/versions").json()["data"][0]
    assert newest["figures"]["promoted"] == digest
    assert newest["figures"]["saved"] == "team/winner@1"
    trail = operator.get("/v1/audit", params={"limit": 3}).json()["data"]
    assert [entry["action"] for entry in trail] == [
        "experiment.ship",
        "promotion.promote",
        "loadout.save",
    ]
    assert operator.delete("/v1/experiments/team/test").status_code == 200
    operator.delete("/v1/loadouts/team/winner")
