"""Dense checkpoints of a base plus a loadout, against mergekit, PEFT and transformers."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from peft.utils.merge_utils import ties
from transformers import LlamaForCausalLM

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import Array, Delta, DenseDelta, LowRankDelta, SparseDelta
from taskvectors.errors import BaseMismatch, ChecksumMismatch, InvalidCheckpoint, NonFiniteValue
from taskvectors.exchange import export_checkpoint, import_lora, restoring
from taskvectors.exchange.checkpoint_export import added
from taskvectors.extract import extract
from taskvectors.merge import MemorySource, MergedVector
from taskvectors.merge.spec_file import resolve_spec
from taskvectors.merge.spec_merge import open_merge
from taskvectors.vector import BaseInfo, TaskVector
from tests.taskvectors.exchange.checkpoints import loaded, save_base, save_vector, tune
from tests.taskvectors.making import save_checkpoint
from tests.taskvectors.test_import import adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
WEIGHTS = [(1.0, 1.0), (1.0, 0.5), (0.7, -0.3)]


def export(spec: object, folder: Path, base: Path, out: Path, **options: Any) -> int:
    """What the command line does; returns the bytes of the weights."""
    resolved, checkpoint = resolve_spec(spec, folder), Checkpoint.open(base)
    with open_merge(resolved) as (merged, _), restoring(resolved, checkpoint) as restored:
        written = export_checkpoint(merged, checkpoint, out, restored=restored, **options)
    assert written.fingerprint == fingerprint(out)
    return written.nbytes


def mergekit(
    name: str, base: Array, tuned: Sequence[Array], weights: Sequence[float], **options: Any
) -> torch.Tensor:
    """mergekit's own merge of dense weights, in float32."""
    tensors = [torch.from_numpy(np.array(array, np.float32)) for array in (base, *tuned)]
    group = TensorGroup.from_tensors(tensors, base_index=0)
    per_input = {"weight": weights, **options.pop("per_input", {})}
    settings = {key: dict(enumerate(values, start=1)) for key, values in per_input.items()}
    result = registry.get(name).merge_group(
        group, **settings, int8_mask=False, rescale=False, **options, **{"lambda": 1.0}
    )
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_exported_checkpoint_is_mergekits(
    tmp_path: Path, method: str, weights: tuple[float, float], dtype: torch.dtype
) -> None:
    """transformers loads it, and every weight is what mergekit makes of the dense checkpoints."""
    base = save_base(tmp_path / "base", dtype)
    tuned = [tune(base, seed) for seed in (1, 2)]
    for name, one in zip("ab", tuned, strict=True):
        save_vector(base, one, tmp_path / f"{name}.safetensors")
    vectors = dict(zip(("a.safetensors", "b.safetensors"), weights, strict=True))
    spec: dict[str, object] = {"vectors": vectors, "method": method}
    if method == "ties":
        spec["density"] = 0.2
    export(spec, tmp_path, base, tmp_path / "out")
    checkpoint = Checkpoint.open(base)
    weights_of = loaded(tmp_path / "out")
    for name in checkpoint.names:
        options = (
            {"normalize": True, "per_input": {"density": (0.2, 0.2)}}
            if method == "ties"
            else {"normalize": False}
        )
        oracle = "ties" if method == "ties" else "task_arithmetic"
        expected = mergekit(
            oracle, checkpoint.read(name), [one[name] for one in tuned], weights, **options
        )
        assert weights_of[name].dtype == dtype
        torch.testing.assert_close(weights_of[name], expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_exported_checkpoint_of_ties_peft_is_pefts(
    tmp_path: Path, weights: tuple[float, float]
) -> None:
    """The base plus PEFT's own TIES of the dense differences."""
    base = save_base(tmp_path / "base")
    tuned = [tune(base, seed) for seed in (1, 2)]
    for name, one in zip("ab", tuned, strict=True):
        save_vector(base, one, tmp_path / f"{name}.safetensors")
    vectors = dict(zip(("a.safetensors", "b.safetensors"), weights, strict=True))
    spec = {"vectors": vectors, "method": "ties_peft", "density": 0.2}
    export(spec, tmp_path, base, tmp_path / "out")
    checkpoint, weights_of = Checkpoint.open(base), loaded(tmp_path / "out")
    for name in checkpoint.names:
        before = torch.from_numpy(np.array(checkpoint.read(name)))
        deltas = [torch.from_numpy(one[name]) - before for one in tuned]
        expected = before + ties(deltas, torch.tensor(weights), 0.2)
        torch.testing.assert_close(weights_of[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_exported_lora_is_what_peft_merges(tmp_path: Path, dtype: torch.dtype) -> None:
    """merge_and_unload, within the rounding of the base's dtype."""
    base = save_base(tmp_path / "base", dtype)
    model = adapter(tmp_path / "adapter", base, target_modules="all-linear")
    import_lora(tmp_path / "adapter", tmp_path / "v.safetensors", base_dir=base)
    export({"v.safetensors": 1}, tmp_path, base, tmp_path / "out")
    merged, ours = model.merge_and_unload().state_dict(), loaded(tmp_path / "out")
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    for name, expected in merged.items():
        size = float(expected.abs().max())
        torch.testing.assert_close(ours[name], expected.to(dtype), rtol=0, atol=tolerance * size)


def test_an_exact_vector_of_weight_one_restores_the_fine_tuned_weights(tmp_path: Path) -> None:
    """Bit for bit, where the difference is exact."""
    base = save_base(tmp_path / "base", torch.bfloat16)
    tuned = tune(base, 5, coarse=True)
    save_vector(base, tuned, tmp_path / "v.safetensors")
    export({"v.safetensors": 1}, tmp_path, base, tmp_path / "out")
    out = Checkpoint.open(tmp_path / "out")
    for name in out.names:
        expected = tuned[name].astype(ml_dtypes.bfloat16)
        assert out.read(name).tobytes() == expected.tobytes()


@pytest.fixture
def lossless(tmp_path: Path) -> tuple[Path, Path]:
    """A bf16 base, a float32 fine-tuning of it, and the lossless `v.safetensors` between them."""
    rng = np.random.default_rng(11)
    before = {f"w{i}.weight": rng.standard_normal((9, 40)).astype(np.float32) for i in range(3)}
    after = {
        name: array + rng.standard_normal((9, 40), np.float32) for name, array in before.items()
    }
    after["w1.weight"] = before["w1.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in before.items()}
    base = save_checkpoint(tmp_path / "base", stored)
    tuned = save_checkpoint(tmp_path / "tuned", after)
    extract(base, tuned, tmp_path / "v.safetensors", method="lossless")
    return base, tuned


def test_a_lossless_vector_restores_the_fine_tuned_checkpoint(
    tmp_path: Path, lossless: tuple[Path, Path]
) -> None:
    """In its own dtype, bit for bit, where base + delta in the base's dtype would not be it."""
    base, tuned = lossless
    export({"v.safetensors": 1}, tmp_path, base, tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(tuned)
    export({"v.safetensors": 0.5}, tmp_path, base, tmp_path / "half")
    assert Checkpoint.open(tmp_path / "half").info("w0.weight")[1] == "BF16"


def test_a_checkpoint_that_does_not_come_back_is_refused(
    tmp_path: Path, lossless: tuple[Path, Path]
) -> None:
    """What is restored is held against the fine-tuned checkpoint's fingerprint."""
    base = Checkpoint.open(lossless[0])
    spec = resolve_spec({"v.safetensors": 1}, tmp_path)
    with open_merge(spec) as (merged, _), restoring(spec, base) as restored:
        assert restored is not None
        restored.fingerprint = "0" * 64
        with pytest.raises(ChecksumMismatch, match="came back with fingerprint"):
            export_checkpoint(merged, base, tmp_path / "out", restored=restored)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and the folder with `v.safetensors` for it."""
    base = save_base(tmp_path / "base")
    save_vector(base, tune(base, 1), tmp_path / "v.safetensors")
    return base, tmp_path


def test_shards_have_an_index_and_hold_the_same_weights(pair: tuple[Path, Path]) -> None:
    """No file is larger than asked, but for a parameter that is; one file without an index."""
    base, folder = pair
    spec = {"v.safetensors": 0.5}
    one = export(spec, folder, base, folder / "one")
    many = export(spec, folder, base, folder / "many", max_shard_size=4000)
    assert one == many
    assert not (folder / "one" / "model.safetensors.index.json").exists()
    shards = sorted((folder / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == one
    left, right = Checkpoint.open(folder / "one"), Checkpoint.open(folder / "many")
    assert left.names == right.names == tuple(sorted(index["weight_map"]))
    for shard in shards:
        own = [name for name, (path, _) in right.tensors.items() if path == shard]
        assert sum(right.nbytes(name) for name in own) <= 4000 or len(own) == 1
    whole = loaded(folder / "one")
    for name, tensor in loaded(folder / "many").items():
        assert torch.equal(tensor, whole[name])


def test_weights_are_divided_as_the_base_is(pair: tuple[Path, Path]) -> None:
    """Shards of the base are shards of the checkpoint, unless a size is given."""
    base, folder = pair
    model = LlamaForCausalLM.from_pretrained(base)
    model.save_pretrained(folder / "sharded", max_shard_size="4KB")
    export({"v.safetensors": 1}, folder, folder / "sharded", folder / "out")
    export({"v.safetensors": 1}, folder, folder / "sharded", folder / "one", max_shard_size=10**6)
    given, made = (Checkpoint.open(folder / name) for name in ("sharded", "out"))
    assert len(made.files) > 2
    for name in made.names:
        assert made.tensors[name][0].name == given.tensors[name][0].name
    assert [path.name for path in Checkpoint.open(folder / "one").files] == ["model.safetensors"]


def test_what_a_loader_needs_is_copied(pair: tuple[Path, Path]) -> None:
    """Configuration, tokenizer, template and licence; no weights, no index, no model card."""
    base, folder = pair
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "tokenizer.model", "own.py"):
        (base / name).write_text(name)
    for name in ("README.md", "pytorch_model.bin", "x.bin.index.json", ".hidden.json"):
        (base / name).write_text(name)
    export({"v.safetensors": 1}, folder, base, folder / "out")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "own.py",
        "tokenizer.json",
        "tokenizer.model",
    ]
    assert (folder / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_head_that_is_tied_is_not_written(tmp_path: Path) -> None:
    """A stale copy of the embedding would be a second truth."""
    base = save_base(tmp_path / "base", tied=True)
    save_vector(base, tune(base, 1), tmp_path / "v.safetensors")
    export({"v.safetensors": 1}, tmp_path, base, tmp_path / "out")
    assert "lm_head.weight" not in Checkpoint.open(tmp_path / "out").tensors
    weights = loaded(tmp_path / "out")
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_a_target_that_is_not_empty_is_refused(pair: tuple[Path, Path]) -> None:
    """Nothing of a person's is overwritten; an empty folder is fine."""
    base, folder = pair
    (folder / "out").mkdir()
    export({"v.safetensors": 1}, folder, base, folder / "out")
    before = (folder / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="out is not empty; name another folder"):
        export({"v.safetensors": 1}, folder, base, folder / "out")
    assert (folder / "out" / "model.safetensors").stat().st_mtime_ns == before
    (folder / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is no folder"):
        export({"v.safetensors": 1}, folder, base, folder / "file")


def test_another_base_is_refused_with_both_named(pair: tuple[Path, Path]) -> None:
    """The same shapes are not enough; nothing is left behind."""
    base, folder = pair
    other = save_base(folder / "other", torch.bfloat16)
    with pytest.raises(BaseMismatch) as caught:
        export({"v.safetensors": 1}, folder, other, folder / "out")
    assert fingerprint(base) in str(caught.value)
    assert fingerprint(other) in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["base", "other", "v.safetensors"]


def merged_of(parameters: dict[str, Delta]) -> MergedVector:
    vector = TaskVector(BaseInfo("base"), parameters)
    return MergedVector([MemorySource("a", vector)], [1.0], "linear", {})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("x.weight", (2, 2), "the base has no parameter x"), ("w.weight", (3, 2), "w.weight has sh")],
)
def test_a_parameter_that_the_base_lacks_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    """Before anything is written."""
    base = save_checkpoint(tmp_path / "base", {"w.weight": np.ones((2, 2), np.float32)})
    change = merged_of({name: DenseDelta(np.ones(shape, np.float32))})
    with pytest.raises(BaseMismatch, match=message):
        export_checkpoint(change, Checkpoint.open(base), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """Neither a folder nor a temporary one."""
    tensors = {"a.weight": np.ones(4, np.float32), "b.weight": np.full(4, 3e38, np.float32)}
    base = save_checkpoint(tmp_path / "base", tensors)
    change = merged_of({"b.weight": DenseDelta(np.full(4, 3e38, np.float32))})
    with pytest.raises(NonFiniteValue, match=r"b.weight plus its delta does not fit float32"):
        export_checkpoint(change, Checkpoint.open(base), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    """Its scales lie elsewhere, so that a sum means nothing."""
    import safetensors.torch

    (tmp_path / "base").mkdir()
    tensors = {"w.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(tensors, tmp_path / "base" / "model.safetensors")
    change = merged_of({"w.weight": DenseDelta(np.ones((2, 2), np.float32))})
    with pytest.raises(InvalidCheckpoint, match=r"w.weight is F8_E4M3"):
        export_checkpoint(change, Checkpoint.open(tmp_path / "base"), tmp_path / "out")


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_a_sum_is_rounded_once(dtype: Any) -> None:
    """Sparse, dense and low-rank deltas add up alike: in float32, then the base's dtype."""
    rng = np.random.default_rng(7)
    tensor = rng.standard_normal((9, 11)).astype(dtype)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 11), (9, 2)))
    low = LowRankDelta((9, 11), a, b, 0.5)
    dense = rng.standard_normal((9, 11)).astype(np.float32)
    index = np.sort(rng.choice(99, 20, replace=False))
    sparse = SparseDelta((9, 11), index, dense.flat[index])
    wide = np.float64 if dtype == np.float64 else np.float32
    for delta, values in (
        (DenseDelta(dense), dense),
        (sparse, sparse.to_dense()),
        (low, np.asarray(b[:, :1] * 0.5 * a[:1] + b[:, 1:] * 0.5 * a[1:], np.float32)),
    ):
        expected = (tensor.astype(wide) + values.astype(wide)).astype(dtype)
        result = added("w", tensor, delta)
        assert result.dtype == tensor.dtype
        np.testing.assert_array_equal(result, expected)


def test_elements_that_a_sparse_delta_does_not_name_keep_their_bits() -> None:
    """Adding nothing would turn −0.0 into 0.0."""
    tensor = np.array([-0.0, 1.0, -0.0], np.float32)
    result = added("w", tensor, SparseDelta((3,), np.array([1]), np.ones(1, np.float32)))
    assert result.tobytes() == np.array([-0.0, 2.0, -0.0], np.float32).tobytes()
    assert tensor[1] == 1.0


@pytest.mark.parametrize(("dtype", "large"), [(np.float16, 6e4), (ml_dtypes.bfloat16, 3.3e38)])
def test_an_overflow_is_an_error(dtype: Any, large: float) -> None:
    """Infinity is not a weight."""
    tensor = np.full((2, 2), large, dtype)
    for delta in (
        DenseDelta(np.full((2, 2), large, np.float32)),
        SparseDelta((2, 2), np.array([3]), np.array([large], np.float32)),
    ):
        with pytest.raises(NonFiniteValue, match="w plus its delta does not fit"):
            added("w", tensor, delta)


def test_memory_holds_one_parameter_however_many_there_are(tmp_path: Path) -> None:
    """Peak of what Python and numpy allocate: a few times the largest parameter."""
    size = 1 << 18
    tensors = {f"w{i}.weight": np.full((512, 512), i, np.float32) for i in range(12)}
    base = save_checkpoint(tmp_path / "base", tensors)
    index = np.arange(0, size, 10)
    values = np.ones(len(index), np.float32)
    change = merged_of({name: SparseDelta((512, 512), index, values) for name in tensors})
    tracemalloc.start()
    export_checkpoint(change, Checkpoint.open(base), tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * size
    assert Checkpoint.open(tmp_path / "out").read("w3.weight").flat[10] == 4
