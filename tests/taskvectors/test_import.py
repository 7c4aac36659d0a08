"""PEFT LoRA folders as task vectors, with PEFT itself as the oracle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.errors import BaseMismatch, InvalidCheckpoint, UnsupportedAdapter
from taskvectors.exchange import import_lora
from taskvectors.format import read_header, read_vector
from taskvectors.vector import LowRankDelta
from tests.taskvectors.tiny_llama import tiny_config

Q = "self_attn.q_proj"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tied=tied))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untied Llama."""
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, **options: Any) -> PeftModel:
    """Save a random adapter of `base` to `folder`."""
    options = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]} | options
    model = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    peft_model = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    peft_model.save_pretrained(folder)
    return peft_model


@pytest.fixture
def plain(tmp_path: Path, base: Path) -> Path:
    """A saved adapter, for the tests to change its configuration."""
    adapter(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def edit(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}},
        {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 1}, "use_rslora": True},
        {"rank_pattern": {r"layers.1.*.(q|v)_proj": 5}, "alpha_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_base_plus_vector_is_what_peft_merges(
    tmp_path: Path, base: Path, options: dict[str, Any]
) -> None:
    """Every parameter of merge_and_unload equals the base with the vector applied."""
    peft_model = adapter(tmp_path / "adapter", base, **options)
    digest = import_lora(tmp_path / "adapter", tmp_path / "x", base_dir=base)
    vector = read_vector(tmp_path / "x", expected_digest=digest)
    assert vector.base.fingerprint == fingerprint(base)
    merged = peft_model.merge_and_unload().state_dict()
    checkpoint = Checkpoint.open(base)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(vector) == sum(".lora_A" in name or "embedding_A" in name for name in factors)
    for name in checkpoint.names:
        np.testing.assert_allclose(
            vector.apply_to(name, checkpoint.read(name)), merged[name].numpy(), 1e-5, 1e-5
        )


def test_factors_are_stored_as_they_are(tmp_path: Path, plain: Path, base: Path) -> None:
    """A and B are the adapter's own bits; the scale stays apart."""
    import_lora(plain, tmp_path / "x", base_dir=base)
    tensors = load_file(plain / "adapter_model.safetensors")
    name = f"model.layers.1.{Q}"
    delta = read_vector(tmp_path / "x").parameters[f"{name}.weight"]
    assert isinstance(delta, LowRankDelta)
    assert delta.scale == 7 / 3
    np.testing.assert_array_equal(delta.a, tensors[f"base_model.model.{name}.lora_A.weight"])
    np.testing.assert_array_equal(delta.b, tensors[f"base_model.model.{name}.lora_B.weight"])
    assert read_header(tmp_path / "x").metadata["extraction"] == {
        "method": "peft_lora",
        "rslora": False,
    }


def test_values_are_cast_on_request(tmp_path: Path, plain: Path) -> None:
    """`value_dtype` decides; without it the adapter's dtype stays."""
    import_lora(plain, tmp_path / "x", value_dtype="bf16")
    import_lora(plain, tmp_path / "y")
    for name, dtype in (("x", "BF16"), ("y", "F32")):
        specs = read_header(tmp_path / name).parameters.values()
        assert {spec.dtype for spec in specs} == {dtype}


def test_the_base_that_the_adapter_names_is_used(tmp_path: Path, plain: Path, base: Path) -> None:
    """A local folder in the configuration serves as the base; only its last part is kept."""
    import_lora(plain, tmp_path / "x")
    info = read_header(tmp_path / "x").base
    assert (info.name, info.fingerprint) == (base.name, fingerprint(base))


def test_without_a_base_at_hand_the_vector_is_unverified(tmp_path: Path, plain: Path) -> None:
    """The name is kept, the fingerprint is unknown."""
    edit(plain, base_model_name_or_path="org/elsewhere")
    import_lora(plain, tmp_path / "x")
    header = read_header(tmp_path / "x")
    assert (header.base.name, header.base.fingerprint) == ("org/elsewhere", None)
    assert header.metadata["base_model"] == "org/elsewhere"
    assert header.metadata["base_model_relation"] == "adapter"


