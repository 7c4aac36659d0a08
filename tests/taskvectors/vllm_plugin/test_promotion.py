"""A promoted loadout is in the weights, once and rounded once; a demoted one never was.

Bare modules stand in for vLLM's; one of them packs its weight and drops it, as vLLM's linear layers
do on a CPU. The real ones are exercised in tests/end_to_end.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvectors.errors import (
    BaseMismatch,
    PromotionTooLarge,
    UnsupportedEngine,
    VectorLoadFailed,
)
from taskvectors.format import write_vector
from taskvectors.selection import EVERYWHERE, Selection
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.vector import (
    BaseInfo,
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
)
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.promotion import Promotion
from taskvectors.vllm_plugin.resident_weights import ResidentWeights
from taskvectors.vllm_plugin.sites import Part, Site

SEED = 41
WIDTH, VOCABULARY, PADDED = 300, 23, 32
QKV = {"q_proj": 6, "k_proj": 3, "v_proj": 5}
GIB = 1 << 30


class UnquantizedFake:
    """Packs as vLLM does: the product keeps its own copy, and the weight is dropped or kept."""

    def __init__(self, *, drops: bool) -> None:
        self._drops = drops
        self.num_packed = 0

    def process_weights_after_loading(self, layer: Any) -> None:
        self.num_packed += 1
        packed = layer.weight.data.clone()
        layer.cpu_linear = lambda x, _weight, bias: F.linear(x, packed, bias)
        if self._drops:
            layer.weight = nn.Parameter(torch.empty(0, dtype=packed.dtype), requires_grad=False)


class Model:
    """A fused packed qkv with a bias, a plain up_proj, a norm, and a tied embedding and head."""

    def __init__(self, dtype: torch.dtype) -> None:
        print(f"seed {SEED}")
        torch.manual_seed(SEED)
        self.dtype = dtype
        self.qkv = _linear(sum(QKV.values()), dtype, UnquantizedFake(drops=True))
        self.qkv.bias = nn.Parameter(torch.randn(sum(QKV.values())).to(dtype), requires_grad=False)
        self.up = _linear(7, dtype, UnquantizedFake(drops=False), packs=False)
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.rand(WIDTH).to(dtype), requires_grad=False)
        self.embedding = _linear(PADDED, dtype, UnquantizedFake(drops=False))
        self.head: Any = _linear(PADDED, dtype, UnquantizedFake(drops=False))
        self.head.weight = self.embedding.weight
        self.head.quant_method.process_weights_after_loading(self.head)
        starts = np.cumsum([0, *QKV.values()]).tolist()
        qkv = [Part(f"l.0.{n}", i, starts[i], s) for i, (n, s) in enumerate(QKV.items())]
        embedding = (Part("embed", 5, 0, VOCABULARY),)
        self.sites = [
            Site("linear", self.qkv, tuple(qkv)),
            Site("linear", self.up, (Part("l.0.up_proj", 3, 0, 7),)),
            Site("norm", self.norm, (Part("l.0.norm", 4, 0, WIDTH),)),
            Site("embedding", self.embedding, embedding),
            Site("head", self.head, embedding),
        ]

    def find(self, parameter: str) -> Sequence[tuple[Site, int]]:
        module, _, leaf = parameter.rpartition(".")
        assert leaf in ("weight", "bias")
        return [
            (site, position)
            for site in self.sites
            for position, part in enumerate(site.parts)
            if part.module == module
        ]

    def parameters(self) -> dict[str, Tensor]:
        """What the products use, by checkpoint name; the head's own copy as `head.weight`."""
        eye = torch.eye(WIDTH, dtype=self.dtype)
        qkv = torch.split(self.qkv.cpu_linear(eye, None, None).T, list(QKV.values()))
        biases = torch.split(self.qkv.bias.data, list(QKV.values()))
        found = {f"l.0.{n}.weight": w.clone() for n, w in zip(QKV, qkv, strict=True)}
        found |= {f"l.0.{n}.bias": b.clone() for n, b in zip(QKV, biases, strict=True)}
        head = self.head.cpu_linear(eye, None, None).T
        assert torch.equal(head, self.head.weight)
        assert torch.equal(head, self.embedding.weight)
        found["l.0.up_proj.weight"] = self.up.weight.data.clone()
        found["l.0.norm.weight"] = self.norm.weight.data.clone()
        found["embed.weight"] = self.embedding.weight.data[:VOCABULARY].clone()
        found["padding"] = self.embedding.weight.data[VOCABULARY:].clone()
        return found

    def sha256(self) -> str:
        """Of all parameters."""
        found = hashlib.sha256()
        for name, value in sorted(self.parameters().items()):
            found.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def _linear(rows: int, dtype: torch.dtype, method: UnquantizedFake, *, packs: bool = True) -> Any:
    module: Any = nn.Module()
    module.input_size = WIDTH
    module.weight = nn.Parameter(torch.randn(rows, WIDTH).to(dtype), requires_grad=False)
    module.quant_method = method
    if packs:
        method.process_weights_after_loading(module)
    return module


