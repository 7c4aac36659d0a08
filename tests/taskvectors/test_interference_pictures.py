"""The heat map and the page: what they show, that they are safe, and that they can be read."""

import dataclasses
import itertools
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskvectors.interference import Report, compare
from taskvectors.interference.heatmap import spread, values, write_png
from taskvectors.interference.page import (
    AGREES,
    FIGHTS,
    WHITE,
    cell_colours,
    contrast,
    page,
    write_html,
)
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.making import sparse

HOSTILE = "</th><script>alert('$x_{$\"')</script>\n&amp;"
VOID = {"meta"}


def make_report(num_vectors: int, num_layers: int = 3) -> Report:
    """Vectors of a few entries; the last layer of the first one is its alone."""
    rng, vectors = np.random.default_rng(4), {}
    for i in range(num_vectors):
        parameters = {
            f"model.layers.{layer}.up.weight": sparse(
                (5, 4), range(20), rng.standard_normal(20, np.float32)
            )
            for layer in range(num_layers if i == 0 else num_layers - 1)
        }
        parameters["model.norm.weight"] = sparse((4,), [i % 4], [1.0])
        vectors[f"skill {i}"] = TaskVector(BaseInfo("base"), parameters)
    return compare(vectors)


def renamed(report: Report, name: str) -> Report:
    """The first vector under another name."""
    old = report.vectors[0].name
    vectors = [
        dataclasses.replace(v, name=name if v.name == old else v.name) for v in report.vectors
    ]
    pairs = [dataclasses.replace(p, left=name if p.left == old else p.left) for p in report.pairs]
    return dataclasses.replace(report, vectors=tuple(vectors), pairs=tuple(pairs))


class Tables(HTMLParser):
    """The cells of every table, by caption; tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self.captions[-1] += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_the_page_holds_every_figure_as_text() -> None:
    """Pairs, and each pair's conflict and cosine per layer; a dash where nothing is shared."""
    report = make_report(3)
    _, pairs, conflict, cosine = Tables(page(report)).tables
    assert [row[0] for row in pairs[1:]] == [f"{p.left} × {p.right}" for p in report.pairs]
    assert [row[1] for row in pairs[1:]] == [f"{p.overall.cosine:+z.3f}" for p in report.pairs]
    assert [row[0] for row in conflict] == [
        "layer",
        "all",
        "layer 0",
        "layer 1",
        "layer 2",
        "other",
    ]
    for i, pair in enumerate(report.pairs, 1):
        layers = [pair.overall, *pair.layers.values()]
        for table, name in ((conflict, "conflict"), (cosine, "cosine")):
            shown = [row[i] for row in table[1:]]
            assert shown == [f"{getattr(f, name):z.3f}" if f.common else "–" for f in layers]
        assert conflict[5][i] == "–"


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    """No script, no link, no source; every heading says what it heads."""
    found = Tables(page(make_report(3)))
    tags = {tag for tag, _ in found.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not any({"src", "href"} & attributes.keys() for _, attributes in found.attributes)
    assert all(attributes.get("scope") for tag, attributes in found.attributes if tag == "th")
    assert len(found.captions) == len(found.tables) == 4
    assert ("html", {"lang": "en"}) in found.attributes
    assert "url(" not in page(make_report(2))


def test_hostile_names_stay_text() -> None:
    """In every table."""
    text = page(renamed(make_report(3), HOSTILE))
    assert "<script" not in text
    vectors, pairs, conflict, cosine = Tables(text).tables
    assert vectors[1][0] == HOSTILE
    assert pairs[1][0] == conflict[0][1] == cosine[0][1] == f"{HOSTILE} × skill 1"


def test_every_colour_can_be_read() -> None:
    """At least 4.5 to 1 between text and background, at every step of both scales."""
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    for ends, position in itertools.product(
        ((AGREES, FIGHTS), (FIGHTS, AGREES)), np.linspace(-1.2, 1.2, 241)
    ):
        back, front = cell_colours(float(position), ends)
        assert contrast(back, front) >= 4.5, (back, front)
    assert cell_colours(0.0, (AGREES, FIGHTS))[0] == WHITE
    assert cell_colours(1.0, (AGREES, FIGHTS))[0] == FIGHTS
    assert cell_colours(-1.0, (AGREES, FIGHTS))[0] == AGREES


def test_a_scale_shows_all_and_exaggerates_nothing() -> None:
    """It reaches the farthest value, and at least a tenth to each side."""
    assert spread(np.array([[0.5, 0.9, np.nan]]), 0.5) == pytest.approx(0.4)
    assert spread(np.array([[0.5, 0.52]]), 0.5) == 0.1
    assert spread(np.array([[np.nan]]), 0.0) == 0.1


def test_the_values_shown_are_those_of_the_report() -> None:
    """Overall first, then layer by layer; nothing where nothing is shared."""
    report = make_report(3)
    shown = values(report, lambda figures: figures.cosine)
    assert shown.shape == (3, 1 + 4)
    for row, pair in zip(shown, report.pairs, strict=True):
        assert row[:3].tolist() == [
            figures.cosine for figures in (pair.overall, pair.layers["0"], pair.layers["1"])
        ]
        assert np.isnan(row[3:]).all()


@pytest.mark.parametrize("num_vectors", [2, 5, 12])
def test_a_picture_is_drawn_for_any_number_of_vectors(tmp_path: Path, num_vectors: int) -> None:
    """A PNG with both ends of its scales in it, not larger than a page can show."""
    report = renamed(make_report(num_vectors, 30), HOSTILE)
    write_png(report, tmp_path / "i.png")
    with Image.open(tmp_path / "i.png") as image:
        assert image.format == "PNG"
        assert max(image.size) < 2000
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert {(189, 189, 189), (255, 255, 255)} <= colours
    assert len(colours) > 50


def test_vectors_that_change_nothing_can_be_shown(tmp_path: Path) -> None:
    """An empty picture and an empty page, no error."""
    empty = TaskVector(BaseInfo("base"), {})
    report = compare({"a": empty, "b": empty})
    write_png(report, tmp_path / "i.png")
    write_html(report, tmp_path / "i.html")
    assert Tables((tmp_path / "i.html").read_text("utf-8")).tables[1][1][2] == "–"
