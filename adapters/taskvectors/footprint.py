"""How many device bytes a task vector takes when it is resident; known from its header alone."""

import math

from taskvectors.delta import Delta, LowRankDelta, Shape, SparseDelta
from taskvectors.format import FileHeader, ParameterSpec
from taskvectors.kernel_choice import Kernels
from taskvectors.packed import BF16, MOST, packed_bytes

INDEX_BYTES = 4
PACKED = 0
"""Stands for the bytes of a sparse value where a CPU packs its deltas: see `packed`."""
WHOLE_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
"""Modules that a CPU does not pack, because tokens look single rows up."""
STORED = {"bf16": 2, "fp16": 2, "fp32": 4}


def sparse_value_bytes(kernels: Kernels, device_type: str, width: int) -> int:
    """Bytes of a resident sparse value in an engine whose own values have `width` bytes, or PACKED.

    torch's sparse products on a CPU know no bfloat16.
    """
    if kernels == "cpu":
        return PACKED
    return 4 if (kernels, device_type) == ("torch", "cpu") else width


def resident_bytes(header: FileHeader, value_bytes: int, sparse_value_bytes: int) -> int:
    """The device bytes of a vector, up to the row offsets of fused layers it touches in part.

    value_bytes: of the engine. sparse_value_bytes: of a sparse value, or PACKED.
    Sparse: a 32-bit column and a value per nonzero, 32-bit row offsets; packed, at most these.
    Low-rank: A and B; packed, in the file's width. Dense: its values. A low-rank delta of a tied
    embedding is held twice and counted once.
    """
    return sum(
        _parameter_bytes(name, spec, value_bytes, sparse_value_bytes)
        for name, spec in header.parameters.items()
    )


def delta_bytes(name: str, delta: Delta, value_bytes: int, sparse_value_bytes: int) -> int:
    """At most what a delta adds to `resident_bytes` of the file that it is written to."""
    if isinstance(delta, SparseDelta):
        is_bf16 = delta.values.dtype == BF16
        entries = delta.nnz + math.prod(delta.shape) // 255
        return _sparse_bytes(
            name, delta.shape, delta.nnz, entries, is_bf16, (value_bytes, sparse_value_bytes)
        )
    if isinstance(delta, LowRankDelta):
        is_bf16 = delta.a.dtype == delta.b.dtype == BF16
        width = _packed_width(is_bf16) if _packs(name, delta.shape, sparse_value_bytes) else 0
        return delta.rank * sum(delta.shape) * (width or value_bytes)
    return math.prod(delta.shape) * value_bytes


def _parameter_bytes(
    name: str, spec: ParameterSpec, value_bytes: int, sparse_value_bytes: int
) -> int:
    is_bf16 = spec.dtype == "BF16" and not spec.num_exceptions
    if spec.kind == "sparse":
        return _sparse_bytes(
            name,
            spec.shape,
            spec.nnz,
            _entries(spec),
            is_bf16,
            (value_bytes, sparse_value_bytes),
        )
    if spec.kind == "low_rank":
        width = _packed_width(is_bf16) if _packs(name, spec.shape, sparse_value_bytes) else 0
        return spec.rank * sum(spec.shape) * (width or value_bytes)
    return math.prod(spec.shape) * value_bytes


def _entries(spec: ParameterSpec) -> int:
    """Most entries of 8-bit increments: a file of 8-bit gaps has as many, or more."""
    if spec.index == "u8" and spec.values in STORED and not spec.num_exceptions:
        return spec.nbytes - STORED[spec.values] * spec.nnz
    return spec.nnz + spec.numel // 255


def _packs(name: str, shape: Shape, sparse_value_bytes: int) -> bool:
    """Whether a CPU packs the parameter; Stager decides alike, by the module's kind."""
    is_table = any(table in name for table in WHOLE_TABLES)
    return sparse_value_bytes == PACKED and max(shape) <= MOST and not is_table


def _packed_width(is_bf16: bool) -> int:
    return 2 if is_bf16 else 4


def _sparse_bytes(
    name: str, shape: Shape, nnz: int, entries: int, is_bf16: bool, widths: tuple[int, int]
) -> int:
    if len(shape) != 2:  # norms and biases become dense
        return math.prod(shape) * widths[0]
    if _packs(name, shape, widths[1]):
        return packed_bytes(shape[0], nnz, _packed_width(is_bf16), entries)
    sparse_value_bytes = widths[1] or 4
    return nnz * (INDEX_BYTES + sparse_value_bytes) + (shape[0] + 1) * INDEX_BYTES
