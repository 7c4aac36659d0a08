"""Synthetic task vectors and PEFT adapters for a model's linear layers, drawn from a seed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from taskvectors.bench.engines import loadout
from taskvectors.bench.settings import InvalidBench
from taskvectors.checkpoint import CONFIG, Checkpoint, read_json
from taskvectors.delta import Array, Delta, LowRankDelta, Shape, SparseDelta
from taskvectors.exchange.peft_folder import CONFIG as ADAPTER_CONFIG
from taskvectors.exchange.peft_folder import PREFIX, WEIGHTS
from taskvectors.exchange.tensor_file import in_file_order, write_tensors
from taskvectors.format import write_vector
from taskvectors.spec import Loadout
from taskvectors.store import DirectoryStore
from taskvectors.vector import BaseInfo, TaskVector

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = (8, 16, 8, 16)
NUM_SPARSE = 4
DENSITY = 0.01
SIZE = 0.02
STOCK_RANK = 8
BF16 = np.dtype(ml_dtypes.bfloat16)
WEIGHTS_RANGE = (0.2, 1.0)


@dataclass(frozen=True)
class Vectors:
    """What was drawn: digests by kind, the files' names and bytes, and folders of PEFT adapters."""

    store: Path
    low_rank: tuple[str, ...]
    sparse: tuple[str, ...]
    names: Mapping[str, str]
    nbytes: Mapping[str, int]
    adapters: tuple[Path, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """Of all vectors."""
        return self.low_rank + self.sparse

    def mixes(
        self, count: int, generator: np.random.Generator, *, over_all: bool = True
    ) -> list[Loadout]:
        """`count` distinct loadouts of one low-rank and one sparse vector each.

        over_all: of all vectors in turn, or all of the same two.
        """
        found = []
        for i in range(count):
            first = i % len(self.low_rank) if over_all else 0
            second = (i // len(self.low_rank) + i) % len(self.sparse) if over_all else 0
            weights = generator.uniform(*WEIGHTS_RANGE, 2).tolist()
            pair = self.low_rank[first], self.sparse[second]
            found.append(loadout(dict(zip(pair, weights, strict=True))))
        return found


def linear_shapes(model: Path, *, dummy: bool) -> dict[str, Shape]:
    """Shapes [out, in] of the linear layers; with `dummy` by the configuration alone.

    Raises InvalidBench, InvalidCheckpoint.
    """
    if dummy:
        return _configured(model)
    ends = tuple(f".{leaf}.weight" for leaf in LINEAR)
    shapes = Checkpoint.open(model).shapes
    found = {name: shape for name, shape in shapes.items() if name.endswith(ends)}
    if not found:
        raise InvalidBench(f"{model} has no linear layers named {', '.join(LINEAR)}")
    return found


def draw_vectors(
    shapes: Mapping[str, Shape], folder: Path, num_adapters: int, seed: int
) -> Vectors:
    """Write low-rank and sparse vectors to a store in `folder`, and PEFT adapters beside it."""
    generator = np.random.default_rng(seed)
    store = DirectoryStore(folder / "store")
    names, nbytes = {}, {}
    made = [("low rank", rank) for rank in RANKS] + [("sparse", 0)] * NUM_SPARSE
    for kind, rank in made:
        path = folder / "vector.safetensors"
        parts = {n: _delta(shape, rank, generator) for n, shape in shapes.items()}
        write_vector(TaskVector(base=BaseInfo("base"), parameters=parts), path)
        digest = store.add(path)
        names[digest] = f"{kind} r{rank}" if rank else f"{kind} {DENSITY:.0%}"
        nbytes[digest] = path.stat().st_size
        path.unlink()
    digests = tuple(names)
    assert len(digests) == len(made)
    adapters = tuple(
        _write_adapter(folder / f"adapter{i}", shapes, generator) for i in range(num_adapters)
    )
    split = len(RANKS)
    return Vectors(store.root, digests[:split], digests[split:], names, nbytes, adapters)


def _delta(shape: Shape, rank: int, generator: np.random.Generator) -> Delta:
    """bfloat16; sparse for rank 0."""
    if rank:
        return LowRankDelta(shape, *_factors(shape, rank, generator))
    numel = math.prod(shape)
    index = np.unique(generator.integers(numel, size=max(1, round(numel * DENSITY))))
    values = generator.standard_normal(len(index), np.float32) * SIZE
    return SparseDelta(shape, index.astype(np.int64), values.astype(BF16))


def _factors(shape: Shape, rank: int, generator: np.random.Generator) -> tuple[Array, Array]:
    out, width = shape
    a = generator.standard_normal((rank, width), np.float32) / width**0.5
    b = generator.standard_normal((out, rank), np.float32) * SIZE
    return a.astype(BF16), b.astype(BF16)


def _write_adapter(
    folder: Path, shapes: Mapping[str, Shape], generator: np.random.Generator
) -> Path:
    tensors: dict[str, Array] = {}
    for name, shape in shapes.items():
        key = PREFIX + name.removesuffix(".weight")
        a, b = _factors(shape, STOCK_RANK, generator)
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir()
    table = {name: (array.shape, "BF16") for name, array in tensors.items()}
    blocks = [(name, tensors[name]) for name in in_file_order(table)]
    write_tensors(folder / WEIGHTS, table, blocks)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": STOCK_RANK,
        "lora_alpha": STOCK_RANK,
        "target_modules": list(LINEAR),
        "bias": "none",
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    return folder


def _configured(model: Path) -> dict[str, Shape]:
    """The linear layers of Llama and its kin."""
    fields = read_json(model / CONFIG)
    hidden, inner, layers, heads = (
        _positive(model, fields, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    head = fields.get("head_dim") or hidden // heads
    wide, narrow = heads * head, (fields.get("num_key_value_heads") or heads) * head
    shapes = [(wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    homes = ["self_attn"] * 4 + ["mlp"] * 3
    return {
        f"model.layers.{layer}.{home}.{leaf}.weight": shape
        for layer in range(layers)
        for home, leaf, shape in zip(homes, LINEAR, shapes, strict=True)
    }


def _positive(model: Path, fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 1:
        raise InvalidBench(f"{model / CONFIG} needs {name} for --dummy; use a Llama-like model")
    return value
