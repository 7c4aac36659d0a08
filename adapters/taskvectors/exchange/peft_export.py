"""A merge of low-rank deltas as a PEFT LoRA folder.

The ranks of all vectors are concatenated, `Σ wₖ sₖ Bₖ Aₖ = [w₁ s₁ B₁, …] [A₁; …]`, and weights and
scales are multiplied into B in float32: alpha = r everywhere, so that PEFT's own scale is 1.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Array, LowRankDelta, SparseDelta
from taskvectors.errors import UnsupportedAdapter
from taskvectors.exchange.new_folder import creating
from taskvectors.exchange.peft_folder import (
    OTHERWISE,
    PREFIX,
    check_linear,
    common_fields,
    is_embedding,
    write_folder,
)
from taskvectors.exchange.tensor_file import in_file_order
from taskvectors.format.values import check_finite
from taskvectors.merge.stream import MergedVector, Progress


@dataclass(frozen=True)
class Exported:
    """What was written: modules, and the largest rank."""

    num_modules: int
    max_rank: int


def export_peft(
    merged: MergedVector,
    out: str | os.PathLike[str],
    *,
    base: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the folder `out`. base: for vectors that change an embedding.

    Factors are held in memory until all are known: an adapter, not a model.
    Raises UnsupportedAdapter that names the first parameter that is not low-rank,
    NonFiniteValue, FileExistsError, OSError.
    """
    tensors: dict[str, Array] = {}
    ranks: dict[str, int] = {}
    for name, delta in merged.deltas(progress):
        module = check_linear(name)
        if not isinstance(delta, LowRankDelta):
            also = ", or --to shira if all is sparse" if isinstance(delta, SparseDelta) else ""
            raise UnsupportedAdapter(f"{name} is not low-rank: no LoRA holds it; {OTHERWISE}{also}")
        if is_embedding(module):
            _check_untied(name, base)
        ranks[module] = delta.rank
        tensors |= {f"{PREFIX}{module}.{part}": a for part, a in _factors(name, delta).items()}
    if not ranks:
        raise UnsupportedAdapter("nothing is left of the merge: there is no adapter to write")
    table = {name: (array.shape, "F32") for name, array in tensors.items()}
    blocks: Iterator[tuple[str, Array]] = ((name, tensors[name]) for name in in_file_order(table))
    with creating(out) as folder:
        write_folder(folder, _fields(merged.base.name, ranks), table, blocks)
    return Exported(len(ranks), max(ranks.values()))


def _factors(name: str, delta: LowRankDelta) -> dict[str, Array]:
    """Tensor names to float32 arrays. PEFT keeps an embedding's factors the other way round."""
    a = delta.a.astype(np.float32)
    with np.errstate(over="ignore"):
        b = delta.b.astype(np.float32) * np.float32(delta.scale)
    check_finite(name, a, b)
    if is_embedding(name.rpartition(".")[0]):
        return {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
    return {"lora_A.weight": a, "lora_B.weight": b}


def _fields(base: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    ((common, _),) = Counter(sorted(ranks.values())).most_common(1)
    others = {module.replace(".", r"\."): r for module, r in ranks.items() if r != common}
    return common_fields(base, ranks) | {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _check_untied(name: str, base: Checkpoint | None) -> None:
    """PEFT would leave a head alone that shares the embedding's weight."""
    if base is None or base.is_tied:
        known = "is tied to the head" if base else "may be tied to the head; say --base to know"
        raise UnsupportedAdapter(f"{name} {known}, and PEFT would adapt only one; {OTHERWISE}")
