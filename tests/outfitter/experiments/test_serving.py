"""An experiment is a model: every unit is served the mix of its variant, and the answer says so."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from outfitter.control.experiments.assign import Reason, assign
from outfitter.control.outcome import Outcome
from taskvectors.spec import Loadout, LoadoutItem
from tests.outfitter.harness import Running, make_vector, push, running, wait_for
from tests.outfitter.test_completions import error_of
from tests.outfitter.test_saved_models import BODIES

PATH = "/v1/experiments"
VARIANT, FORCE = "x-outfitter-variant", "x-outfitter-force-variant"
NAMES = ("own/ea", "own/eb", "own/ec")
PLAIN = {"key": "plain", "model": "base-model"}
WARM = {"key": "warm", "task_vectors": {"own/ea": 0.5}}
COLD = {"key": "cold", "task_vectors": {"own/eb": -1}}
_NUMBERS = itertools.count()

Define = Callable[..., str]


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of NAMES, in hex."""
    folder = tmp_path_factory.mktemp("own")
    with gateway.client as client:
        files = [make_vector(folder / str(seed), seed=seed) for seed in (701, 702, 703)]
        pairs = zip(files, NAMES, strict=True)
        yield [push(client, file, name)["digest"][7:] for file, name in pairs]
        for name in NAMES:
            client.delete(f"/v1/task_vectors/{name}")


@pytest.fixture
def define(client: httpx.Client, digests: list[str]) -> Iterator[Define]:
    """Defines an experiment and starts it, until the end of the test; returns its name."""
    names = []

    def define(*variants: dict, start: bool = True, **fields: object) -> str:
        name = f"acme/tone{next(_NUMBERS)}"
        body = {"name": name, "variants": list(variants) or [PLAIN, WARM], **fields}
        answer = client.post(PATH, json=body)
        assert answer.status_code == 201, answer.text
        names.append(name)
        if start:
            act(client, name, "start")
        return name

    yield define
    for name in names:
        client.post(f"{PATH}/{name}/stop")
        assert client.delete(f"{PATH}/{name}").status_code == 200


def act(client: httpx.Client, name: str, action: str, **fields: object) -> dict:
    answer = client.post(f"{PATH}/{name}/{action}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(
    client: httpx.Client, name: str, user: str | None = None, headers: Any = None, **fields: object
) -> httpx.Response:
    named = {} if user is None else {"user": user}
    body = {"model": f"exp:{name}", "prompt": "echo", **named, **fields}
    return client.post("/v1/completions", json=body, headers=headers)


def told(answer: httpx.Response) -> dict:
    """The `experiment` object, which the header agrees with."""
    assert answer.status_code == 200, answer.text
    fields = answer.json()["experiment"]
    label = f"{fields['name']}@{fields['version']}/{fields['variant']}"
    assert answer.headers[VARIANT] == label
    return fields


def served(answer: httpx.Response) -> str:
    """The loadout that the engine was told, in its canonical form; empty for the base."""
    assert answer.status_code == 200, answer.text
    seen = json.loads(answer.json()["choices"][0]["text"])
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    return headers.get("x-taskvectors-loadout", "")


def mix(digest: str, weight: float) -> str:
    return Loadout.build([LoadoutItem(digest, weight)]).canonical


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_route_serves_an_experiment(
    client: httpx.Client, define: Define, path: str, stream: bool
) -> None:
    """The client's name for the model is in the answer, with the variant and what served it."""
    name = define(WARM, {**PLAIN, "weight": 0})
    body = {"model": f"exp:{name}", "stream": stream, **BODIES[path]}
    user = {"metadata": {"user_id": "alice"}} if path == "/v1/messages" else {"user": "alice"}
    answer = client.post(path, json={**body, **user})
    assert answer.status_code == 200, answer.text
    assert answer.headers[VARIANT] == f"{name}@2/warm"
    engine_name = answer.headers["x-outfitter-loadout"].replace("sha256:", "tv:")
    said = answer.text.replace(f'\\"model\\":\\"{engine_name}\\"', "")  # by the model itself
    assert engine_name not in said
    assert f'"model":"exp:{name}"' in said
    assert said.count('"task_vectors":{"loadout":') == 1
    fields = {"name": name, "version": 2, "variant": "warm", "counted": True, "reason": "assigned"}
    assert said.count(f'"experiment":{json.dumps(fields, separators=(",", ":"))}') == 1


