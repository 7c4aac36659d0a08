"""The footprint known from a header is what the staged tensors take."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from taskvectors.footprint import PACKED, resident_bytes
from taskvectors.format import read_header, write_vector
from taskvectors.packed import PackedRows
from taskvectors.vector import (
    BaseInfo,
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    TaskVector,
)
from taskvectors.vllm_plugin.staging import Stager
from tests.taskvectors.vllm_plugin.test_layers import NAMES, SIZES, WIDTH, _fused_site, _Index


@pytest.mark.parametrize("packs", [False, True])
def test_the_footprint_bounds_the_device_bytes_closely(tmp_path: Path, packs: bool) -> None:
    """Sparse, low-rank, dense and bias in one fused layer."""
    index = np.arange(0, SIZES[0] * WIDTH, 3)
    parameters: dict[str, Delta] = {
        f"{NAMES[0]}.weight": SparseDelta((SIZES[0], WIDTH), index, np.ones(len(index), "f4")),
        f"{NAMES[1]}.weight": LowRankDelta(
            (SIZES[1], WIDTH), np.ones((2, WIDTH), "f4"), np.ones((SIZES[1], 2), "f4"), 1.0
        ),
        f"{NAMES[2]}.weight": DenseDelta(np.ones((SIZES[2], WIDTH), "f4")),
        f"{NAMES[2]}.bias": DenseDelta(np.ones(SIZES[2], "f4")),
    }
    vector = TaskVector(base=BaseInfo("base", None), parameters=parameters)
    write_vector(vector, tmp_path / "vector.safetensors")
    site = _fused_site()
    stager = Stager(_Index(site), torch.device("cpu"), torch.float32, packs=packs)  # type: ignore[arg-type]
    [(_, staged)] = stager.stage(vector, 0)
    tensors = [tensor for block in staged.low_rank for tensor in (block.a, block.b)]
    tensors += [part.value for part in [*staged.dense, *staged.bias]]
    if staged.sparse is not None:
        tensors += [staged.sparse.crow, staged.sparse.col, staged.sparse.val]
    actual = sum(tensor.nbytes for tensor in tensors)
    actual += sum(block.data.nbytes for block in staged.packed)
    sparse_value_bytes = PACKED if packs else 4
    expected = resident_bytes(read_header(tmp_path / "vector.safetensors"), 4, sparse_value_bytes)
    row_offsets_of_other_parts = 0 if packs else 4 * sum(SIZES[1:])
    assert bool(staged.packed) == packs
    assert actual <= expected + row_offsets_of_other_parts
    assert expected <= actual + 8 * len(index)


def test_the_footprint_of_a_packed_bf16_delta_is_close(tmp_path: Path) -> None:
    """Reserved by the file's header: at least what it takes, and at most a tenth more."""
    generator = np.random.default_rng(3)
    rows, width = 512, 576
    index = np.flatnonzero(generator.random(rows * width) < 0.01)
    values = generator.standard_normal(len(index)).astype(ml_dtypes.bfloat16)
    delta = SparseDelta((rows, width), index, values)
    vector = TaskVector(BaseInfo("base", None), {"model.layers.0.mlp.up_proj.weight": delta})
    write_vector(vector, tmp_path / "vector.safetensors")
    expected = resident_bytes(read_header(tmp_path / "vector.safetensors"), 2, PACKED)
    actual = PackedRows.from_flat((rows, width), index, values).nbytes
    assert actual <= expected <= 1.15 * actual
