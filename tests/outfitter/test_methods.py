"""Requests that name a merge method: what the engine is told, and what the client."""

import httpx
import pytest

from taskvectors.methods import METHODS
from taskvectors.spec import Loadout, LoadoutItem
from tests.outfitter.harness import Running, make_vector, push
from tests.outfitter.test_completions import ask, echo, error_of

PAIR = {"ties-a": 1.0, "ties-b": -0.25}


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("vectors")
    with gateway.client as client:
        files = {name: make_vector(root / name, seed) for seed, name in enumerate(PAIR, start=40)}
        return [push(client, file, name)["digest"] for name, file in files.items()]


def ties(digests: list[str], method: str = "ties", **parameters: object) -> Loadout:
    pairs = zip(digests, PAIR.values(), strict=True)
    return Loadout.build([LoadoutItem(d[7:], weight) for d, weight in pairs], method, parameters)


def test_method_and_parameters_reach_the_engine(client: httpx.Client, digests: list[str]) -> None:
    """In the canonical loadout, complete, under a model name of their own."""
    seen = echo(client, task_vectors={"vectors": PAIR, "method": "ties", "density": 0.3})
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    loadout = ties(digests, density=0.3)
    assert headers["x-taskvectors-loadout"] == loadout.canonical
    assert seen["body"]["model"] == loadout.engine_name
    assert loadout.engine_name != ties(digests, "linear").engine_name


def test_the_answer_names_method_parameters_and_weights(
    client: httpx.Client, digests: list[str]
) -> None:
    """Also the parameters that the request left to their defaults."""
    response = ask(client, "x", task_vectors={"vectors": PAIR, "method": "ties", "density": 0.3})
    label = f"sha256:{ties(digests, density=0.3).digest}"
    assert response.headers["x-outfitter-loadout"] == label
    assert response.json()["task_vectors"] == {
        "loadout": label,
        "method": "ties",
        "parameters": {"density": 0.3, "lambda": 1.0, "normalize": True},
        "vectors": [
            {"name": name, "version": 1, "digest": digest, "weight": weight}
            for (name, weight), digest in zip(PAIR.items(), digests, strict=True)
        ],
    }


def test_a_parameter_that_names_a_vector_is_resolved(
    client: httpx.Client, digests: list[str]
) -> None:
    """The engine gets a digest; the client reads what it wrote."""
    asked = {"vectors": PAIR, "method": "tall_masks", "task": "ties-b@1"}
    seen = echo(client, task_vectors=asked)
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert (
        headers["x-taskvectors-loadout"]
        == ties(digests, "tall_masks", task=digests[1][7:]).canonical
    )
    parameters = ask(client, "x", task_vectors=asked).json()["task_vectors"]["parameters"]
    assert parameters["task"] == "ties-b@1"


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if not method.at_request])
@pytest.mark.usefixtures("digests")
def test_a_publish_time_method_is_refused(client: httpx.Client, name: str) -> None:
    """The gateway says what to do instead, and does not bother the engine."""
    vectors = dict.fromkeys(PAIR, 1.0)
    error = error_of(
        response := ask(client, "x", task_vectors={"vectors": vectors, "method": name})
    )
    assert (response.status_code, error["code"]) == (400, "invalid_loadout")
    assert error["param"] == "task_vectors"
    assert f"'{name}'" in error["message"]
    assert "merge once with `outfitter merge` and publish the result" in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "tiez"}, ["'tiez'", "did you mean 'ties'?"]),
        ({"method": "none"}, ["'none'", *METHODS]),
        ({"method": ["ties"]}, ["unsupported method", "dare_ties"]),
        ({"method": "ties", "densty": 0.2}, ["'densty'", "density, lambda, normalize"]),
        ({"method": "linear", "density": 0.2}, ["'density'", "it takes none"]),
        ({"density": 0.2}, ["'density'", "'linear'"]),
        ({"method": "ties", "density": 0}, ["density", "above 0 to 1"]),
        ({"method": "ties", "density": 2}, ["density", "above 0 to 1", "'2'"]),
        ({"method": "dare_linear", "rescale": "l2"}, ["rescale", "'density' or 'l1' or 'none'"]),
        ({"method": "dare_linear", "seed": 1.5}, ["seed", "a whole number"]),
        ({"method": "ties_original"}, ["'ties_original'", "knows no weights", "-0.25"]),
        ({"method": "tall_masks", "task": "json"}, ["task", "one of the loadout's vectors"]),
    ],
)
@pytest.mark.usefixtures("digests")
def test_a_wrong_method_or_parameter_is_refused(
    client: httpx.Client, gateway: Running, fields: dict[str, object], words: list[str]
) -> None:
    """With what was wrong, its value, and the choices."""
    if fields.get("task"):
        push(client, make_vector(gateway.config.store.parent / "json", seed=1), "json")
    error = error_of(response := ask(client, "x", task_vectors={"vectors": PAIR, **fields}))
    assert (response.status_code, error["code"]) == (400, "invalid_loadout")
    assert [word for word in words if word not in error["message"]] == []


@pytest.mark.usefixtures("digests")
def test_an_unknown_vector_in_a_method_is_not_found(client: httpx.Client) -> None:
    """The same error as without a method."""
    fields = {"vectors": {"ties-a": 1, "ties-x": 1}, "method": "ties"}
    error = error_of(response := ask(client, "x", task_vectors=fields))
    assert (response.status_code, error["code"]) == (404, "task_vector_not_found")