def test_a_path_that_is_gone_is_not_kept(tmp_path: Path, plain: Path) -> None:
    """Nobody's folders end up in a file for others."""
    edit(plain, base_model_name_or_path="/home/somebody/models/llama")
    import_lora(plain, tmp_path / "x")
    assert b"somebody" not in (tmp_path / "x").read_bytes()
    assert read_header(tmp_path / "x").base.name == "llama"


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "LOHA"},
        {"bias": "all"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"trainable_token_indices": [1]},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"target_parameters": ["x"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_an_adapter_that_is_no_sum_is_refused(
    tmp_path: Path, plain: Path, fields: dict[str, object]
) -> None:
    """The error names the field that stands in the way."""
    edit(plain, **fields)
    (key, value) = next(iter(fields.items()))
    with pytest.raises(UnsupportedAdapter) as caught:
        import_lora(plain, tmp_path / "x")
    assert str(value) in str(caught.value)
    assert key in str(caught.value) or key == "peft_type"
    assert not (tmp_path / "x").exists()


def test_real_dora_is_refused(tmp_path: Path, base: Path) -> None:
    """What PEFT itself saves for DoRA is recognised."""
    adapter(tmp_path / "adapter", base, use_dora=True)
    with pytest.raises(UnsupportedAdapter, match="DoRA rescales the base weight"):
        import_lora(tmp_path / "adapter", tmp_path / "x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 4}, "the configuration says rank 4"),
        ({"r": None}, "lacks a usable field"),
        ({"r": 0}, "rank 0"),
        ({"lora_alpha": "much"}, "lacks a usable field"),
        ({"rank_pattern": {"(": 3}}, r"unsupported rank or alpha pattern '\('"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"unsupported rank or alpha pattern '\(a\+\)\+\$'"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path must be a text"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path must be a text"),
        ({"rank_pattern": {"q_proj": "x"}}, "lacks a usable field"),
        ({"alpha_pattern": [1]}, "lacks a usable field"),
    ],
)
def test_a_configuration_that_contradicts_its_tensors_is_refused(
    tmp_path: Path, plain: Path, fields: dict[str, object], message: str
) -> None:
    """The scale depends on the configured rank, so the two must agree."""
    edit(plain, **fields)
    with pytest.raises(UnsupportedAdapter, match=message):
        import_lora(plain, tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.x.lora_A.weight", "x needs an A and a B, not lora_A"),
        ("base_model.model.x.lora_magnitude_vector", "is neither lora_A nor lora_B"),
        ("base_model.model.lm_head.weight", "is saved whole and differs from the base's"),
    ],
)
def test_unknown_tensors_are_refused(
    tmp_path: Path, plain: Path, base: Path, name: str, message: str
) -> None:
    """Nothing in the adapter is ignored."""
    edit_tensors(plain, lambda tensors: tensors.update({name: torch.ones(3, 16)}))
    with pytest.raises(UnsupportedAdapter, match=message):
        import_lora(plain, tmp_path / "x", base_dir=base)


def test_a_whole_weight_needs_the_base(tmp_path: Path, plain: Path) -> None:
    """A saved embedding may be a copy of the base's, but only the base can tell."""
    edit(plain, base_model_name_or_path="org/elsewhere")
    name = "base_model.model.lm_head.weight"
    edit_tensors(plain, lambda tensors: tensors.update({name: torch.ones(3, 16)}))
    with pytest.raises(UnsupportedAdapter, match="saved whole; give the base to compare"):
        import_lora(plain, tmp_path / "x")


def test_a_rank_of_zero_is_refused(tmp_path: Path, plain: Path) -> None:
    """Empty factors have no scale."""
    edit(plain, rank_pattern={"x": 0})

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.x.lora_A.weight"] = torch.ones(0, 4)
        tensors["base_model.model.x.lora_B.weight"] = torch.ones(4, 0)

    edit_tensors(plain, change)
    with pytest.raises(UnsupportedAdapter, match="the configuration says rank 0"):
        import_lora(plain, tmp_path / "x")


def test_an_adapter_without_factors_is_refused(tmp_path: Path, plain: Path) -> None:
    """An empty adapter is a mistake, not the zero vector."""
    edit_tensors(plain, lambda tensors: tensors.clear())
    with pytest.raises(UnsupportedAdapter, match="holds neither lora_A nor lora_B"):
        import_lora(plain, tmp_path / "x")


def test_convolutions_are_refused(tmp_path: Path, plain: Path) -> None:
    """Factors with more than two dimensions belong to no linear layer."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.x.lora_A.weight"] = torch.ones(3, 4, 1, 1)
        tensors["base_model.model.x.lora_B.weight"] = torch.ones(4, 3, 1, 1)

    edit_tensors(plain, change)
    with pytest.raises(UnsupportedAdapter, match="x is no linear layer"):
        import_lora(plain, tmp_path / "x")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, plain: Path, base: Path) -> None:
    """A module that the base lacks, or has in another shape, is named."""
    other = tmp_path / "other"
    model = llama()
    model.config.num_hidden_layers = 1
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(other)
    with pytest.raises(BaseMismatch, match=r"no parameter model.layers.1.self_attn.q_proj"):
        import_lora(plain, tmp_path / "x", base_dir=other)


def test_a_tied_embedding_adapted_alone_is_refused(tmp_path: Path) -> None:
    """On a tied base PEFT changes the embedding but not the head: no change of one weight."""
    llama(tied=True).save_pretrained(tmp_path / "tied")
    adapter(tmp_path / "adapter", tmp_path / "tied", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(UnsupportedAdapter, match="is tied to lm_head in the base"):
        import_lora(tmp_path / "adapter", tmp_path / "x", base_dir=tmp_path / "tied")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, plain: Path) -> None:
    """The missing file is named."""
    with pytest.raises(InvalidCheckpoint, match=r"adapter_config\.json"):
        import_lora(tmp_path, tmp_path / "x")
    (plain / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"neither adapter_model\.safetensors"):
        import_lora(plain, tmp_path / "x")


@pytest.mark.parametrize("linked", [False, True])
def test_the_adapter_and_its_base_are_not_overwritten(
    tmp_path: Path, plain: Path, base: Path, linked: bool
) -> None:
    """An output that is one of the files to read, by any name, is refused."""
    for number, folder in enumerate((plain / "adapter_model.safetensors", base)):
        target = folder if folder.is_file() else folder / "model.safetensors"
        before, out = target.read_bytes(), tmp_path / f"link{number}"
        out.symlink_to(target)
        with pytest.raises(FileExistsError, match="choose another name"):
            import_lora(plain, out if linked else target, base_dir=base)
        assert target.read_bytes() == before
