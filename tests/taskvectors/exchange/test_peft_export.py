"""Low-rank loadouts as PEFT LoRA folders, loaded by PEFT itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import DenseDelta, LowRankDelta
from taskvectors.errors import NonFiniteValue, UnsupportedAdapter
from taskvectors.exchange import export_peft, import_lora
from taskvectors.format import read_vector, write_vector
from taskvectors.merge import MemorySource, MergedVector
from taskvectors.merge.spec_file import resolve_spec
from taskvectors.merge.spec_merge import open_merge
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.exchange.checkpoints import save_base, save_vector, tune
from tests.taskvectors.test_import import adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untied Llama."""
    return save_base(tmp_path_factory.mktemp("x") / "base")


def save_lora(folder: Path, base: Path, name: str, seed: int, **options: Any) -> Path:
    """A random adapter as a task vector file."""
    adapter(folder / name, base, **options)
    file = folder / f"{name}.safetensors"
    import_lora(folder / name, file, base_dir=base)
    rng = np.random.default_rng(seed)
    vector = read_vector(file)
    parameters = {
        key: LowRankDelta(delta.shape, delta.a, rng.standard_normal(delta.b.shape, np.float32), 0.3)
        for key, delta in vector.parameters.items()
        if isinstance(delta, LowRankDelta)
    }
    write_vector(TaskVector(vector.base, parameters), file)
    return file


def export(spec: object, folder: Path, out: Path, base: Path | None = None) -> None:
    """What the command line does."""
    with open_merge(resolve_spec(spec, folder)) as (merged, _):
        export_peft(merged, out, base=None if base is None else Checkpoint.open(base))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)], ids=str)
def test_peft_merges_an_exported_loadout_as_we_do(
    tmp_path: Path, base: Path, weights: tuple[float, float]
) -> None:
    """Vectors of different ranks, modules and scales, one of them on the embedding."""
    save_lora(tmp_path, base, "a", 1, r=3, target_modules=["q_proj", "down_proj"])
    save_lora(tmp_path, base, "b", 2, r=2, target_modules=["q_proj", "lm_head", "embed_tokens"])
    vectors = {"a.safetensors": weights[0], "b.safetensors": weights[1]}
    export(vectors, tmp_path, tmp_path / "out", base)
    total = read_vector(tmp_path / "a.safetensors") * weights[0]
    total += read_vector(tmp_path / "b.safetensors") * weights[1]
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "out")
    layer = model.base_model.model.model.layers[0]
    assert layer.self_attn.q_proj.r == {"default": 5}
    assert layer.mlp.down_proj.r == {"default": 3}
    merged = model.merge_and_unload().state_dict()
    checkpoint = Checkpoint.open(base)
    assert len(total) > 5
    for name in checkpoint.names:
        expected = total.apply_to(name, checkpoint.read(name))
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_an_exported_loadout_answers_as_it_does_merged(tmp_path: Path, base: Path) -> None:
    """The logits of PEFT's unmerged model are those of the dense sum."""
    save_lora(tmp_path, base, "a", 1)
    export({"a.safetensors": 0.5}, tmp_path, tmp_path / "out")
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "out")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        alone = model.get_base_model().eval()(tokens).logits
        dense = LlamaForCausalLM.from_pretrained(base).eval()
        vector = read_vector(tmp_path / "a.safetensors") * 0.5
        for name, parameter in dense.named_parameters():
            parameter.copy_(torch.from_numpy(vector.apply_to(name, parameter.numpy())))
        torch.testing.assert_close(alone, dense(tokens).logits, rtol=1e-4, atol=1e-4)


def test_export_then_import_is_the_same_vector(tmp_path: Path, base: Path) -> None:
    """What goes out comes in again; the base keeps its name."""
    file = save_lora(tmp_path, base, "a", 1)
    export({"a.safetensors": 1}, tmp_path, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == base.name
    import_lora(tmp_path / "out", tmp_path / "again", base_dir=base)
    left, right = read_vector(file), read_vector(tmp_path / "again")
    assert left.base == right.base
    assert left.parameters.keys() == right.parameters.keys()
    for name in left:
        np.testing.assert_allclose(left.delta(name), right.delta(name), rtol=1e-6, atol=1e-6)


def merged_of(name: str, delta: LowRankDelta | DenseDelta) -> MergedVector:
    vector = TaskVector(BaseInfo("base"), {name: delta})
    return MergedVector([MemorySource("a", vector)], [1.0], "linear", {})


def low_rank(scale: float = 1.0) -> LowRankDelta:
    return LowRankDelta((4, 4), np.ones((2, 4), np.float32), np.ones((4, 2), np.float32), scale)


def test_a_sparse_vector_is_refused_and_what_to_do_is_said(tmp_path: Path, base: Path) -> None:
    """The first parameter that is not low-rank is named; nothing is left behind."""
    save_lora(tmp_path, base, "a", 1)
    save_vector(base, {UP: tune(base, 1)[UP]}, tmp_path / "s.safetensors")
    vectors = {"a.safetensors": 1, "s.safetensors": 1}
    with pytest.raises(UnsupportedAdapter) as caught:
        export(vectors, tmp_path, tmp_path / "out")
    assert str(caught.value).startswith(f"{UP} is not low-rank")
    assert "--to checkpoint" in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("name", "delta", "message"),
    [
        ("model.norm.weight", DenseDelta(np.ones(4, np.float32)), "not low-rank"),
        ("a.q_proj.bias", DenseDelta(np.ones(4, np.float32)), "a.q_proj.bias is no weight"),
        ("h.0.attn.c_proj.weight", low_rank(), "may be stored transposed, as in GPT-2"),
        ("model.embed_tokens.weight", low_rank(), "may be tied to the head; say --base"),
    ],
)
def test_what_peft_cannot_hold_is_refused(
    tmp_path: Path, name: str, delta: LowRankDelta | DenseDelta, message: str
) -> None:
    """Rather than an adapter that loads and does something else."""
    with pytest.raises(UnsupportedAdapter, match=message):
        export_peft(merged_of(name, delta), tmp_path / "out")


def test_an_embedding_of_a_tied_base_is_refused(tmp_path: Path) -> None:
    """PEFT would leave the head as it is."""
    base = Checkpoint.open(save_base(tmp_path / "base", tied=True))
    change = merged_of("model.embed_tokens.weight", low_rank())
    with pytest.raises(UnsupportedAdapter, match="is tied to the head"):
        export_peft(change, tmp_path / "out", base=base)


def test_a_scale_that_overflows_is_refused(tmp_path: Path) -> None:
    """B times scale must be finite in float32."""
    with pytest.raises(NonFiniteValue, match=r"x\.weight"):
        export_peft(merged_of("x.weight", low_rank(1e39)), tmp_path / "out")


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    """An adapter without layers cannot be loaded."""
    vector = TaskVector(BaseInfo("base"), {"x.weight": low_rank()})
    sources = [MemorySource("a", vector)]
    with pytest.raises(UnsupportedAdapter, match="nothing is left"):
        export_peft(MergedVector(sources, [0.0], "linear", {}), tmp_path / "out")
