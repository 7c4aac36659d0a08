"""PEFT SHiRA folders, in and out, with PEFT itself as the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import Delta, DenseDelta, SparseDelta
from taskvectors.errors import BaseMismatch, InvalidCheckpoint, UnsupportedAdapter
from taskvectors.exchange import export_shira, import_adapter, import_shira
from taskvectors.format import read_header, read_vector
from taskvectors.merge import MemorySource, MergedVector, merge_vectors
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.exchange.checkpoints import save_base
from tests.taskvectors.test_import import adapter as lora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untied Llama."""
    return save_base(tmp_path_factory.mktemp("x") / "base")


def save_shira(folder: Path, base: Path, seed: int | None = 5) -> PeftModel:
    """Save a random SHiRA adapter of `base` to `folder`."""
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = ShiraConfig(r=2, target_modules=targets, init_weights=False, random_seed=seed)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def plain(tmp_path: Path, base: Path) -> Path:
    """A saved adapter, for the tests to spoil."""
    save_shira(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def edit(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("seed", [5, None])
def test_base_plus_vector_is_what_peft_merges(tmp_path: Path, base: Path, seed: int | None) -> None:
    """Bit for bit; the mask comes from the file, so an unseeded one is read, too."""
    model = save_shira(tmp_path / "adapter", base, seed)
    digest = import_shira(tmp_path / "adapter", tmp_path / "x", base_dir=base)
    vector = read_vector(tmp_path / "x", expected_digest=digest)
    assert vector.base == BaseInfo(base.name, fingerprint(base))
    assert len(vector) == 6
    assert {type(delta) for delta in vector.parameters.values()} == {SparseDelta}
    merged = model.merge_and_unload().state_dict()
    checkpoint = Checkpoint.open(base)
    for name in checkpoint.names:
        ours = vector.apply_to(name, checkpoint.read(name))
        np.testing.assert_array_equal(ours, merged[name].numpy())


def test_indices_in_float_and_entries_of_zero_are_read(
    tmp_path: Path, plain: Path, base: Path
) -> None:
    """PEFT on Windows saves float32 indices; zeros that were never trained are left out."""
    import_shira(plain, tmp_path / "x", base_dir=base)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.shira_indices"] = tensors[f"{Q}.shira_indices"].float()
        tensors[f"{Q}.shira_weight"][:3] = 0

    edit_tensors(plain, change)
    import_shira(plain, tmp_path / "y", base_dir=base)
    before, after = (
        read_vector(tmp_path / name).parameters["model.layers.0.self_attn.q_proj.weight"]
        for name in "xy"
    )
    assert isinstance(before, SparseDelta)
    assert isinstance(after, SparseDelta)
    np.testing.assert_array_equal(before.index[3:], after.index)
    np.testing.assert_array_equal(before.values[3:], after.values)


def test_entries_may_come_in_any_order(tmp_path: Path, plain: Path, base: Path) -> None:
    """PEFT saves them sorted; another writer need not."""
    first = import_shira(plain, tmp_path / "x", base_dir=base)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
        for part in ("shira_weight", "shira_indices"):
            tensors[f"{Q}.{part}"] = tensors[f"{Q}.{part}"][..., order].contiguous()

    edit_tensors(plain, change)
    assert import_shira(plain, tmp_path / "y", base_dir=base) == first


def test_the_kind_of_a_folder_is_recognised(tmp_path: Path, plain: Path, base: Path) -> None:
    """LoRA and SHiRA by peft_type; any other is refused."""
    import_adapter(plain, tmp_path / "x", base_dir=base)
    assert read_header(tmp_path / "x").metadata["extraction"] == {"method": "peft_shira"}
    lora(tmp_path / "lora", base)
    import_adapter(tmp_path / "lora", tmp_path / "y", base_dir=base)
    assert read_header(tmp_path / "y").metadata["extraction"]["method"] == "peft_lora"
    for kind in ("LOHA", None, ["LORA"]):
        edit(plain, peft_type=kind)
        with pytest.raises(UnsupportedAdapter, match=r"unsupported adapter .*; choose LORA, SHIRA"):
            import_adapter(plain, tmp_path / "z", base_dir=base)
    with pytest.raises(InvalidCheckpoint, match=r"adapter_config\.json"):
        import_adapter(tmp_path, tmp_path / "z")


def test_without_its_base_a_folder_is_refused(tmp_path: Path, plain: Path) -> None:
    """The shapes are not in the file."""
    edit(plain, base_model_name_or_path="org/elsewhere")
    with pytest.raises(UnsupportedAdapter, match="give the base's folder"):
        import_shira(plain, tmp_path / "x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LORA"}, "choose SHIRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules were trained"),
        ({"fan_in_fan_out": True}, "stores? transposed"),
        ({"r": 3}, "r=3 and .* ask for"),
        ({"r": None}, "must give r"),
        ({"r": True}, "must give r"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused(
    tmp_path: Path, plain: Path, base: Path, fields: dict[str, object], message: str
) -> None:
    """The error names the field."""
    edit(plain, **fields)
    with pytest.raises(UnsupportedAdapter, match=message):
        import_shira(plain, tmp_path / "x", base_dir=base)
    assert not (tmp_path / "x").exists()


def put(part: str, row: int, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.{part}"][row, 0] = value

    return change


def twice(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.shira_indices"][:, 1] = tensors[f"{Q}.shira_indices"][:, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.shira_indices"), "its mask was not saved"),
        (lambda t: t.pop(f"{Q}.shira_weight"), "no shira_weight"),
        (lambda t: t.update({f"{Q}.shira_x": torch.ones(2)}), "neither shira_weight"),
        (lambda t: t.clear(), "holds no shira_weight"),
        (put("shira_indices", 0, -1), "an index outside of"),
        (put("shira_indices", 0, 16), "an index outside of"),
        (put("shira_indices", 1, 2**31 - 1), "an index outside of"),
        (twice, "names an element twice"),
        (lambda t: t.update({f"{Q}.shira_weight": torch.ones(3)}), r"has shira_weight \[3\]"),
        (lambda t: t.update({f"{Q}.shira_indices": torch.ones(64, 2)}), "ask for 64 entries"),
        (
            lambda t: t.update({f"{Q}.shira_indices": torch.full((2, 64), float("nan"))}),
            "an index outside of",
        ),
        (
            lambda t: t.update({f"{Q}.shira_weight": torch.ones(64, dtype=torch.int32)}),
            "I32 values",
        ),
    ],
)
def test_tensors_that_cannot_be_are_refused(
    tmp_path: Path,
    plain: Path,
    base: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    """A hostile or broken file is told from a good one."""
    edit_tensors(plain, change)
    with pytest.raises(UnsupportedAdapter, match=message):
        import_shira(plain, tmp_path / "x", base_dir=base)
    assert not (tmp_path / "x").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, plain: Path) -> None:
    """A layer that the base lacks is named."""
    other = tmp_path / "other"
    other.mkdir()
    save_file({"x.weight": torch.ones(2, 2)}, other / "model.safetensors")
    with pytest.raises(BaseMismatch, match=r"has no parameter model.layers.0"):
        import_shira(plain, tmp_path / "x", base_dir=other)


