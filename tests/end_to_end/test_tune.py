"""`outfitter tune` on real skills and a real engine, to a model that is served."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Gateway, outfitter, serving

pytestmark = pytest.mark.slow
pytest.importorskip("optuna")

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
SKILLS = ("json", "uppercase")


@pytest.fixture(scope="module")
def demo(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The default base with two skills of the demonstration."""
    folder = tmp_path_factory.mktemp("tune")
    with serving(base_dir, "smollm2", folder, "--max-model-len", "1024") as gateway:
        for skill in SKILLS:
            file = DEMO / "vectors" / f"{skill}.safetensors"
            outfitter("push", str(file), "--name", skill, "--url", gateway.url)
        yield gateway


def test_a_mix_is_found_goes_on_after_a_kill_and_is_served(demo: Gateway, tmp_path: Path) -> None:
    """No worse than equal weights where it was searched; killed on the way it loses nothing."""
    prompts, journal, result = (tmp_path / name for name in ("p.jsonl", "j.jsonl", "r.json"))
    made = [sys.executable, str(DEMO / "mixes.py"), "json+uppercase", "--count", "32"]
    prompts.write_bytes(subprocess.run(made, check=True, capture_output=True).stdout)
    command = [
        *("tune", "--vectors", *SKILLS, "--eval", str(prompts)),
        *("--grader", str(DEMO / "mixes.py"), "--budget", "10", "--max-tokens", "40"),
        *("--no-random-search", "--url", demo.url, "--journal", str(journal)),
        *("--save", "mixes/best", "-o", str(result)),
    ]
    binary = str(Path(sys.executable).with_name("outfitter"))
    first = subprocess.Popen([binary, *command])
    while len(_scores(journal)) < 80:
        assert first.poll() is None
    first.kill()
    first.wait()
    known = _scores(journal)
    outfitter(*command)
    assert _scores(journal)[: len(known)] == known
    assert len(set(_scores(journal))) == len(_scores(journal))
    found = json.loads(result.read_text())
    tuned, *others = found["rows"]
    assert found["run"]["answers_known_before"] == len(known)
    assert tuned["search"] >= max(one["search"] for one in others)
    status, saved = demo.get("/v1/loadouts/mixes/best")
    assert status == 200
    assert saved["task_vectors"] == found["task_vectors"]


def _scores(journal: Path) -> list[tuple[str, int]]:
    """Which answers are known, in order."""
    if not journal.exists():
        return []
    whole = journal.read_bytes().rpartition(b"\n")[0].splitlines()
    lines = [json.loads(line) for line in whole]
    return [(one["candidate"], one["prompt"]) for one in lines if "score" in one]
