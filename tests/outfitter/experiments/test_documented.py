"""docs/experiments.md says what there is."""

import json
import re
from pathlib import Path

from outfitter.app import create_app
from outfitter.control.experiments.definition import FIELDS, Definition
from outfitter.control.experiments.measures import BUILT_IN
from outfitter.control.experiments.status import Status
from tests.outfitter.harness import make_config

TEXT = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()


def test_the_example_is_a_definition() -> None:
    """With every field."""
    found = re.search(r"```json\n(\{\n  \"name\".*?)```", TEXT, re.DOTALL)
    assert found is not None
    example = json.loads(found[1])
    assert set(example) == set(FIELDS)
    Definition.parse(example)


def test_every_field_status_and_metric_is_told() -> None:
    """By name."""
    for word in (*FIELDS, *Status, *BUILT_IN):
        assert f"`{word}`" in TEXT, word


def test_every_route_is_told() -> None:
    """Those that end in a word by that word."""
    routes = create_app(make_config(Path("/nowhere"))).routes
    own = [r.path for r in routes if getattr(r, "path", "").startswith("/v1/experiments/")]
    for path in own:
        part = path.removeprefix("/v1/experiments/{name:path}")
        assert part in TEXT, path