class Files:
    """Task vector files by digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data: dict[str, memoryview] = {}

    def add(self, digest: str, parameters: Mapping[str, Delta]) -> str:
        path = self._folder / digest[:8]
        write_vector(TaskVector(BaseInfo("base", None), dict(parameters)), path)
        self._data[digest] = memoryview(path.read_bytes())
        return digest

    def load(self, digest: str) -> memoryview:
        return self._data[digest]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def promotion_of(model: Model, files: Files, available: int = GIB) -> Promotion:
    index = SimpleNamespace(sites=model.sites, find=model.find)
    return Promotion(ResidentWeights(index), files, None, lambda: available)  # type: ignore[arg-type]


def sparse(shape: tuple[int, ...], seed: int, share: float = 0.05) -> SparseDelta:
    dice = np.random.default_rng(seed)
    numel = int(np.prod(shape))
    index = np.sort(dice.choice(numel, max(1, int(share * numel)), replace=False))
    return SparseDelta(shape, index, dice.standard_normal(len(index)).astype(np.float32))


def low_rank(shape: tuple[int, int], seed: int) -> LowRankDelta:
    dice = np.random.default_rng(seed)
    a = dice.standard_normal((2, shape[1])).astype(np.float32)
    return LowRankDelta(shape, a, dice.standard_normal((shape[0], 2)).astype(np.float32), 0.3)


def dense(shape: tuple[int, ...], seed: int) -> DenseDelta:
    return DenseDelta(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


SPARSE = {
    "l.0.q_proj.weight": sparse((6, WIDTH), 1),
    "l.0.v_proj.weight": sparse((5, WIDTH), 2),
    "l.0.up_proj.weight": sparse((7, WIDTH), 3),
    "embed.weight": sparse((VOCABULARY, WIDTH), 4),
}
RICH: dict[str, Delta] = {
    "l.0.q_proj.weight": low_rank((6, WIDTH), 5),
    "l.0.k_proj.weight": sparse((3, WIDTH), 6),
    "l.0.k_proj.bias": dense((3,), 7),
    "l.0.v_proj.bias": sparse((5,), 8),
    "l.0.up_proj.weight": dense((7, WIDTH), 9),
    "l.0.norm.weight": dense((WIDTH,), 10),
}
HALF = Selection(modules=(("k_proj", 0.5), ("norm", 0.0), ("*", 1.0)))
LOADOUTS: dict[str, list[tuple[dict[str, Any], float, Selection]]] = {
    "sparse": [(SPARSE, 0.7, EVERYWHERE)],
    "rich": [(RICH, -0.4, EVERYWHERE)],
    "selected": [(RICH, 1.3, HALF)],
    "mixed": [(SPARSE, 0.7, EVERYWHERE), (RICH, 0.9, HALF)],
}


def build(files: Files, name: str) -> Loadout:
    items = [
        LoadoutItem(files.add(f"{i + 1:064x}", parameters), weight, selection)
        for i, (parameters, weight, selection) in enumerate(LOADOUTS[name])
    ]
    return Loadout.build(items)


def expected(before: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """base + Σ weight · factor · Δ in float64, rounded to the weights' dtype."""
    total = {key: value.double() for key, value in before.items()}
    for parameters, weight, selection in LOADOUTS[name]:
        for key, delta in parameters.items():
            factor = weight * selection.factor(key.rpartition(".")[0])
            total[key] += factor * torch.from_numpy(delta.to_dense()).double()
    return {key: value.to(dtype) for key, value in total.items()}


