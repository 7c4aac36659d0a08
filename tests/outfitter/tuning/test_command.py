"""`outfitter tune` on a gateway over real HTTP; the stand-in engine says which loadout it got."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from outfitter.commands.tune import names_of, spread
from tests.outfitter.harness import Running, make_vector, push
from tests.outfitter.test_cli import fails, invoke

pytest.importorskip("optuna")

GRADER = '''
import json
BEST = {weights}
def grade(prompt, answer, row):
    """Passes where the loadout that the engine saw is near enough; some prompts are harder."""
    seen = json.loads(answer)["headers"].get("x-taskvectors-loadout")
    vectors = json.loads(seen)["vectors"] if seen else []
    weights = {{one["digest"]: one["weight"] for one in vectors}}
    gap = sum((weights.get(key, 0) - best) ** 2 for key, best in BEST.items()) ** 0.5
    return gap < row["easy"]
'''
NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def digests(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("tune")
    with gateway.client as client:
        made = [
            push(client, make_vector(folder / str(seed), seed=seed), f"tune/{name}")["digest"]
            for seed, name in ((601, "a"), (602, "b"))
        ]
        yield [digest.removeprefix("sha256:") for digest in made]
        for name in ("tune/a", "tune/b"):
            client.delete(f"/v1/task_vectors/{name}")


@pytest.fixture
def files(tmp_path: Path, digests: list[str]) -> tuple[Path, Path]:
    """An evaluation, and its grader: 1.2 of a and 0.3 of b is best."""
    prompts, grader = tmp_path / "prompts.jsonl", tmp_path / "near.py"
    rows = [
        {
            "messages": [
                {"role": "system", "content": str(i)},
                {"role": "user", "content": "echo"},
            ],
            "easy": 0.1 + i / NUM_PROMPTS,
        }
        for i in range(NUM_PROMPTS)
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    grader.write_text(GRADER.format(weights=dict(zip(digests, (1.2, 0.3), strict=True))))
    return prompts, grader


def arguments(gateway: Running, files: tuple[Path, Path], *more: object) -> tuple[object, ...]:
    prompts, grader = files
    journal = prompts.with_name("j.jsonl")
    settings = ("--eval", prompts, "--grader", grader, "--journal", journal, "--url", gateway.url)
    return ("tune", "--vectors", "tune/a", "tune/b", *settings, *more)


def test_weights_are_found_reported_and_saved(
    gateway: Running, client: httpx.Client, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Better than equal weights on held-out prompts; the model that is saved is that loadout."""
    output, plot = tmp_path / "out.json", tmp_path / "out.png"
    more = ("--budget", 13, "--save", "tune/best", "-o", output, "--plot", plot)
    result = invoke(*arguments(gateway, files, *more))
    assert result.exit_code == 0, result.output
    assert "tuned beats equal weights" in result.stderr
    for words in ("random search", "equal weights", "tune/a alone", "tune/b alone", "base"):
        assert words in result.stdout
    found = json.loads(output.read_text())
    rows = {row["what"]: row for row in found["rows"]}
    weights = rows["tuned"]["weights"]
    assert abs(weights[0] - 1.2) < 0.3
    assert abs(weights[1] - 0.3) < 0.3
    equal = [row for row in found["rows"] if row["what"] == "equal weights"]
    assert min(row["tuned_is_better_by"]["low"] for row in equal) > 0
    assert rows["tuned"]["held_out"]["mean"] > rows["random search"]["held_out"]["mean"] - 0.2
    assert all(spent <= 13 for spent in found["spent_evaluations"].values())
    assert found["run"]["evaluations_per_minute"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    answer = client.post("/v1/completions", json={"model": "tune/best", "prompt": "x"}).json()
    assert [one["weight"] for one in answer["task_vectors"]["vectors"]] == [w for w in weights if w]
    client.delete("/v1/loadouts/tune/best")


def test_a_second_run_asks_nothing_and_says_the_same(
    gateway: Running, files: tuple[Path, Path]
) -> None:
    """And one that was cut off goes on to the same result."""
    more = ("--budget", 9, "--json", "--no-random-search")
    first = json.loads(invoke(*arguments(gateway, files, *more)).stdout)
    second = json.loads(invoke(*arguments(gateway, files, *more)).stdout)
    assert second["run"]["answers"] == 0
    assert second["rows"] == first["rows"]
    journal = files[0].with_name("j.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"candida')
    third = json.loads(invoke(*arguments(gateway, files, *more)).stdout)
    assert 0 < third["run"]["answers"] < first["run"]["answers"]
    assert (third["rows"], third["candidates"]) == (first["rows"], first["candidates"])


def test_another_question_to_a_journal_is_refused(
    gateway: Running, files: tuple[Path, Path]
) -> None:
    """With what is different."""
    more = ("--budget", 7, "--no-random-search")
    assert invoke(*arguments(gateway, files, *more)).exit_code == 0
    fails(invoke(*arguments(gateway, files, *more, "--seed", 4)), "another question", "seed")
    files[1].write_text("def grade(answer):\n    return 1\n")
    fails(invoke(*arguments(gateway, files, *more)), "another question", "grader")


def test_a_grader_that_fails_stops_the_search(gateway: Running, files: tuple[Path, Path]) -> None:
    """It says how to go on; nothing was scored."""
    files[1].write_text("def grade(answer):\n    return None\n")
    fails(invoke(*arguments(gateway, files)), "returned 'None'", "0 answers", "goes on")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--vectors", "tune/nobody"), ("404", "tune/nobody")),
        (("--vectors", "tune/a"), ("each once",)),
        (("--weights", "1"), ("--weights '1'",)),
        (("--weights", "2:1"), ("--weights 2:1",)),
        (("--method", "tys"), ("tys",)),
        (("--held-out", "0.95"), ("4 or more",)),
        (("--budget", "3"), ("--budget 3", "baselines")),
        (("--optimiser", "magic"), ("tpe, random",)),
        (("--save", "no such"), ("no such",)),
        (("--plot", "x.gif"), (".png",)),
        (("-o", "/nowhere/x.json"), ("no folder",)),
        (("--grader", "exact"), ('no "expected"',)),
    ],
)
def test_what_cannot_be_is_one_line(
    gateway: Running, files: tuple[Path, Path], more: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Before anything is asked."""
    fails(invoke(*arguments(gateway, files, *more)), *words)
    assert not files[0].with_name("j.jsonl").exists()


def test_vectors_are_named_as_people_write_them() -> None:
    """After the option up to the next one, with commas, or with the option for each."""
    written = ["--eval", "x", "--vectors", "a", "b", "--budget", "3", "--vectors", "c"]
    assert spread("--vectors", written) == [
        *("--eval", "x", "--vectors", "a", "--vectors", "b", "--budget", "3", "--vectors", "c")
    ]
    assert names_of(["a,b", "c"]) == names_of(["a", "b", "c"]) == ["a", "b", "c"]