def test_units_are_served_their_variants(
    gateway: Running, client: httpx.Client, define: Define, digests: list[str]
) -> None:
    """As the hash assigns them, whatever came before; both mixes are served."""
    name = define(PLAIN, WARM, COLD, coverage=0.8)
    split = gateway.inner.registry.find(None, name).split
    mixes = {"plain": "", "warm": mix(digests[0], 0.5), "cold": mix(digests[1], -1)}
    seen = set()
    for user in [f"user-{number}" for number in range(40)] * 2:
        answer = ask(client, name, user)
        expected = assign(split, user)
        fields = told(answer)
        assert (fields["variant"], fields["counted"]) == (expected.variant, expected.is_counted)
        assert fields["reason"] == expected.reason
        assert served(answer) == mixes[expected.variant]
        seen.add((expected.variant, expected.reason))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"coverage": 0}, Reason.COVERAGE),
        ({"holdout": {"name": "q4", "range": [0, 1]}}, Reason.HOLDOUT),
        ({"layer": {"name": "chat", "range": [0.5, 0.5001]}}, Reason.LAYER),
    ],
)
def test_whoever_takes_no_part_gets_the_control(
    client: httpx.Client, define: Define, fields: dict, reason: str
) -> None:
    """And is told why."""
    name = define(WARM, PLAIN, control="plain", **fields)
    found = told(ask(client, name, "alice"))
    assert (found["variant"], found["counted"], found["reason"]) == ("plain", False, reason)


def test_a_request_that_names_nobody_gets_the_control(client: httpx.Client, define: Define) -> None:
    """It counts for nothing; so it is for every key where there are no keys."""
    for unit in ({"by": "user"}, {"by": "header", "header": "X-User"}, {"by": "key"}):
        found = told(ask(client, define(unit=unit)))
        assert (found["variant"], found["reason"]) == ("plain", Reason.NO_UNIT)


def test_a_header_names_the_unit(gateway: Running, client: httpx.Client, define: Define) -> None:
    """It is read as it was sent, in any language."""
    name = define(unit={"by": "header", "header": "X-User"})
    split = gateway.inner.registry.find(None, name).split
    for user in ("ann", "bob", "eve", "zoë", "日本"):
        found = told(ask(client, name, headers=[(b"x-user", user.encode())]))
        assert (found["variant"], found["counted"]) == (assign(split, user).variant, True)


def test_only_what_runs_counts(client: httpx.Client, define: Define) -> None:
    """A draft, a paused and a stopped one serve the control; a shipped one the winner."""
    name = define(start=False)
    users = [f"user-{number}" for number in range(12)]

    def variants() -> set[tuple[str, bool]]:
        answers = [told(ask(client, name, user)) for user in users]
        return {(fields["variant"], fields["counted"]) for fields in answers}

    assert variants() == {("plain", False)}
    act(client, name, "start")
    assert variants() == {("plain", True), ("warm", True)}
    act(client, name, "pause")
    assert variants() == {("plain", False)}
    act(client, name, "start")
    assert variants() == {("plain", True), ("warm", True)}
    act(client, name, "ship", variant="warm")
    assert variants() == {("warm", False)}
    other = define()
    act(client, other, "stop")
    found = told(ask(client, other, "user-1"))
    assert (found["variant"], found["reason"]) == ("plain", Reason.NOT_RUNNING)


@pytest.mark.parametrize("start", [False, True])
def test_a_tester_forces_a_variant(
    client: httpx.Client, define: Define, digests: list[str], start: bool
) -> None:
    """Also of a draft, and a shadow one; it counts for nothing."""
    name = define(PLAIN, WARM, {**COLD, "shadow": 0}, start=start)
    for key, loadout in (
        ("plain", ""),
        ("warm", mix(digests[0], 0.5)),
        ("cold", mix(digests[1], -1)),
    ):
        answer = ask(client, name, "alice", {FORCE: key})
        fields = told(answer)
        assert (fields["variant"], fields["counted"], fields["reason"]) == (key, False, "forced")
        assert served(answer) == loadout


