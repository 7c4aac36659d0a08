"""Merge methods as requests name them: what parses, what is refused, what is the same loadout."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvectors.errors import InvalidLoadout
from taskvectors.method import Method, Parameter
from taskvectors.methods import METHODS
from taskvectors.spec import Loadout, LoadoutItem, parse_task_vectors

A, B = "a" * 64, "b" * 64
PAIR = [LoadoutItem(A, 1.0), LoadoutItem(B, 1.0)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_has_a_paper_a_dialect_and_valid_defaults(method: Method) -> None:
    """What is declared can be documented, and its defaults pass its own checks."""
    assert method.summary
    assert method.paper
    assert method.dialect
    defaults = {p.name: "a" if p.is_required else p.default for p in method.parameters}
    values = dict(method.parse({p.name: "a" for p in method.parameters if p.is_required}))
    assert values == defaults
    assert dict(method.parse(values)) == values
    assert all(parameter.description.endswith(".") for parameter in method.parameters)


def test_parameters_stand_beside_the_vectors() -> None:
    """`{"vectors": …, "method": "ties", "density": 0.2}` is the form of a request."""
    value = {"vectors": {"a": 1, "b": 0.5}, "method": "ties", "density": 0.3, "lambda": 2}
    requested = parse_task_vectors(value)
    assert requested.method == "ties"
    assert dict(requested.parameters) == {"density": 0.3, "lambda": 2.0, "normalize": True}
    assert [vector.weight for vector in requested.vectors] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "tise"}, "unsupported method 'tise'; did you mean 'ties'?"),
        ({"method": "none"}, "unsupported method 'none'; choose linear, ties,"),
        ({"method": ["ties"]}, "unsupported method"),
        ({"method": "ties", "densty": 0.2}, "unknown parameter 'densty' of method 'ties'; choose"),
        ({"density": 0.2}, "unknown parameter 'density' of method 'linear'; it takes none"),
        ({"method": "ties", "density": 0}, "density must be above 0 to 1, not '0'"),
        ({"method": "ties", "density": 2}, "density must be above 0 to 1, not '2'"),
        ({"method": "ties", "density": float("nan")}, "density must be above 0"),
        ({"method": "ties", "density": "all"}, "density must be a number"),
        ({"method": "ties", "density": True}, "density must be a number"),
        ({"method": "ties", "normalize": 1}, "normalize must be true or false"),
        ({"method": "dare_linear", "seed": 0.5}, "seed must be a whole number"),
        ({"method": "dare_linear", "seed": float("inf")}, "seed must be"),
        ({"method": "dare_linear", "seed": -1}, "seed must be from 0"),
        ({"method": "dare_linear", "rescale": "l2"}, "rescale must be 'density' or 'l1' or 'none'"),
        ({"method": "tall_masks"}, "task must be the name of one of the vectors, not 'None'"),
        ({"method": "emr", "task": 3}, "task must be the name of one of the vectors"),
    ],
)
def test_a_wrong_method_or_parameter_is_refused(fields: dict[str, object], message: str) -> None:
    """Unknown or out of bounds: the error says what would be right."""
    with pytest.raises(InvalidLoadout, match=re.escape(message)):
        parse_task_vectors({"vectors": {"a": 1}, **fields})


def test_a_method_without_weights_refuses_them() -> None:
    """A weight that no formula reads must not be ignored."""
    with pytest.raises(InvalidLoadout, match="'sce' knows no weights: leave them out, or 1; not 2"):
        parse_task_vectors({"vectors": {"a": 1, "b": 2}, "method": "sce"})


def test_a_method_without_weights_refuses_factors() -> None:
    """A factor of a layer is a weight, too; 0 and 1 only select."""
    entry = {"name": "a", "layers": {"0-3": 1, "4": 0}}
    parse_task_vectors({"vectors": [entry], "method": "sce"})
    entry["layers"] = {"0-3": 0.5}
    with pytest.raises(InvalidLoadout, match="select layers and modules with factor 0 or 1"):
        parse_task_vectors({"vectors": [entry], "method": "sce"})


def test_a_method_says_how_many_vectors_it_takes() -> None:
    """NuSLERP walks between two."""
    with pytest.raises(InvalidLoadout, match="'nuslerp' takes 2 vectors, not 3"):
        parse_task_vectors({"vectors": {"a": 1, "b": 1, "c": 1}, "method": "nuslerp"})
    with pytest.raises(InvalidLoadout, match="'model_stock' takes 2 or more vectors, not 1"):
        parse_task_vectors({"vectors": {"a": 1}, "method": "model_stock"})


def test_a_default_said_aloud_is_the_same_loadout() -> None:
    """The canonical form is complete, so equal merges have one digest."""
    silent = Loadout.build(PAIR, "ties")
    assert silent == Loadout.build(PAIR[::-1], "ties", {"density": 0.2, "lambda": 1})
    assert silent.digest != Loadout.build(PAIR, "ties", {"density": 0.3}).digest
    assert silent.digest != Loadout.build(PAIR, "ties_peft").digest
    assert silent.digest != Loadout.build(PAIR).digest
    assert not silent.is_linear


def test_a_linear_loadout_is_written_as_ever() -> None:
    """Slots and caches hang on the text."""
    assert json.loads(Loadout.build(PAIR[:1]).canonical) == {
        "method": "linear",
        "vectors": [{"digest": A, "weight": 1.0}],
    }


def test_only_a_linear_mix_adds_duplicates_up() -> None:
    """An election counts vectors, so the same one twice is two."""
    twice = [LoadoutItem(A, 1.0), LoadoutItem(A, 1.0)]
    assert len(Loadout.build(twice).items) == 1
    assert len(Loadout.build(twice, "ties_peft").items) == 2
    assert len(Loadout.build([*PAIR, LoadoutItem("c" * 64, 0.0)], "ties_peft").items) == 3


def test_nothing_to_merge_is_the_base() -> None:
    """Whatever the method."""
    assert Loadout.build([], "ties") == Loadout(())
    assert parse_task_vectors({"vectors": [], "method": "model_stock"}).vectors == ()


def test_a_parameter_names_a_vector_of_the_loadout() -> None:
    """The mask of a stranger would be none."""
    assert Loadout.build(PAIR, "emr", {"task": A}).parameters == (("task", A),)
    with pytest.raises(InvalidLoadout, match="task must be one of the loadout's vectors"):
        Loadout.build(PAIR, "emr", {"task": "c" * 64})


@given(
    density=st.floats(0.001, 1),
    seed=st.integers(0, 2**53),
    weights=st.lists(st.floats(-4, 4), min_size=1, max_size=4),
)
def test_the_canonical_text_comes_back(density: float, seed: int, weights: list[float]) -> None:
    """The engine reads exactly what the gateway meant."""
    items = [LoadoutItem(f"{n:064x}", weight + 0.0) for n, weight in enumerate(weights)]
    loadout = Loadout.build(items, "dare_ties", {"density": density, "seed": seed})
    assert Loadout.from_canonical(loadout.canonical) == loadout


def test_a_text_that_leaves_a_default_out_is_not_canonical() -> None:
    """One mix, one text."""
    text = Loadout.build(PAIR, "ties").canonical.replace(',"normalize":true', "")
    with pytest.raises(InvalidLoadout, match="reproduce its own text"):
        Loadout.from_canonical(text)


def test_bounds_are_whole_numbers_in_full() -> None:
    """The largest seed can be typed as the error says it."""
    seed = Parameter("seed", 0, "", high=2**53)
    with pytest.raises(InvalidLoadout, match=f"seed must be from 0 to {2**53}, not"):
        seed.parse(2**60)
    with pytest.raises(InvalidLoadout, match=r"from 0 to 0\.5, not"):
        Parameter("epsilon", 0.1, "", high=0.5).parse(1)
