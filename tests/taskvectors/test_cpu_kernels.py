"""The compiled layer equals the reference: every storage, odd shapes, few tokens and many."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from taskvectors.kernels import reference
from taskvectors.kernels.blocks import Block, LayerTable, RankPair, TokenGroups
from taskvectors.kernels.cpu import add_layer
from taskvectors.packed import PackedRows, packed_bytes

SEED = 23
BF16 = ml_dtypes.bfloat16
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def _sparse(
    rows: int, width: int, density: float, dtype: type, generator: np.random.Generator
) -> PackedRows:
    index = np.flatnonzero(generator.random(rows * width) < density)
    values = generator.standard_normal(len(index)).astype(np.float32).astype(dtype)
    return PackedRows.from_flat((rows, width), index, values)


def _ranks(
    rows: int, width: int, rank: int, dtype: type, generator: np.random.Generator
) -> RankPair:
    pair = [
        generator.standard_normal((rank, size)).astype(np.float32).astype(dtype)
        for size in (width, rows)
    ]
    bits = [array.view(np.uint16) if dtype is BF16 else array for array in pair]
    return RankPair(bits[0], bits[1], 0.5)


def _groups(coef: Sequence[Sequence[Sequence[float]]]) -> TokenGroups:
    """From coef[part][token][column]."""
    table = np.array(coef, np.float32)
    used = (table != 0).any(axis=0)
    tokens, bounds, weights = [], [], []
    for column in range(table.shape[2]):
        mine = np.flatnonzero(used[:, column])
        bounds.append((sum(map(len, tokens)), sum(map(len, tokens)) + len(mine)))
        tokens.append(mine)
        weights.append(table[:, mine, column])
    return TokenGroups(
        np.array(bounds, np.int32),
        np.concatenate(tokens).astype(np.int32),
        np.ascontiguousarray(np.concatenate(weights, axis=1)),
    )


def _dense(data: PackedRows | RankPair) -> Tensor:
    if isinstance(data, PackedRows):
        return torch.from_numpy(data.to_dense())
    a, b = (
        (array.view(BF16) if array.dtype == np.uint16 else array).astype(np.float32)
        for array in (data.a, data.b)
    )
    return torch.from_numpy(data.scale * b.T @ a)


def _expected(y: Tensor, x: Tensor, blocks: Sequence[Block], coef: Tensor) -> Tensor:
    """In float32, by the reference; coef: [P, T, K]."""
    wide = y.float().clone()
    for block in blocks:
        dense = _dense(block.data)
        stop = block.start + len(dense)
        part = block.part if len(coef) > 1 else 0
        rows = coef[part, :, block.column]
        reference.sparse_linear(wide[:, block.start : stop], x.float(), rows, dense.to_sparse_csr())
    return wide


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 16, 17, 40, 70])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 130), (65, 600), (130, 33)])
def test_a_layer_of_all_kinds_equals_the_reference(
    dtype: torch.dtype, tokens: int, shape: tuple[int, int]
) -> None:
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    rows, width = shape
    blocks = [
        Block(0, 0, 0, _sparse(rows, width, 0.02, BF16, generator)),
        Block(1, 0, 0, _sparse(rows, width, 0.001, np.float32, generator)),
        Block(2, 0, 0, _ranks(rows, width, 5, BF16, generator)),
        Block(4, 0, 0, _ranks(rows, width, 3, np.float32, generator)),
        Block(5, 0, 0, _sparse(rows, width, 1.0, np.float32, generator)),
        Block(0, 1, rows, _sparse(3, width, 0.5, BF16, generator)),
        Block(2, 1, rows, _ranks(3, width, 1, np.float32, generator)),
    ]
    coef = generator.standard_normal((2, tokens, 6)).astype(np.float32)
    coef *= generator.random((2, tokens, 6)) < 0.6
    x = torch.from_numpy(generator.standard_normal((tokens, width), np.float32)).to(dtype)
    y = torch.from_numpy(generator.standard_normal((tokens, rows + 3 + 2), np.float32)).to(dtype)
    for parts in (coef, coef[:1]):
        expected = _expected(y, x, blocks, torch.from_numpy(parts))
        actual = y.clone()
        add_layer(actual, x, LayerTable(blocks), _groups(parts.tolist()))
        limit = TOLERANCE[dtype] * (1 + width**0.5)
        torch.testing.assert_close(actual.float(), expected, atol=limit, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("density", [0.0, 0.0005, 0.003, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_packing_loses_nothing_and_takes_what_it_promised(density: float, dtype: type) -> None:
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    rows, width = 37, 1900
    index = np.flatnonzero(generator.random(rows * width) < density)
    values = generator.standard_normal(len(index)).astype(np.float32).astype(dtype)
    packed = PackedRows.from_flat((rows, width), index, values)
    dense = np.zeros(rows * width, np.float32)
    dense[index] = values.astype(np.float32)
    np.testing.assert_array_equal(packed.to_dense(), dense.reshape(rows, width))
    most = packed_bytes(rows, len(index), np.dtype(dtype).itemsize, len(index) + index.size)
    assert packed.nbytes <= most


def test_a_bf16_delta_of_one_percent_takes_little_more_than_its_file() -> None:
    """Three bytes and a few escapes in the file, and two bytes for a row here."""
    generator = np.random.default_rng(SEED)
    packed = _sparse(3072, 576, 0.01, BF16, generator)
    nnz = np.count_nonzero(packed.to_dense())
    assert packed.position.dtype == np.uint8
    assert packed.nbytes <= 1.3 * 3.08 * nnz


def test_one_tokens_overflow_reaches_no_other_token() -> None:
    generator = np.random.default_rng(SEED)
    blocks = [
        Block(0, 0, 0, _sparse(20, 30, 0.5, np.float32, generator)),
        Block(0, 0, 0, _ranks(20, 30, 2, np.float32, generator)),
    ]
    for tokens in (9, 64):
        x, y = torch.ones(tokens, 30), torch.zeros(tokens, 20)
        x[1] = torch.inf
        coef = [[[0.0 if t == 2 else 1.0] for t in range(tokens)]]
        add_layer(y, x, LayerTable(blocks), _groups(coef))
        assert not y[1].isfinite().all()
        assert y[[0, *range(2, tokens)]].isfinite().all()
        assert not y[2].any()


@pytest.mark.parametrize("tokens", [2, 64])
def test_a_vector_that_came_after_the_step_began_is_left_alone(tokens: int) -> None:
    generator = np.random.default_rng(SEED)
    blocks = [
        Block(9, 0, 0, _sparse(4, 4, 1.0, np.float32, generator)),
        Block(9, 0, 0, _ranks(4, 4, 1, BF16, generator)),
    ]
    y = torch.zeros(tokens, 4)
    add_layer(y, torch.ones(tokens, 4), LayerTable(blocks), _groups([[[1.0]] * tokens]))
    assert not y.any()
