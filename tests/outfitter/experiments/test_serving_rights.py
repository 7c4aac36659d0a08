"""Whoever may use an experiment may use its variants; nobody else learns that it is there."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from outfitter.control.outcome import Outcome
from tests.outfitter.experiments.test_serving import FORCE, VARIANT, act, ask, served, told
from tests.outfitter.harness import (
    Running,
    make_config,
    make_vector,
    new_keys,
    push,
    running,
    wait_for,
)
from tests.outfitter.test_completions import error_of

NAME = "acme/tone"
SCOPES = {
    "acme": "infer publish",
    "acme__infer": "infer",
    "zebra": "infer",
    "zebra__tester": "infer publish",
    "operator": "admin",
}


@dataclass
class World:
    """A gateway on which acme runs an experiment of its own, private vectors."""

    gateway: Running
    clients: dict[str, httpx.Client]
    outcomes: list[Outcome] = field(default_factory=list)

    def share(self, *tenants: str) -> None:
        path = f"/v1/experiments/{NAME}/access"
        answer = self.clients["acme"].put(path, json={"shared_with": list(tenants)})
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("rights")
    config = make_config(root, auth="keys")
    keys = new_keys(config, **SCOPES)
    with running(config) as gateway:
        clients = {name: gateway.holding(key) for name, key in keys.items()}
        found = World(gateway.wait_ready(), clients)
        acme = clients["acme"]
        push(acme, make_vector(root / "a", seed=801), "acme/warmth")
        acme.post("/v1/loadouts", json={"name": "acme/bot", "task_vectors": {"acme/warmth": 1}})
        variants = [
            {"key": "bot", "model": "acme/bot"},
            {"key": "warm", "task_vectors": {"acme/warmth": 0.5}},
            {"key": "copy", "task_vectors": {"acme/warmth": 2}, "shadow": 1},
        ]
        body = {"name": NAME, "variants": variants}
        assert acme.post("/v1/experiments", json=body).status_code == 201
        act(acme, NAME, "start")
        gateway.inner.observers.append(found.outcomes.append)
        yield found
        for client in clients.values():
            client.close()


@pytest.fixture(autouse=True)
def _private(world: World) -> Iterator[None]:
    yield
    world.share()


def test_nobody_else_learns_of_it(world: World) -> None:
    """The answer is that for a model that does not exist, but for the name that was asked."""
    answers = [ask(world.clients["zebra"], name, "u") for name in (NAME, "acme/nine")]
    texts = [answer.text.replace(NAME, "acme/nine") for answer in answers]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert texts[0] == texts[1]
    assert VARIANT not in answers[0].headers


def test_whoever_it_is_shared_with_is_served_what_is_private(world: World) -> None:
    """By the rights of the owner, and only within the experiment; until it is shared no longer."""
    zebra = world.clients["zebra"]
    world.share("zebra")
    wait_for(lambda: ask(zebra, NAME, "u").status_code == 200, 1)
    seen = {told(ask(zebra, NAME, f"user-{number}"))["variant"] for number in range(12)}
    assert seen == {"bot", "warm"}
    for fields in ({"model": "acme/bot"}, {"task_vectors": {"acme/warmth": 1}}):
        answer = zebra.post(
            "/v1/completions", json={"model": "base-model", "prompt": "x", **fields}
        )
        assert answer.status_code == 404
    world.share()
    wait_for(lambda: ask(zebra, NAME, "u").status_code == 404, 1)


def test_forcing_needs_the_scope_publish(world: World) -> None:
    """A key that may only ask is told what it lacks."""
    world.share("zebra")
    for name, status in (("acme__infer", 403), ("zebra", 403), ("zebra__tester", 200)):
        answer = ask(world.clients[name], NAME, "u", {FORCE: "warm"})
        assert answer.status_code == status
        if status == 403:
            assert error_of(answer)["code"] == "insufficient_scope"
            assert "'publish'" in error_of(answer)["message"]


def test_units_are_keys(world: World) -> None:
    """Every key is a unit, by its visible prefix."""
    acme, name = world.clients["acme"], "acme/keys"
    variants = [{"key": "a", "model": "base-model"}, {"key": "b", "model": "base-model"}]
    body = {"name": name, "variants": variants, "unit": {"by": "key"}}
    assert acme.post("/v1/experiments", json=body).status_code == 201
    act(acme, name, "start")
    world.outcomes.clear()
    for who in ("acme", "acme__infer", "operator"):
        assert told(ask(world.clients[who], name))["counted"]
    wait_for(lambda: len(world.outcomes) == 3)
    units = [one.exposure.unit for one in world.outcomes if one.exposure is not None]
    assert units == [one.principal.key for one in world.outcomes]
    assert len(set(units)) == 3


def test_a_copy_is_charged_to_nobody(world: World) -> None:
    """Neither the tokens of its tenant nor its use; its cache is the tenant's own."""
    acme = world.clients["acme"]
    shadows, copies = world.gateway.inner.shadows, list[Outcome]()
    world.gateway.inner.shadow_observers.append(copies.append)
    wait_for(lambda: not shadows.num_pending)
    copies.clear()
    world.outcomes.clear()
    before = _tokens(world)
    for number in range(5):
        ask(acme, NAME, f"user-{number}")
    wait_for(lambda: len(copies) == 5)
    assert len(world.outcomes) == 5
    own = sum(one.prompt_tokens + one.completion_tokens for one in world.outcomes)
    assert _tokens(world) == before + own
    assert {one.principal.tenant for one in copies} == {"acme"}


def test_a_request_without_a_turn_counts_for_nothing(world: World) -> None:
    """It was refused by its quota, not by its variant."""
    operator, acme = world.clients["operator"], world.clients["acme"]
    path = "/v1/tenants/acme/limits"
    assert operator.patch(path, json={"requests_per_minute": 1}).status_code == 200

    def is_refused() -> bool:
        return ask(acme, NAME, "u").status_code == 429

    wait_for(is_refused, 3)
    last = world.outcomes[-1]
    assert last.exposure is not None
    assert (last.status, last.exposure.is_counted) == (429, False)
    operator.patch(path, json={"requests_per_minute": None})
    wait_for(lambda: ask(acme, NAME, "u").status_code == 200, 3)


def test_what_the_owner_may_no_longer_use_is_not_served(world: World, tmp_path: Path) -> None:
    """A vector that was shared with it, and is so no longer: an error of that variant alone."""
    operator, acme = world.clients["operator"], world.clients["acme"]
    push(operator, make_vector(tmp_path / "v", seed=802), "lent/skill")
    access = "/v1/task_vectors/lent/skill/access"
    operator.put(access, json={"shared_with": ["acme"]})
    variants = [
        {"key": "plain", "model": "base-model"},
        {"key": "lent", "task_vectors": {"lent/skill": 1}},
    ]
    body = {"name": "acme/lent", "variants": variants}
    wait_for(lambda: acme.post("/v1/experiments", json=body).status_code == 201, 2)
    act(acme, "acme/lent", "start")
    assert served(ask(acme, "acme/lent", "u", {FORCE: "lent"}))
    operator.put(access, json={"shared_with": []})
    wait_for(lambda: ask(acme, "acme/lent", "u", {FORCE: "lent"}).status_code == 404, 2)
    assert served(ask(acme, "acme/lent", "u", {FORCE: "plain"})) == ""


def _tokens(world: World) -> int:
    return int(world.gateway.inner.quotas.stats()["tenants"]["acme"]["tokens"])
