"""The story of docs/experiments.md, "Ten commands", as it stands there, on the demo skills.

A winner is found and shipped; a bad variant is rolled back by itself; all tell the same numbers.
"""

import csv
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import CLIENT_TIMEOUT_S, OUTFITTER, Gateway, outfitter, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "experiments.md"
BASE = "smollm2-135m-instruct"


def told_commands() -> list[str]:
    """The commands of the section, in order, each whole."""
    section = DOCUMENT.read_text().partition("\n## Ten commands\n")[2].partition("\n## ")[0]
    found: list[str] = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif found and found[-1].endswith("\\"):
                found[-1] = f"{found[-1][:-1].rstrip()} {line.strip()}"
    return found


@dataclass
class Story:
    """A gateway with the skills."""

    gateway: Gateway

    def run(self, command: str) -> str:
        """A command as it stands; standard output and error together."""
        path = f"{Path(OUTFITTER).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env={**os.environ, "PATH": path, "U": self.gateway.url, "COLUMNS": "200"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        print(f"$ {command}\n{done.stdout}")  # shown where a test fails
        return done.stdout

    def get(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.gateway.url}{path}", timeout=CLIENT_TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, name: str, status: str) -> dict[str, Any]:
        """The experiment once it stands so."""
        deadline = time.monotonic() + 120
        while (found := self.get(f"/v1/experiments/{name}"))["status"] != status:
            assert time.monotonic() < deadline, found
            time.sleep(1)
        return found


@pytest.fixture(scope="module")
def story(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """After all commands, in one go."""
    folder = tmp_path_factory.mktemp("ten")
    with serving(base_dir, BASE, folder) as gateway:
        for file in sorted((ROOT / "deploy" / "demo" / "vectors").glob("*.safetensors")):
            outfitter("push", str(file), "--name", file.stem, "--url", gateway.url)
        found = Story(gateway)
        for command in told_commands():
            if not command.startswith(("make ", "export ")):
                found.run(command)
                time.sleep(2)  # a person reads
        yield found


def test_there_are_few_commands() -> None:
    """Ten at most from a definition to a winner that is shipped, and the bad one beside it."""
    commands = [one for one in told_commands() if not one.startswith(("make ", "export "))]
    assert 5 <= len(commands) <= 10
    ships = next(n for n, one in enumerate(commands) if "experiment ship" in one)
    assert ships < 10


def test_the_winner_is_found_and_shipped(story: Story) -> None:
    """The one that the users were made to like, as a model, under the experiment's name, too."""
    found = story.get("/v1/experiments/answers")
    assert (found["status"], found["winner"]) == ("shipped", "json")
    model = story.get("/v1/loadouts/helper")
    assert model["digest"] == found["resolved"]["json"]["loadout"]
    results = story.get("/v1/experiments/answers/results")
    assert results["verdict"]["kind"] == "winner", results["verdict"]
    assert results["verdict"]["variant"] == "json"
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    for name in ("helper", "exp:answers"):
        answer = httpx.post(
            f"{story.gateway.url}/v1/chat/completions",
            json={"model": name, "temperature": 0, "max_tokens": 24, **body},
            timeout=CLIENT_TIMEOUT_S,
        )
        json.loads(answer.json()["choices"][0]["message"]["content"])


def test_all_tell_the_same_numbers(story: Story) -> None:
    """The API, the command line and the exported CSV."""
    url = f"{story.gateway.url}/v1/experiments/answers/results"
    exported = httpx.get(url, params={"format": "csv"}, timeout=CLIENT_TIMEOUT_S).text
    command = ("experiment", "results", "answers", "--url", story.gateway.url)
    rows = _rows(exported)
    assert _rows(outfitter(*command, "--csv")) == rows
    results = story.get("/v1/experiments/answers/results")
    assert sum(results["units"]["units"].values()) == 160, results["units"]
    told = {row["variant"]: row for row in rows if row["role"] == "primary"}
    [metric] = results["metrics"]
    assert set(told) == set(metric["variants"]) == {"control", "json", "pirate"}
    for variant, figures in metric["variants"].items():
        assert float(told[variant]["value"]) == figures["value"]
        assert int(told[variant]["units"]) == figures["units"]
    for one in metric["comparisons"]:
        row = told[one["variant"]]
        for name in ("effect", "lower", "upper", "p_value"):
            assert float(row[name]) == one[name]
    shown = outfitter(*command)
    assert all(variant in shown for variant in told)


def _rows(exported: str) -> list[dict[str, str]]:
    """All that they say, but for when it was asked."""
    rows = list(csv.DictReader(io.StringIO(exported)))
    return [{key: value for key, value in row.items() if key != "at"} for row in rows]


def test_a_bad_variant_is_rolled_back_by_itself(story: Story) -> None:
    """And the version says by which figures."""
    found = story.wait("risky", "rolled_back")
    assert found["winner"] is None
    versions = story.get("/v1/experiments/risky/versions")["data"]
    newest = versions[0]
    assert newest["by"] == {"tenant": "automatic", "key": None}
    assert newest["action"] == "rollback"
    assert "helpful" in json.dumps(newest["figures"])
    audit = story.get("/v1/audit?action=experiment.rollback")["data"]
    assert [one["subject"] for one in audit] == [found["id"]]
