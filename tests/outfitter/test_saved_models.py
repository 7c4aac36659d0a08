"""Saved loadouts as models: served, pinned, moved, listed, and mixed by their own rule."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.control.saved import describe_model
from outfitter.state.records import SavedLoadout, Terms
from taskvectors.spec import Loadout, LoadoutItem
from tests.outfitter.harness import FINGERPRINT, Running, make_vector, opened, push, wait_for
from tests.outfitter.test_completions import error_of

PATH = "/v1/loadouts"
BODIES: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": "go"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "go"}]},
    "/v1/responses": {"input": "go"},
    "/v1/messages": {"messages": [{"role": "user", "content": "go"}], "max_tokens": 9},
}

Save = Callable[..., dict]
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of `own/a`, `own/b` and `own/c`, in hex."""
    folder = tmp_path_factory.mktemp("own")
    names = ["own/a", "own/b", "own/c"]
    with gateway.client as client:
        files = [make_vector(folder / str(seed), seed=seed) for seed in (301, 302, 303)]
        yield [
            push(client, file, name)["digest"][7:] for file, name in zip(files, names, strict=True)
        ]
        for name in names:
            client.delete(f"/v1/task_vectors/{name}")


@pytest.fixture
def save(client: httpx.Client, digests: list[str]) -> Iterator[Save]:
    """Saves a loadout, until the end of the test."""
    names = set()

    def save(name: str, task_vectors: object, **fields: object) -> dict:
        answer = client.post(PATH, json={"name": name, "task_vectors": task_vectors, **fields})
        assert answer.status_code == 201, answer.text
        names.add(name)
        return answer.json()

    yield save
    for name in names:
        client.delete(f"{PATH}/{name}")


@pytest.fixture
def bot() -> str:
    """A name that no other test has used: numbers of versions are never given twice."""
    return f"acme/bot{next(_NUMBERS)}"


def complete(client: httpx.Client, model: str, **fields: object) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "echo", **fields})


def served(answer: httpx.Response) -> str:
    """The loadout that the engine was told, in its canonical form; empty for the base."""
    assert answer.status_code == 200, answer.text
    seen = json.loads(answer.json()["choices"][0]["text"])
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    canonical = headers.get("x-taskvectors-loadout", "")
    model = Loadout.from_canonical(canonical).engine_name if canonical else "base-model"
    assert seen["body"]["model"] == model
    return canonical


def mix(*items: tuple[str, float]) -> str:
    return Loadout.build([LoadoutItem(digest, weight) for digest, weight in items]).canonical


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_route_serves_a_saved_loadout(
    client: httpx.Client, save: Save, bot: str, path: str, stream: bool
) -> None:
    """The client's name for the model is in the answer, and what served it."""
    digest = save(bot, {"own/a": 0.5})["digest"]
    for model in (bot, f"{bot}@1"):
        answer = client.post(path, json={"model": model, "stream": stream, **BODIES[path]})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-outfitter-loadout"] == digest
        name = digest.replace("sha256:", "tv:")
        said = answer.text.replace(f'\\"model\\":\\"{name}\\"', "")  # by the model itself
        assert name not in said
        assert f'"model":"{model}"' in said
        assert said.count(f'"saved":{{"name":"{bot}","version":1}}') == 1


def test_the_answer_says_what_was_saved(
    client: httpx.Client, digests: list[str], save: Save, bot: str, tmp_path: Path
) -> None:
    """Names and versions are those of the day it was saved, whatever they mean now."""
    save(bot, [{"name": "own/a@latest", "weight": 0.5, "layers": [0]}, {"name": "own/b"}])
    push(client, make_vector(tmp_path / "v", seed=310), "own/a")
    answer = complete(client, bot)
    first, second = answer.json()["task_vectors"].pop("vectors")
    told = (first["name"], first["version"], first["digest"], first["weight"], first["layers"])
    assert told == ("own/a", 1, f"sha256:{digests[0]}", 0.5, [[0, 0, 1.0]])
    assert (second["name"], second["weight"]) == ("own/b", 1.0)
    client.delete("/v1/task_vectors/own/a@2")


