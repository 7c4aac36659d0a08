"""References and loadouts: what parses, what is refused, and when two mixes are the same."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout, InvalidReference
from taskvectors.selection import Selection
from taskvectors.spec import (
    MAX_VECTORS,
    Loadout,
    LoadoutItem,
    Reference,
    parse_task_vectors,
)

A, B = "a" * 64, "b" * 64
layer_ranges = st.lists(
    st.tuples(st.integers(0, 99), st.floats(-2, 2)), max_size=3, unique_by=lambda r: r[0]
).map(lambda pairs: tuple((first, first, factor + 0.0) for first, factor in sorted(pairs)))
selections = st.builds(
    Selection,
    layers=layer_ranges,
    modules=st.lists(st.tuples(st.sampled_from(["mlp.*", "q_proj"]), st.just(1.0)), max_size=2).map(
        tuple
    ),
)
items = st.builds(
    LoadoutItem,
    digest=st.sampled_from([A, B, "c" * 64]),
    weight=st.floats(-4, 4),
    selection=selections,
)


@pytest.mark.parametrize(
    "text", ["json", "acme/legal", "acme/legal@3", f"json@sha256:{A}", f"sha256:{A}"]
)
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "/x", "x/", "a/b/c", "../x", ".x", "x@", "x@0", "x@1.5", "x@sha256:12", "a b", "x\n", "é"],
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


def test_the_mapping_and_the_list_form_mean_the_same() -> None:
    mapping = parse_task_vectors({"json": 0.8, "acme/legal@3": -0.2})
    listed = parse_task_vectors(
        [{"name": "json", "weight": 0.8}, {"name": "acme/legal@3", "weight": -0.2}]
    )
    assert mapping == listed
    assert parse_task_vectors({"vectors": {"json": 0.8, "acme/legal@3": -0.2}}) == listed


def test_layers_take_numbers_ranges_and_factors() -> None:
    [vector] = parse_task_vectors([{"name": "x", "layers": {"0-9": 1, "20": 0.5}}]).vectors
    factor = vector.selection.factor
    assert factor("model.layers.9.mlp.up_proj") == 1.0
    assert factor("model.layers.20.mlp.up_proj") == 0.5
    assert factor("model.layers.10.mlp.up_proj") == 0.0
    assert factor("model.embed_tokens") == 0.0
    assert parse_task_vectors([{"name": "x", "layers": [3, "5-6"]}]).vectors[
        0
    ].selection.layers == (
        (3, 3, 1.0),
        (5, 6, 1.0),
    )


def test_modules_match_a_full_name_or_its_end() -> None:
    [vector] = parse_task_vectors([{"name": "x", "modules": {"mlp.*": 0.5, "q_proj": 2}}]).vectors
    factor = vector.selection.factor
    assert factor("model.layers.0.mlp.up_proj") == 0.5
    assert factor("model.layers.0.self_attn.q_proj") == 2.0
    assert factor("model.layers.0.self_attn.k_proj") == 0.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("json", "object"),
        (None, "null"),
        ({"json": "1"}, "number"),
        ({"json": True}, "boolean"),
        ({"json": None}, "null"),
        ({"json": math.nan}, "finite"),
        ({"json": math.inf}, "finite"),
        ({"json": 1e9}, "16"),
        ({"json": 10**400}, "16"),
        ([{"weight": 1}], "name"),
        ([{"name": "x", "wieght": 1}], "wieght"),
        ([{"name": "x", "layers": "3"}], "list"),
        ([{"name": "x", "layers": []}], "entries"),
        ([{"name": "x", "layers": ["9-3"]}], "9-3"),
        ([{"name": "x", "layers": ["0-3", 3]}], "layer 3 twice"),
        ([{"name": "x", "layers": [True]}], "True"),
        ([{"name": "x", "modules": [""]}], "globs"),
        (["x"], "object"),
        ({"vectors": [], "method": "tiez"}, "tiez"),
        ({"vectors": [], "density": 0.2}, "density"),
        ({"vectors": {"vectors": {"json": 1}}}, "weight of 'vectors' must be a number"),
        ([{"name": "x", "modules": ["a b"]}], "globs"),
        ([{"name": "x", "layers": list(range(100))}] * 2, "200 entries"),
        ([{"name": "x", "modules": [f"m{i}" for i in range(20)]}] * 2, "40 globs"),
        ({f"v{i}": 1 for i in range(MAX_VECTORS + 1)}, "at most 16"),
    ],
)
def test_a_bad_request_is_refused_and_the_error_says_what(value: object, says: str) -> None:
    with pytest.raises(InvalidLoadout, match=says):
        parse_task_vectors(value)


def test_a_huge_request_is_refused_before_it_is_read() -> None:
    """The count comes first; no entry is looked at."""
    with pytest.raises(InvalidLoadout, match="1000000 vectors"):
        parse_task_vectors(dict.fromkeys(map(str, range(1_000_000)), "not a number"))


@given(st.lists(items, max_size=6))
def test_the_canonical_text_reproduces_the_loadout(parts: list[LoadoutItem]) -> None:
    loadout = Loadout.build(parts)
    assert Loadout.from_canonical(loadout.canonical) == loadout


@given(st.lists(items, max_size=4, unique_by=lambda i: (i.digest, i.selection)))
def test_the_order_of_a_request_does_not_change_the_digest(parts: list[LoadoutItem]) -> None:
    assert Loadout.build(parts).digest == Loadout.build(parts[::-1]).digest


def test_a_zero_weight_leaves_the_loadout() -> None:
    assert Loadout.build([LoadoutItem(A, 0.0), LoadoutItem(B, -0.0)]).is_base
    assert Loadout.build([LoadoutItem(A, 1.0), LoadoutItem(A, -1.0)]).is_base
    assert Loadout.build([LoadoutItem(A, 1.0)]).digest != Loadout.build([]).digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "not json",
        '{"method":"linear","vectors":[{"digest":"x","weight":1.0}]}',
        json.dumps({"method": "linear", "vectors": [{"digest": A, "weight": 1.0}]}),
        f'{{"method":"linear","vectors":[{{"digest":"{A}","weight":NaN}}]}}',
    ],
)
def test_text_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(InvalidLoadout):
        Loadout.from_canonical(text)