def test_a_variant_that_cannot_be_forced_is_refused(client: httpx.Client, define: Define) -> None:
    """One that there is not; and where no variant serves, which would go unnoticed."""
    name = define()
    answer = ask(client, name, "alice", {FORCE: "hot"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, FORCE)
    assert "has no variant 'hot'; it has plain, warm" in error_of(answer)["message"]
    body = {"model": "base-model", "prompt": "x"}
    for path, model in (("/v1/completions", "base-model"), ("/tokenize", f"exp:{name}")):
        answer = client.post(path, json={**body, "model": model}, headers={FORCE: "warm"})
        assert (answer.status_code, error_of(answer)["param"]) == (400, FORCE)


def test_a_request_brings_no_vectors_of_its_own(client: httpx.Client, define: Define) -> None:
    """They would make another variant of it; null is nothing."""
    name = define()
    for value in ({"own/eb": 1}, {}, [], "x"):
        answer = ask(client, name, "alice", task_vectors=value)
        error = error_of(answer)
        found = (answer.status_code, error["code"], error["param"])
        assert found == (400, "task_vectors_forbidden", "task_vectors")
        assert VARIANT not in answer.headers
    assert told(ask(client, name, "alice", task_vectors=None))["counted"]


@pytest.mark.parametrize(
    "model", ["exp:", "exp:acme/nobody", "exp:tone@2", "exp:a b", "exp:exp:tone", "EXP:acme/x"]
)
def test_an_experiment_that_is_not_there_is_no_model(client: httpx.Client, model: str) -> None:
    """404, as for every other model."""
    answer = client.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


def test_tokens_are_the_same_for_all_variants(client: httpx.Client, define: Define) -> None:
    """Nobody is assigned by counting them."""
    answer = client.post("/tokenize", json={"model": f"exp:{define()}", "prompt": "x"})
    assert answer.status_code == 200
    assert VARIANT not in answer.headers


def test_a_saved_model_stays_at_its_version(
    client: httpx.Client, define: Define, digests: list[str]
) -> None:
    """As it was when the experiment started, also when it is deleted; the answer names it."""
    bot = f"acme/ebot{next(_NUMBERS)}"
    save = {"name": bot, "task_vectors": {"own/ea": 1}}
    client.post("/v1/loadouts", json=save)
    name = define({"key": "bot", "model": bot}, {**PLAIN, "weight": 0})
    client.post("/v1/loadouts", json={**save, "task_vectors": {"own/eb": 1}})
    for _ in range(2):
        answer = ask(client, name, "alice")
        assert served(answer) == mix(digests[0], 1)
        assert answer.json()["task_vectors"]["saved"] == {"name": bot, "version": 1}
        client.delete(f"/v1/loadouts/{bot}")


def test_an_error_of_a_variant_says_which(client: httpx.Client, define: Define) -> None:
    """That of the engine, and the last event of a stream."""
    name = define(WARM, {**PLAIN, "weight": 0})
    answer = ask(client, name, "alice", prompt="vllm error")
    assert (answer.status_code, answer.headers[VARIANT]) == (400, f"{name}@2/warm")
    assert f"bad exp:{name}" in error_of(answer)["message"]
    stream = ask(client, name, "alice", prompt="fail midway", stream=True)
    assert stream.headers[VARIANT] == f"{name}@2/warm"
    assert f"no exp:{name}" in stream.text


@pytest.fixture
def outcomes(gateway: Running) -> Iterator[list[Outcome]]:
    """What the gateway tells its observers, meanwhile."""
    seen: list[Outcome] = []
    gateway.inner.observers.append(seen.append)
    yield seen
    gateway.inner.observers.remove(seen.append)


def test_the_outcome_has_the_exposure(
    client: httpx.Client, define: Define, outcomes: list[Outcome]
) -> None:
    """Of what was served; an answer of the engine's that is an error counts, a bad request not."""
    name = define(WARM, {**PLAIN, "weight": 0})
    ask(client, name, "alice")
    ask(client, name, "alice", prompt="vllm error")
    ask(client, name, "alice", {FORCE: "plain"})
    ask(client, name, "x" * 300)
    ask(client, name, "alice", nonsense=1)
    client.post("/v1/completions", json={"model": "base-model", "prompt": "x"})
    wait_for(lambda: len(outcomes) == 6)
    first, failed, forced, long, wrong, other = (one.exposure for one in outcomes)
    assert first is not None
    assert (first.label, first.unit, first.is_counted) == (f"{name}@2/warm", "alice", True)
    assert not first.is_shadow
    assert failed == first
    assert forced is not None
    assert (forced.variant, forced.is_counted) == ("plain", False)
    assert long is not None
    assert str(long.unit).startswith("sha256:")
    assert (wrong, other) == (None, None)
    assert outcomes[0].model == f"exp:{name}"


class Shadowed:
    """An experiment with a shadow variant, and the outcomes of its copies."""

    def __init__(self, gateway: Running, define: Define, share: float) -> None:
        self.inner = gateway.inner
        self.name = define(PLAIN, WARM, {**COLD, "shadow": share})
        self.copies: list[Outcome] = []
        self.inner.shadow_observers.append(self.copies.append)

    def settle(self) -> list[Outcome]:
        wait_for(lambda: not self.inner.shadows.num_pending)
        return self.copies


@pytest.fixture
def shadowed(gateway: Running, define: Define) -> Iterator[Shadowed]:
    found = Shadowed(gateway, define, 1)
    yield found
    found.inner.shadow_observers.remove(found.copies.append)


@pytest.mark.parametrize("stream", [False, True])
def test_a_shadow_variant_gets_a_copy(
    client: httpx.Client,
    digests: list[str],
    shadowed: Shadowed,
    outcomes: list[Outcome],
    stream: bool,
) -> None:
    """After the answer, which is that of another variant; only who watches copies hears of it."""
    answer = ask(client, shadowed.name, "alice", {"x-request-id": "mine"}, stream=stream)
    assert answer.status_code == 200
    assert not answer.headers[VARIANT].endswith("/cold")
    (copy,) = shadowed.settle()
    exposure = copy.exposure
    assert exposure is not None
    assert (exposure.variant, exposure.unit, exposure.is_shadow) == ("cold", "alice", True)
    assert exposure.is_counted
    assert (copy.request_id, copy.status, copy.is_stream) == ("mine:cold", 200, stream)
    assert copy.loadout == f"sha256:{Loadout.build([LoadoutItem(digests[1], -1)]).digest}"
    assert (copy.completion_tokens, copy.charged) == (3, None)
    (own,) = outcomes
    assert copy.prompt_tokens == own.prompt_tokens
    assert own.exposure is not None
    assert not own.exposure.is_shadow


def test_what_is_not_counted_is_not_mirrored(client: httpx.Client, shadowed: Shadowed) -> None:
    """Nor what went wrong."""
    ask(client, shadowed.name)
    ask(client, shadowed.name, "alice", {FORCE: "warm"})
    ask(client, shadowed.name, "alice", prompt="vllm error")
    assert shadowed.settle() == []


def test_copies_are_among_the_raw_events(client: httpx.Client, shadowed: Shadowed) -> None:
    """Under the request's id and the variant, and marked."""
    ask(client, shadowed.name, "alice", {"x-request-id": "own"})

    def events() -> list[tuple[str, str, str]]:
        text = client.get(f"{PATH}/{shadowed.name}/events").text
        rows = csv.DictReader(io.StringIO(text))
        return sorted((row["request_id"], row["is_shadow"], row["unit"]) for row in rows)

    expected = [("own", "False", "alice"), ("own:cold", "True", "alice")]
    wait_for(lambda: events() == expected)


def test_a_slow_shadow_delays_nobody(client: httpx.Client, shadowed: Shadowed) -> None:
    """Its copies wait by themselves, and what hangs is aborted when the gateway stops."""
    for _ in range(3):
        answer = ask(client, shadowed.name, "alice", prompt="sleep 0.2")
        assert answer.elapsed.total_seconds() < 0.35
    assert len(shadowed.settle()) == 3


def test_another_gateway_assigns_alike(
    gateway: Running, client: httpx.Client, define: Define, tmp_path: Path
) -> None:
    """On one database; it sees a change within a second."""
    name = define()
    with running(gateway.config) as other, other.wait_ready().client as second:
        for number in range(20):
            here, there = (ask(c, name, f"user-{number}") for c in (client, second))
            assert told(here) == told(there)
            assert here.headers["x-outfitter-loadout"] == there.headers["x-outfitter-loadout"]
        act(client, name, "pause")
        wait_for(lambda: not told(ask(second, name, "user-1"))["counted"], 1.0)