def test_a_version_is_moved_for_everybody_at_once(
    client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """Back to an older one, and on again; a pinned version never moves."""
    save(bot, {"own/a": 1})
    save(bot, {"own/b": 1})
    a, b = mix((digests[0], 1)), mix((digests[1], 1))
    assert served(complete(client, bot)) == b
    moved = client.patch(f"{PATH}/{bot}", json={"latest": 1})
    assert (moved.status_code, moved.json()["id"]) == (200, f"{bot}@1")
    assert served(complete(client, bot)) == a
    assert served(complete(client, f"{bot}@2")) == b
    versions = client.get(PATH, params={"name": bot}).json()["data"]
    assert [(one["version"], one["latest"]) for one in versions] == [(2, False), (1, True)]
    assert client.get(f"{PATH}/{bot}").json()["version"] == 1
    assert client.delete(f"{PATH}/{bot}@2").status_code == 200
    assert served(complete(client, bot)) == a
    assert save(bot, {"own/c": 1})["version"] == 3
    assert served(complete(client, bot)) == mix((digests[2], 1))
    client.delete(f"{PATH}/{bot}@3")
    assert served(complete(client, bot)) == a


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "latest"),
        ({"latest": "2"}, 400, "latest"),
        ({"latest": True}, 400, "latest"),
        ({"latest": 0}, 400, "latest"),
        ({"latest": 10**30}, 400, "latest"),
        ({"latest": 7}, 404, None),
        ({"latest": 1, "x": 1}, 400, "x"),
    ],
)
def test_a_move_that_cannot_be_is_refused(
    client: httpx.Client, save: Save, bot: str, body: object, status: int, param: str | None
) -> None:
    """And nothing moves."""
    save(bot, {"own/a": 1})
    save(bot, {"own/b": 1})
    answer = client.patch(f"{PATH}/{bot}", json=body)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    assert client.get(f"{PATH}/{bot}").json()["version"] == 2
    assert client.patch(f"{PATH}/{bot}@1", json={"latest": 1}).status_code == 400
    assert client.patch(f"{PATH}/acme/nobody", json={"latest": 1}).status_code == 404


