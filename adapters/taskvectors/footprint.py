"""How many device bytes a task vector takes when it is resident; known from its header alone."""

import math

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


def _parameter_bytes(spec: ParameterSpec, value_bytes: int, sparse_value_bytes: int) -> int:
    if spec.kind == "sparse" and len(spec.shape) == 2:
        rows = (spec.shape[0] + 1) * INDEX_BYTES
        return spec.nnz * (INDEX_BYTES + sparse_value_bytes) + rows
    if spec.kind == "low_rank":
        return spec.rank * sum(spec.shape) * value_bytes
    return math.prod(spec.shape) * value_bytes