@pytest.mark.parametrize("name", LOADOUTS)
def test_a_promoted_loadout_is_added_to_the_weights(model: Model, files: Files, name: str) -> None:
    """Every kind of delta, in every kind of tensor, to within one rounding; nothing else moves."""
    before = model.parameters()
    state = promotion_of(model, files).promote("asked", build(files, name))
    after, target = model.parameters(), expected(before, name, model.dtype)
    eps = torch.finfo(model.dtype).eps
    for key, value in after.items():
        assert torch.allclose(value.double(), target[key].double(), rtol=eps, atol=1e-6), key
    touched = {key for parameters, _, _ in LOADOUTS[name] for key in parameters}
    unmoved = [key for key in after if torch.equal(before[key], after[key])]
    assert set(after) - touched <= set(unmoved)
    assert len(unmoved) < len(after) - 1
    assert state["loadout"] == "asked"
    assert state["sha256_before"] != state["sha256_promoted"]


@pytest.mark.parametrize("name", ["sparse", "rich"])
def test_one_vector_gives_the_bits_of_a_merged_checkpoint(
    model: Model, files: Files, name: str
) -> None:
    """Multiplied in float32, then added, then rounded: nothing is fused, on any processor."""
    before = model.parameters()
    promotion_of(model, files).promote("asked", build(files, name))
    after, [(parameters, weight, _)] = model.parameters(), LOADOUTS[name]
    for key, delta in parameters.items():
        product = torch.from_numpy(delta.to_dense() * np.float32(weight))
        assert torch.equal(after[key], (before[key].float() + product).to(model.dtype)), key


@pytest.mark.parametrize("name", LOADOUTS)
def test_demotion_restores_every_bit(model: Model, files: Files, name: str) -> None:
    """And what is put back is what is reported."""
    promotion, before = promotion_of(model, files), model.sha256()
    checksum = promotion.checksum()
    promotion.promote("asked", build(files, name))
    assert promotion.checksum() != checksum
    assert promotion.items
    state = promotion.demote()
    assert model.sha256() == before
    assert promotion.checksum() == checksum
    assert promotion.items == ()
    assert state["sha256_restored"] == state["sha256_before"]
    assert promotion.state() == {"loadout": None}


def test_a_thousand_cycles_change_no_bit(files: Files) -> None:
    """Subtracting instead would have drifted by then, as the last lines show."""
    model = Model(torch.float32)
    promotion, before = promotion_of(model, files), model.sha256()
    loadouts = [build(files, name) for name in ("sparse", "mixed")]
    for cycle in range(1000):
        promotion.promote("asked", loadouts[cycle % 2])
        promotion.demote()
    assert model.sha256() == before
    value = torch.tensor([0.1, 1.0, 3.0]), torch.tensor([0.7, 1e-3, 1e7])
    assert not torch.equal((value[0] + value[1]) - value[1], value[0])


def test_another_loadout_takes_the_place_of_the_one_before(model: Model, files: Files) -> None:
    """It is relative to the base, and one demotion restores the base."""
    promotion, before, sha256 = promotion_of(model, files), model.parameters(), model.sha256()
    promotion.promote("first", build(files, "rich"))
    promotion.promote("second", build(files, "sparse"))
    target = expected(before, "sparse", model.dtype)
    for key, value in model.parameters().items():
        assert torch.allclose(value.float(), target[key].float(), rtol=1e-2, atol=1e-6), key
    promotion.demote()
    assert model.sha256() == sha256


