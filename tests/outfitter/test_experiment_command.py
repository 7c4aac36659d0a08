"""`outfitter experiment …`, on a gateway over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.outfitter.harness import Running, make_vector, push
from tests.outfitter.test_cli import fails, invoke


@pytest.fixture(scope="module", autouse=True)
def vectors(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("experiments")
    with gateway.client as client:
        for seed, name in ((601, "lab/a"), (602, "lab/b")):
            push(client, make_vector(folder / str(seed), seed=seed), name)
        yield
        for name in ("lab/a", "lab/b"):
            client.delete(f"/v1/task_vectors/{name}")


def run(gateway: Running, *arguments: object) -> str:
    result = invoke("experiment", *arguments, "--url", gateway.url)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_line_to_what_was_shipped(gateway: Running, client: httpx.Client) -> None:
    """The whole life of one."""
    line = ("--control", "base-model", "--variant", "warm=lab/a:0.8,lab/b:-0.2")
    more = ("--metric", "helpful:proportion:up", "--guardrail", "latency_s=0.1", "--start")
    told = run(gateway, "create", "lab/tone", *line, *more)
    assert "running: lab/tone@2, model exp:lab/tone" in told
    shown = json.loads(run(gateway, "show", "lab/tone"))
    assert shown["variants"] == [
        {"key": "control", "model": "base-model", "weight": 1.0},
        {"key": "warm", "task_vectors": {"lab/a": 0.8, "lab/b": -0.2}, "weight": 1.0},
    ]
    assert (shown["primary"], shown["guardrails"]) == (
        "helpful",
        [{"metric": "latency_s", "margin": 0.1}],
    )
    listed = run(gateway, "list", "--status", "running")
    assert "lab/tone@2" in listed
    assert "control 1, warm 1" in listed
    edited = json.loads(run(gateway, "edit", "lab/tone", "--weight", "warm=3", "--json"))
    assert edited["buckets"] == {"control": 2500, "warm": 7500}
    assert "100%" in run(gateway, "list")
    run(gateway, "edit", "lab/tone", "--set", "coverage=0.5", "--set", "hypothesis=It helps")
    assert "It helps" in run(gateway, "list")
    assert "paused: lab/tone@5" in run(gateway, "pause", "lab/tone")
    assert "running: lab/tone@6" in run(gateway, "start", "lab/tone")
    told = run(gateway, "ship", "lab/tone", "warm", "--as", "lab/bot")
    assert "shipped: lab/tone@7, model exp:lab/tone, everybody gets warm" in told
    assert client.get("/v1/loadouts/lab/bot").status_code == 200
    versions = run(gateway, "versions", "lab/tone")
    assert versions.index("ship") < versions.index("edit") < versions.index("create")
    assert '"saved": "lab/bot@1"' in versions
    assert "deleted: lab/tone" in run(gateway, "delete", "lab/tone")
    assert client.get("/v1/experiments/lab/tone").status_code == 404
    client.delete("/v1/loadouts/lab/bot")


def test_a_file_says_it_all(gateway: Running, tmp_path: Path) -> None:
    """In JSON or YAML; options go before it."""
    path = tmp_path / "tone.yaml"
    path.write_text(
        "variants:\n"
        "  - {key: control, model: base-model}\n"
        "  - {key: warm, task_vectors: {lab/a: 1}, weight: 3}\n"
        "coverage: 0.5\n"
    )
    options = ("--file", path, "--unit", "header:x-user", "--ramp", "0.1:20", "--ramp", "1")
    graders = ("--grader", "yes=exact:yes", "--metric", "yes")
    found = json.loads(run(gateway, "create", "lab/file", *options, *graders, "--json"))
    assert found["unit"] == {"by": "header", "header": "x-user"}
    assert [step["coverage"] for step in found["ramp"]] == [0.1, 1.0]
    assert found["metrics"][0]["source"] == "grader"
    assert found["coverage"] == 0.5
    assert "stopped" not in run(gateway, "list")
    assert "control 1, warm 3" in run(gateway, "list", "--status", "draft")
    run(gateway, "delete", "lab/file")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "lab/x", "--variant", "warm"), "--variant 'warm'; use such as"),
        (("create", "lab/x", "--variant", "warm=a:b"), "mix 'a:b'; use such as"),
        (("create", "lab/x", "--control", "base-model", "--weight", "x=1"), "choose control"),
        (("create", "lab/x", "--metric", "m:median"), "--metric 'm:median'; use such as"),
        (("create", "lab/x", "--grader", "m=llm:x"), "--grader 'm=llm:x'; use such as"),
        (("create", "lab/x", "--ramp", "x"), "--ramp 'x'; use such as"),
        (("create", "lab/x", "--guardrail", "latency_s=x"), "--guardrail 'latency_s=x'"),
        (("create", "lab/x", "--control", "base-model"), "two or more"),
        (("create", "lab/x", "--file", "/nowhere"), "--file '/nowhere'"),
        (("edit", "lab/x"), "nothing to change"),
        (("start", "lab/x"), "no experiment 'lab/x'"),
        (("list", "--status", "done"), "choose draft, running"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    gateway: Running, arguments: tuple[str, ...], told: str
) -> None:
    """With what would be right."""
    fails(invoke("experiment", *arguments, "--url", gateway.url), told)
