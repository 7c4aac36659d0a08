"""`outfitter loadout …`, on a gateway over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import Running, make_vector, push
from tests.outfitter.test_cli import fails, invoke


@pytest.fixture(scope="module", autouse=True)
def vectors(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cli")
    with gateway.client as client:
        for seed, name in ((501, "cli/a"), (502, "cli/b")):
            push(client, make_vector(folder / str(seed), seed=seed), name)
        yield
        for name in ("cli/a", "cli/b"):
            client.delete(f"/v1/task_vectors/{name}")


def loadout(gateway: Running, *arguments: object) -> str:
    result = invoke("loadout", *arguments, "--url", gateway.url)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_model_is_saved_shown_rolled_back_and_deleted(
    gateway: Running, client: httpx.Client
) -> None:
    """The whole life of one."""
    assert "saved: cli/bot@1 (sha256:" in loadout(gateway, "save", "cli/bot", "cli/a=0.5")
    more = ("--request-vectors", "add", "--description", "for letters")
    second = json.loads(loadout(gateway, "save", "cli/bot", "cli/a", "cli/b=-1", *more, "--json"))
    assert (second["version"], second["request_vectors"]) == (2, "add")
    assert second["task_vectors"]["vectors"] == [
        {"name": "cli/a"},
        {"name": "cli/b", "weight": -1.0},
    ]
    listed = loadout(gateway, "list")
    assert "cli/bot@2" in listed
    assert "for letters" in listed
    assert "serving: cli/bot@1" in loadout(gateway, "rollback", "cli/bot")
    body = {"model": "cli/bot", "prompt": "x"}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["task_vectors"]["saved"]["version"] == 1
    versions = loadout(gateway, "list", "--name", "cli/bot")
    assert "cli/bot@1 (latest)" in versions
    assert "cli/bot@2 (latest)" not in versions
    assert "serving: cli/bot@2" in loadout(gateway, "rollback", "cli/bot", "--to", 2)
    assert json.loads(loadout(gateway, "show", "cli/bot"))["version"] == 2
    assert "deleted: cli/bot" in loadout(gateway, "delete", "cli/bot")
    assert client.post("/v1/completions", json=body).status_code == 404


def test_a_method_and_its_settings_are_saved(gateway: Running) -> None:
    """As `merge` takes them."""
    flags = ("--method", "ties", "--set", "density=0.5", "--json")
    saved = json.loads(loadout(gateway, "save", "cli/ties", "cli/a", "cli/b", *flags))
    assert saved["resolved"]["method"] == "ties"
    assert saved["resolved"]["parameters"]["density"] == 0.5
    loadout(gateway, "delete", "cli/ties")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("save", "cli/x", "cli/nobody=1"), ("404", "cli/nobody")),
        (("save", "cli/x", "cli/a=much"), ("weight", "much")),
        (("save", "base-model", "cli/a"), ("409", "base-model")),
        (("save", "cli/x", "cli/a", "--request-vectors", "maybe"), ("forbid, replace, add",)),
        (("show", "cli/nobody"), ("404", "no saved loadout")),
        (("rollback", "cli/nobody"), ("404",)),
        (("rollback", "cli/nobody", "--to", 3), ("404",)),
        (("delete", "cli/nobody"), ("404",)),
    ],
)
def test_what_cannot_be_is_one_line(
    gateway: Running, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    """Status 1, and why."""
    fails(invoke("loadout", *arguments, "--url", gateway.url), *words)


def test_there_is_nothing_before_the_first_version(gateway: Running, tmp_path: Path) -> None:
    """It says how to name another."""
    loadout(gateway, "save", "cli/first", "cli/a")
    fails(invoke("loadout", "rollback", "cli/first", "--url", gateway.url), "--to")
    loadout(gateway, "delete", "cli/first")