def sparse_vector(base: Path, seed: int, counts: tuple[int, ...]) -> TaskVector:
    """Random entries in the first matrices of the layers."""
    rng = np.random.default_rng(seed)
    checkpoint = Checkpoint.open(base)
    names = [name for name in checkpoint.names if "proj" in name]
    parameters: dict[str, Delta] = {}
    for name, count in zip(names, counts, strict=False):
        shape = checkpoint.shapes[name]
        index = np.sort(rng.choice(shape[0] * shape[1], count, replace=False))
        parameters[name] = SparseDelta(shape, index, rng.standard_normal(count, np.float32))
    return TaskVector(BaseInfo(base.name, fingerprint(checkpoint)), parameters)


def test_peft_merges_an_exported_loadout_as_we_do(tmp_path: Path, base: Path) -> None:
    """Layers with unequal numbers of entries; bit for bit, and importable again."""
    vectors = [sparse_vector(base, 1, (100, 7, 33)), sparse_vector(base, 2, (9, 50, 1, 20))]
    sources = [MemorySource(str(key), vector) for key, vector in enumerate(vectors)]
    merged = MergedVector(sources, [0.7, -0.3], "linear", {})
    rank = export_shira(merged, tmp_path / "out")
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "out")
    weights = model.merge_and_unload().state_dict()
    total = merge_vectors(vectors, [0.7, -0.3])
    assert rank == max(-(-delta.nnz // sum(delta.shape)) for delta in total.parameters.values())
    checkpoint = Checkpoint.open(base)
    for name in checkpoint.names:
        expected = total.apply_to(name, checkpoint.read(name))
        np.testing.assert_array_equal(weights[name].numpy(), expected)
    import_shira(tmp_path / "out", tmp_path / "again", base_dir=base)
    again = read_vector(tmp_path / "again")
    assert again.parameters.keys() == total.parameters.keys()
    for name in total:
        np.testing.assert_array_equal(again.delta(name), total.delta(name))


@pytest.mark.parametrize(
    ("name", "delta", "message"),
    [
        ("norm.weight", DenseDelta(np.ones(4, np.float32)), "not a sparse delta"),
        ("x.bias", DenseDelta(np.ones(4, np.float32)), "is no weight"),
        ("embed_tokens.weight", SparseDelta((4, 4), np.arange(2), np.ones(2, np.float32)), "sp"),
    ],
)
def test_what_shira_cannot_hold_is_refused(
    tmp_path: Path, name: str, delta: Delta, message: str
) -> None:
    """Only sparse deltas of linear layers."""
    vector = TaskVector(BaseInfo("base"), {name: delta})
    with pytest.raises(UnsupportedAdapter, match=message):
        export_shira(MergedVector([MemorySource("a", vector)], [1.0], "linear", {}), tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_a_layer_too_small_for_the_common_r_is_refused(tmp_path: Path) -> None:
    """PEFT has one r for all layers."""
    small = SparseDelta((2, 3), np.array([1]), np.ones(1, np.float32))
    large = SparseDelta((40, 40), np.arange(200), np.ones(200, np.float32))
    vector = TaskVector(BaseInfo("base"), {"a.weight": small, "b.weight": large})
    with pytest.raises(UnsupportedAdapter, match=r"a.weight \[2, 3\] cannot hold the 15 entries"):
        export_shira(MergedVector([MemorySource("a", vector)], [1.0], "linear", {}), tmp_path / "o")
