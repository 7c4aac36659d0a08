"""`outfitter interference`, through typer's runner."""

import json
import re
from pathlib import Path

import pytest

from taskvectors.interference import ADVICE, compare
from tests.outfitter.harness import make_config, make_vector, publish
from tests.outfitter.test_cli import fails, invoke


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and lines are not cut."""
    monkeypatch.setattr("outfitter.commands.console.out._width", 500)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three vectors of one base."""
    return {
        name: make_vector(tmp_path / f"{name}.safetensors", seed=i)
        for i, name in enumerate(("json", "legal", "pirate"))
    }


def test_a_row_for_each_pair(files: dict[str, Path]) -> None:
    """The figures of the library, and both lines of advice."""
    result = invoke("interference", *files.values())
    assert result.exit_code == 0, result.stderr
    for pair in compare(files).pairs:
        figures = pair.overall
        (row,) = (
            line
            for line in result.stdout.splitlines()
            if f"{pair.left} × " in line and pair.right in line
        )
        assert f" {figures.cosine:+z.3f} " in row
        assert f" {figures.conflict:.3f} " in row
        assert f"{figures.subspace.right:.3f} ({figures.subspace.right_chance:.3f})" in row
    for line in ADVICE:
        assert line in result.stdout


def test_layers_are_shown_on_request(files: dict[str, Path]) -> None:
    """A table for each pair."""
    short = invoke("interference", *files.values()).stdout
    long = invoke("interference", *files.values(), "--per-layer").stdout
    assert not re.search(r"^ (0|other) ", short, re.MULTILINE)
    assert len(re.findall(r"^ (0|other) ", long, re.MULTILINE)) == 2 * 3


@pytest.mark.parametrize("flags", [(), ("--per-layer",)])
def test_json_is_that_of_the_library(files: dict[str, Path], flags: tuple[str, ...]) -> None:
    """With layers and kinds on request."""
    found = json.loads(invoke("interference", *files.values(), "--json", *flags).stdout)
    assert found == compare(files).to_json(per_layer=bool(flags))


def test_references_are_looked_up_in_a_store(files: dict[str, Path], tmp_path: Path) -> None:
    """Beside files; the names are those that were given."""
    publish(make_config(tmp_path), files["legal"], "acme/legal")
    arguments = (files["json"], "acme/legal@1", "--store", tmp_path / "store", "--json")
    found = json.loads(invoke("interference", *arguments).stdout)
    assert [vector["name"] for vector in found["vectors"]] == ["json", "acme/legal@1"]
    expected = compare({"json": files["json"], "acme/legal@1": files["legal"]})
    assert found == expected.to_json()


def test_files_of_one_name_are_told_apart(files: dict[str, Path], tmp_path: Path) -> None:
    """By their paths."""
    (tmp_path / "other").mkdir()
    twin = make_vector(tmp_path / "other" / "json.safetensors", seed=9)
    found = json.loads(invoke("interference", files["json"], twin, "--json").stdout)
    assert [vector["name"] for vector in found["vectors"]] == [str(files["json"]), str(twin)]


def test_pictures_are_written(files: dict[str, Path], tmp_path: Path) -> None:
    """A PNG and a page, beside the table."""
    png, html = tmp_path / "i.png", tmp_path / "i.html"
    result = invoke("interference", *files.values(), "--png", png, "--html", html)
    assert result.exit_code == 0, result.stderr
    assert png.read_bytes().startswith(b"\x89PNG")
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert "json × legal" in result.stdout


def test_mistakes_are_told_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    """What was wrong, and what would be right."""
    one, other = files["json"], files["legal"]
    foreign = make_vector(tmp_path / "foreign", fingerprint="f" * 64)
    broken = tmp_path / "broken"
    broken.write_bytes(one.read_bytes()[:-3])
    publish(make_config(tmp_path), one, "legal")
    fails(invoke("interference", one), "give 2 to 16 task vectors", "not 1")
    fails(invoke("interference", *[one] * 17), "not 17")
    fails(invoke("interference", one, one), "only once")
    fails(invoke("interference", one, "legal"), "no task vector file 'legal'", "add --store")
    fails(invoke("interference", one, foreign), "'json' and 'foreign' do not go together")
    fails(invoke("interference", one, broken), "end")
    store = ("--store", tmp_path / "store")
    fails(invoke("interference", one, "legall", *store), "no task vector 'legall'")
    fails(invoke("interference", one, "a b", *store), "invalid reference 'a b'")
    fails(invoke("interference", one, other, "--store", tmp_path / "no"), "no such folder")
    for option in ("--png", "--html"):
        fails(invoke("interference", one, other, option, tmp_path / "no" / "x"), "cannot write")


def test_hostile_file_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    """Neither control characters nor markup."""
    names = ("\x1b[2Jgone", "[red]mark")
    files = [make_vector(tmp_path / name, seed=i) for i, name in enumerate(names)]
    result = invoke("interference", *files)
    assert result.exit_code == 0, result.stderr
    assert "\x1b[2J" not in result.stdout
    assert "?[2Jgone × [red]mark" in result.stdout


def test_a_missing_matplotlib_is_told(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which package, and how to get it."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = invoke("interference", *files.values(), "--png", tmp_path / "x.png")
    fails(result, "pip install matplotlib")