def test_a_request_finishes_on_what_it_started_with(
    client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """A move and a delete meanwhile change nothing for it."""
    save(bot, {"own/a": 1})
    save(bot, {"own/b": 1})
    body = {"model": bot, "prompt": "slowly", "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        first = json.loads(next(lines)[6:])
        client.patch(f"{PATH}/{bot}", json={"latest": 1})
        client.delete(f"{PATH}/{bot}@2")
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert first["task_vectors"]["saved"] == {"name": bot, "version": 2}
    assert len(rest) == 2
    engine_name = Loadout.build([LoadoutItem(digests[1], 1.0)]).engine_name
    assert rest[0]["choices"][0]["text"] == f'"model":"{engine_name}"'


def test_another_replica_sees_a_new_version_and_a_delete_within_a_second(
    gateway: Running, client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """Written past this gateway, as another one does."""
    save(bot, {"own/a": 1})
    assert served(complete(client, bot)) == mix((digests[0], 1))
    other = Loadout.build([LoadoutItem(digests[1], 1.0)])
    with opened(gateway.config) as vectors:
        terms = Terms(base_fingerprint=FINGERPRINT)
        vectors.catalog.save_loadout(bot, other, {}, None, terms)
        wait_for(lambda: served(complete(client, bot)) == other.canonical, 1.0)
        vectors.catalog.delete_loadout(bot)
        wait_for(lambda: complete(client, bot).status_code == 404, 1.0)


def test_moves_under_load_never_show_anything_else(
    gateway: Running, client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """Every answer is wholly one version: what is said and what was served agree."""
    loadouts = [save(bot, {name: 1})["digest"] for name in ("own/a", "own/b")]
    seen: list[tuple[int, str]] = []
    failures: list[str] = []
    stop = time.monotonic() + 1.5

    def ask() -> None:
        with gateway.client as mine:
            while time.monotonic() < stop:
                answer = complete(mine, bot)
                if answer.status_code != 200:
                    failures.append(answer.text)
                    return
                version = answer.json()["task_vectors"]["saved"]["version"]
                seen.append((version, answer.headers["x-outfitter-loadout"]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    turn = 0
    while time.monotonic() < stop:
        turn += 1
        client.patch(f"{PATH}/{bot}", json={"latest": 1 + turn % 2})
    for thread in threads:
        thread.join()
    assert not failures
    assert {(1, loadouts[0]), (2, loadouts[1])} == set(seen)


def test_by_default_a_request_may_not_change_the_mix(
    client: httpx.Client, save: Save, bot: str
) -> None:
    """It is served as it was saved or not at all; null is nothing."""
    assert save(bot, {"own/a": 1})["request_vectors"] == "forbid"
    for value in ({"own/b": 1}, {}, [], {"own/nobody": 1}):
        answer = complete(client, bot, task_vectors=value)
        error = error_of(answer)
        told = (answer.status_code, error["code"], error["param"])
        assert told == (400, "task_vectors_forbidden", "task_vectors")
        assert f"{bot}@1" in error["message"]
    assert complete(client, bot, task_vectors=None).status_code == 200


def test_a_request_may_replace_the_mix(
    client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """Its own is used alone, the base for nothing; without any the saved one serves."""
    save(bot, {"own/a": 1}, request_vectors="replace")
    answer = complete(client, bot, task_vectors={"own/b": 2})
    assert served(answer) == mix((digests[1], 2))
    told = answer.json()["task_vectors"]
    assert [vector["name"] for vector in told["vectors"]] == ["own/b"]
    assert told["saved"] == {"name": bot, "version": 1}
    assert told["request_vectors"] == "replace"
    assert served(complete(client, bot, task_vectors={})) == ""
    assert served(complete(client, bot)) == mix((digests[0], 1))


def test_a_request_may_add_to_the_mix(
    client: httpx.Client, digests: list[str], save: Save, bot: str
) -> None:
    """The weights of one file add up, and may cancel; both sides are named."""
    save(bot, {"own/a": 1, "own/b": 0.5}, request_vectors="add")
    answer = complete(client, bot, task_vectors={"own/b": 0.25, "own/c": -1})
    assert served(answer) == mix((digests[0], 1), (digests[1], 0.75), (digests[2], -1))
    told = answer.json()["task_vectors"]
    names = [vector["name"] for vector in told["vectors"]]
    assert names == ["own/a", "own/b", "own/b", "own/c"]
    assert told["request_vectors"] == "add"
    assert told["loadout"] == answer.headers["x-outfitter-loadout"]
    nothing = complete(client, bot, task_vectors={"own/a": -1, "own/b": -0.5})
    assert served(nothing) == ""
    assert nothing.headers["x-outfitter-loadout"] == "base"


def test_only_linear_mixes_add_up(client: httpx.Client, save: Save, bot: str) -> None:
    """400 for a request of another method, and when one of another method is to be saved so."""
    ties = {"vectors": {"own/a": 1, "own/b": 1}, "method": "ties", "density": 0.5}
    save(bot, {"own/a": 1}, request_vectors="add")
    answer = complete(client, bot, task_vectors=ties)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_loadout")
    assert "'linear' on both sides, not 'ties'" in error_of(answer)["message"]
    body = {"name": "acme/ties", "task_vectors": ties, "request_vectors": "add"}
    refused = client.post(PATH, json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "request_vectors")


def test_a_sum_has_the_bounds_of_a_request(
    client: httpx.Client, save: Save, bot: str, tmp_path: Path
) -> None:
    """Sixteen vectors, and weights within ±16."""
    names = [f"own/many{i}" for i in range(17)]
    for i, name in enumerate(names):
        push(client, make_vector(tmp_path / name.replace("/", "-"), seed=400 + i), name)
    save(bot, dict.fromkeys(names[:10], 1), request_vectors="add")
    answer = complete(client, bot, task_vectors=dict.fromkeys(names[10:], 1))
    assert answer.status_code == 400
    assert "17 vectors; at most 16" in error_of(answer)["message"]
    answer = complete(client, bot, task_vectors={names[0]: 15.5})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_loadout")
    for name in names:
        client.delete(f"/v1/task_vectors/{name}")


def test_a_composed_loadout_is_a_model(client: httpx.Client, save: Save, bot: str) -> None:
    """Its method and parameters are said as they were asked for."""
    ties = {"vectors": {"own/a": 1, "own/b": 1}, "method": "ties", "density": 0.5}
    save(bot, ties)
    told = complete(client, bot).json()["task_vectors"]
    assert (told["method"], told["parameters"]["density"]) == ("ties", 0.5)


def test_a_saved_loadout_of_another_base_is_refused(
    gateway: Running, client: httpx.Client, digests: list[str]
) -> None:
    """422, and it is not listed; where nobody knows the base, its vectors tell."""
    loadout = Loadout.build([LoadoutItem(digests[0], 1.0)])
    with opened(gateway.config) as vectors:
        vectors.save_loadout("far/bot", loadout, {}, None, Terms(base_fingerprint="f" * 64))
        vectors.save_loadout("old/bot", loadout, {}, None, Terms())
    wait_for(lambda: complete(client, "old/bot").status_code == 200, 2)
    answer = complete(client, "far/bot")
    told = (answer.status_code, error_of(answer)["code"], error_of(answer)["param"])
    assert told == (422, "base_mismatch", "model")
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert "old/bot" in listed
    assert "far/bot" not in listed
    (vector,) = complete(client, "old/bot").json()["task_vectors"]["vectors"]
    assert (vector["name"], vector["digest"]) == (None, f"sha256:{digests[0]}")
    for name in ("far/bot", "old/bot"):
        client.delete(f"{PATH}/{name}")


def test_a_deleted_vector_stays_in_its_saved_model(
    client: httpx.Client, save: Save, bot: str, tmp_path: Path
) -> None:
    """A tombstone keeps it."""
    push(client, make_vector(tmp_path / "v", seed=320), "own/gone")
    save(bot, {"own/gone": 1})
    client.delete("/v1/task_vectors/own/gone")
    assert complete(client, bot).status_code == 200


@pytest.mark.parametrize(
    "model",
    [
        *("acme/nobody", "{bot}@9", "{bot}@stable", "{bot}@latest", "X{bot}", "a/b/c", "", "a b"),
        *("x" * 500, "sha256:" + "0" * 64, "{bot}@sha256:" + "0" * 64, "{bot}\n", "tv:0"),
    ],
)
def test_a_model_that_is_not_there_is_404(
    client: httpx.Client, save: Save, bot: str, model: str
) -> None:
    """The same on every route that names a model."""
    save(bot, {"own/a": 1})
    answer = complete(client, model.format(bot=bot))
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


def test_the_name_of_the_base_is_taken(client: httpx.Client, digests: list[str]) -> None:
    """In any case: nothing may look like it."""
    for name in ("base-model", "Base-Model"):
        answer = client.post(PATH, json={"name": name, "task_vectors": {"own/a": 1}})
        assert (answer.status_code, error_of(answer)["param"]) == (409, "name")


def test_a_bad_rule_and_description_are_refused(client: httpx.Client, digests: list[str]) -> None:
    """Each names itself and what would be right."""
    for field, value, right in (
        ("request_vectors", "maybe", "forbid, replace, add"),
        ("request_vectors", None, "forbid, replace, add"),
        ("description", 3, "a string"),
    ):
        body = {"name": "acme/x", "task_vectors": {"own/a": 1}, field: value}
        answer = client.post(PATH, json=body)
        assert (answer.status_code, error_of(answer)["param"]) == (400, field)
        assert right in error_of(answer)["message"]


def test_models_are_listed_with_what_they_are(client: httpx.Client, save: Save, bot: str) -> None:
    """The base first, then the latest version of every saved loadout, as vLLM lists its LoRAs."""
    save(bot, {"own/a": 1}, description="answers letters")
    saved = save(bot, {"own/b": 1}, description="answers letters", request_vectors="add")
    listing = client.get("/v1/models").json()
    base, *others = listing["data"]
    assert (base["id"], base["parent"], listing["has_more"]) == ("base-model", None, False)
    (model,) = [one for one in others if one["id"] == bot]
    assert model == {
        "id": bot,
        "object": "model",
        "created": saved["created_at"],
        "owned_by": "acme",
        "root": "base-model",
        "parent": "base-model",
        "version": 2,
        "loadout": saved["digest"],
        "description": "answers letters",
        "request_vectors": "add",
    }
    assert client.get(f"/v1/models/{bot}").json() == model
    pinned = client.get(f"/v1/models/{bot}@1").json()
    assert (pinned["id"], pinned["version"]) == (f"{bot}@1", 1)
    assert client.get("/v1/models/acme/nobody").status_code == 404


def test_a_model_without_a_namespace_is_the_servers() -> None:
    """As the base is."""
    saved = SavedLoadout("bot", 1, "0" * 64, "{}", {}, 5)
    assert describe_model(saved, "bot", "base")["owned_by"] == "outfitter"
