"""How many device bytes a task vector takes when it is resident; known from its header alone."""

import math

from taskvectors.delta import Delta, LowRankDelta, Shape, SparseDelta
from taskvectors.format import FileHeader, ParameterSpec

INDEX_BYTES = 4


def resident_bytes(header: FileHeader, value_bytes: int, sparse_value_bytes: int) -> int:
    """The device bytes of a vector, up to the row offsets of fused layers it touches in part.

    Sparse: a 32-bit column and a value per nonzero, 32-bit row offsets. Low-rank: A and B.
    Dense: its values. A low-rank delta of a tied embedding is held twice and counted once.
    """
    return sum(
        _parameter_bytes(spec, value_bytes, sparse_value_bytes)
        for spec in header.parameters.values()
    )


def delta_bytes(delta: Delta, value_bytes: int, sparse_value_bytes: int) -> int:
    """What a delta adds to `resident_bytes` of the file that it is written to."""
    if isinstance(delta, SparseDelta):
        return _sparse_bytes(delta.shape, delta.nnz, value_bytes, sparse_value_bytes)
    if isinstance(delta, LowRankDelta):
        return delta.rank * sum(delta.shape) * value_bytes
    return math.prod(delta.shape) * value_bytes


def _parameter_bytes(spec: ParameterSpec, value_bytes: int, sparse_value_bytes: int) -> int:
    if spec.kind == "sparse":
        return _sparse_bytes(spec.shape, spec.nnz, value_bytes, sparse_value_bytes)
    if spec.kind == "low_rank":
        return spec.rank * sum(spec.shape) * value_bytes
    return math.prod(spec.shape) * value_bytes


def _sparse_bytes(shape: Shape, nnz: int, value_bytes: int, sparse_value_bytes: int) -> int:
    if len(shape) != 2:  # norms and biases become dense
        return math.prod(shape) * value_bytes
    return nnz * (INDEX_BYTES + sparse_value_bytes) + (shape[0] + 1) * INDEX_BYTES
