"""What a request asks for is decided without I/O."""

import pytest

from outfitter.control.resolve import MAX_DEPTH, ResolvedVector, parse_body, plan
from outfitter.control.selection import Modules
from outfitter.errors import ApiError
from taskvectors.errors import BaseMismatch, InvalidLoadout
from taskvectors.spec import Reference, parse_task_vectors

BASE = "b" * 64
LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
PARAMETERS = [f"model.layers.{n}.{leaf}.weight" for n in range(30) for leaf in LEAVES]
MODULES = Modules([*PARAMETERS, "model.embed_tokens.weight", "model.norm.weight"])


def resolve(reference: Reference) -> ResolvedVector:
    """`foreign` belongs to another base, `orphan` to none that is known."""
    digest = {"a": "1", "b": "1", "c": "3"}.get(str(reference), "9") * 64
    fingerprint = {"foreign": "f" * 64, "orphan": None}.get(str(reference), BASE)
    return ResolvedVector(reference.name, 2, digest, fingerprint)


def test_no_task_vectors_is_the_base_without_a_description() -> None:
    """A request that asks for nothing gets nothing said about it."""
    decided = plan(None, resolve, BASE, MODULES)
    assert decided.label == "base"
    assert decided.task_vectors is None


def test_a_loadout_is_built_of_digests() -> None:
    """Two names of one file are one entry of the loadout, and both are described."""
    decided = plan(parse_task_vectors({"a": 1, "b": 0.5, "c": -1}), resolve, BASE, MODULES)
    assert [(item.digest[0], item.weight) for item in decided.loadout.items] == [
        ("1", 1.5),
        ("3", -1.0),
    ]
    assert decided.label == f"sha256:{decided.loadout.digest}"
    assert decided.task_vectors is not None
    assert [vector["name"] for vector in decided.task_vectors["vectors"]] == ["a", "b", "c"]


def test_weights_that_cancel_are_the_base() -> None:
    """A sum of zero changes nothing."""
    decided = plan(parse_task_vectors({"a": 1, "b": -1}), resolve, BASE, MODULES)
    assert decided.label == "base"
    assert decided.task_vectors is not None
    assert decided.task_vectors["loadout"] == "base"


def test_a_vector_of_another_base_is_refused() -> None:
    """The error names the vector and both bases."""
    with pytest.raises(BaseMismatch) as caught:
        plan(parse_task_vectors({"foreign": 1}), resolve, BASE, MODULES)
    assert all(word in str(caught.value) for word in ("foreign", "f" * 64, BASE))


def test_a_vector_that_names_no_base_is_served() -> None:
    """A file without a fingerprint was checked by its shapes when it came."""
    assert plan(parse_task_vectors({"orphan": 1}), resolve, BASE, MODULES).label != "base"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"modules": ["mpl.*"]}, r"modules 'mpl.\*' match nothing .* did you mean 'mlp.\*'\?"),
        ({"modules": {"qproj": 0.5}}, r"modules 'qproj' .* did you mean 'q_proj'\?"),
        (
            {"modules": ["mlp.*", "lm_head"]},
            r"modules 'lm_head' .* down_proj, embed_tokens, k_proj",
        ),
        ({"modules": ["up_proj.weight"]}, r"modules 'up_proj.weight' match nothing"),
        ({"layers": ["0-3", "400"]}, r"layers '400' match nothing .*; it has layers 0 to 29"),
        ({"layers": ["30-31"]}, r"layers '30-31' match nothing"),
        ({"layers": ["3"], "modules": ["embed_tokens"]}, r"no parameter of the base in common"),
        ({"modules": ["x" * 100]}, r"its modules are called down_proj"),
    ],
)
def test_a_selection_that_matches_nothing_is_refused(
    selection: dict[str, object], message: str
) -> None:
    """Every entry must match; the error names the vector, the field and what was meant."""
    with pytest.raises(InvalidLoadout, match=message) as caught:
        plan(parse_task_vectors([{"name": "a", **selection}]), resolve, BASE, MODULES)
    assert str(caught.value).startswith("task vector 'a': ")


@pytest.mark.parametrize(
    "selection",
    [
        {"layers": ["0-99"]},
        {"layers": {"0-14": 1.0, "15-29": 0.0}},
        {"modules": ["q_proj", "mlp.*", "embed_tokens"]},
        {"modules": {"model.layers.3.*": 0.0}},
        {"layers": [29], "modules": {"norm": 0, "self_attn.?_proj": 2}},
    ],
)
def test_a_selection_that_matches_is_served(selection: dict[str, object]) -> None:
    """A range may reach beyond the last layer, and a factor of zero is a choice."""
    plan(parse_task_vectors([{"name": "a", **selection}]), resolve, BASE, MODULES)


def test_a_selection_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request with the same selection costs a lookup; one without, nothing."""
    modules = Modules(PARAMETERS)
    requested = parse_task_vectors([{"name": "a", "modules": ["q_proj"]}, {"name": "c"}])
    plan(requested, resolve, BASE, modules)
    monkeypatch.setattr(Modules, "_match", None)
    plan(requested, resolve, BASE, modules)
    plan(parse_task_vectors({"a": 1}), resolve, BASE, modules)


def test_a_base_without_layers_says_so() -> None:
    """There is no range to hint at."""
    requested = parse_task_vectors([{"name": "a", "layers": [0]}])
    with pytest.raises(InvalidLoadout, match="it has no numbered layers"):
        plan(requested, resolve, BASE, Modules(["embed.weight"]))


def test_a_key_that_occurs_twice_is_named() -> None:
    """JSON leaves open which one counts, so neither does."""
    with pytest.raises(ApiError, match="'json' occurs twice"):
        parse_body(b'{"task_vectors": {"json": 1, "json": 2}}')


@pytest.mark.parametrize("kind", [list, dict])
def test_a_body_has_only_so_many_levels(kind: type) -> None:
    """The deepest that is read is read, one more is refused, and width is no depth."""
    before, after = (b"[", b"]") if kind is list else (b'{"a":', b"}")
    for levels, is_read in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (100_000, False)):
        inner = levels - 1
        text = b'{"x":' + before * inner + b"1" + after * inner + b"}"
        if is_read:
            assert "x" in parse_body(text)
        else:
            with pytest.raises(ApiError, match=r"nested too deeply|not valid JSON"):
                parse_body(text)
    assert parse_body(b'{"x":[' + b"[1]," * 10_000 + b"[]]}")