@pytest.mark.parametrize("position", range(4))
def test_a_failure_half_way_restores_everything(
    model: Model, files: Files, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """Wherever it strikes."""
    promotion, before = promotion_of(model, files), model.sha256()
    calls = iter(range(100))
    stock = compat.repack_weight

    def repack(module: Any, weight: Tensor) -> None:
        if next(calls) == position:
            raise MemoryError
        stock(module, weight)

    monkeypatch.setattr(compat, "repack_weight", repack)
    with pytest.raises(MemoryError):
        promotion.promote("asked", build(files, "mixed"))
    assert model.sha256() == before
    assert promotion.state() == {"loadout": None}


def test_weights_that_cannot_be_restored_end_the_engine(
    model: Model, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather no answer than a wrong one."""
    promotion = promotion_of(model, files)
    promotion.promote("asked", build(files, "sparse"))

    def repack(_module: Any, _weight: Tensor) -> None:
        raise MemoryError

    monkeypatch.setattr(compat, "repack_weight", repack)
    with pytest.raises(SystemExit):
        promotion.demote()


def test_a_weight_that_somebody_else_changed_is_noticed(model: Model, files: Files) -> None:
    """The checksums are of the weights as they are, not as they should be."""
    promotion = promotion_of(model, files)
    promotion.promote("asked", build(files, "sparse"))
    model.up.weight.data[:] += 1
    with pytest.raises(SystemExit):
        promotion.demote()


def test_too_little_memory_is_told_before_anything_is_written(model: Model, files: Files) -> None:
    before = model.sha256()
    loadout = build(files, "rich")
    with pytest.raises(PromotionTooLarge, match=r"takes \d+ bytes of host memory"):
        promotion_of(model, files, available=10_000).promote("asked", loadout)
    assert model.sha256() == before


def test_what_is_saved_is_bounded_by_what_was_reckoned(model: Model, files: Files) -> None:
    """Memory just short of what is then saved is refused."""
    loadout = build(files, "mixed")
    saved = promotion_of(model, files).promote("asked", loadout)["saved_bytes"]
    other = Model(model.dtype)
    with pytest.raises(PromotionTooLarge):
        promotion_of(other, files, available=saved).promote("asked", loadout)


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"l.0.gate_proj.weight": dense((7, WIDTH), 1)}, VectorLoadFailed, "cannot be promoted"),
        ({"l.0.up_proj.bias": dense((7,), 1)}, VectorLoadFailed, "cannot be promoted"),
        ({"l.0.up_proj.weight": dense((6, WIDTH), 1)}, BaseMismatch, "has shape"),
        ({"l.0.norm.weight": dense((WIDTH + 1,), 1)}, BaseMismatch, "has shape"),
    ],
)
def test_what_has_no_place_is_refused(
    files: Files, parameters: dict[str, Delta], error: type[Exception], words: str
) -> None:
    """By name, before anything is written."""
    model = Model(torch.float32)
    before = model.sha256()
    loadout = Loadout.build([LoadoutItem(files.add("a" * 64, {**SPARSE, **parameters}), 1.0)])
    with pytest.raises(error, match=words):
        promotion_of(model, files).promote("asked", loadout)
    assert model.sha256() == before


def test_a_sum_that_overflows_is_refused(files: Files) -> None:
    """float16 ends at 65504; the base is restored."""
    model = Model(torch.float16)
    before = model.sha256()
    large = {"l.0.up_proj.weight": DenseDelta(np.full((7, WIDTH), 6e4, np.float32))}
    loadout = Loadout.build([LoadoutItem(files.add("a" * 64, large), 2.0)])
    with pytest.raises(VectorLoadFailed, match="would not be finite"):
        promotion_of(model, files).promote("asked", loadout)
    assert model.sha256() == before


def test_a_base_that_is_not_finite_is_not_promoted(files: Files) -> None:
    """Its packed weights cannot be read back."""
    model = Model(torch.float32)
    weight = torch.zeros(sum(QKV.values()), WIDTH)
    weight[2, 3] = float("inf")
    model.qkv.weight = nn.Parameter(weight, requires_grad=False)
    model.qkv.quant_method.process_weights_after_loading(model.qkv)
    with pytest.raises(UnsupportedEngine, match="not finite"):
        promotion_of(model, files).promote("asked", build(files, "sparse"))


def test_a_quantised_weight_is_not_promoted(files: Files) -> None:
    model = Model(torch.float32)
    model.up.quant_method = SimpleNamespace()
    with pytest.raises(VectorLoadFailed, match="serve the loadout per request"):
        promotion_of(model, files).promote("asked", build(files, "sparse"))
