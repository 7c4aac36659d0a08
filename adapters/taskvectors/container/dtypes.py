"""The dtypes of safetensors files, as numpy sees them."""

from types import MappingProxyType

import ml_dtypes
import numpy as np

from taskvectors.delta import Array

DTYPES = MappingProxyType(
    {
        name: np.dtype(kind)
        for name, kind in {
            "BOOL": np.bool_,
            "U8": np.uint8,
            "I8": np.int8,
            "F8_E4M3": ml_dtypes.float8_e4m3fn,
            "F8_E5M2": ml_dtypes.float8_e5m2,
            "U16": "<u2",
            "I16": "<i2",
            "F16": "<f2",
            "BF16": ml_dtypes.bfloat16,
            "U32": "<u4",
            "I32": "<i4",
            "F32": "<f4",
            "U64": "<u8",
            "I64": "<i8",
            "F64": "<f8",
        }.items()
    }
)
"""Every dtype that a checkpoint may hold; little-endian."""

NAMES = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

VALUE_NAMES = MappingProxyType({"fp32": "F32", "bf16": "BF16", "fp16": "F16"})
"""What a person says for the dtypes that values of a task vector may have."""

VALUE_DTYPES = frozenset(VALUE_NAMES.values())
EXACT_DTYPES = VALUE_DTYPES | {"F64"}
"""What the checkpoints are made of that a task vector is extracted from."""

INDEX_DTYPES = frozenset({"U8", "U16", "U32"})

_EXPONENT = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def is_finite(values: Array) -> bool:
    """True when `values` (F64, F32, F16 or BF16, any shape) holds neither NaN nor infinity."""
    bits, exponent = _EXPONENT[NAMES[values.dtype]]
    view = np.ascontiguousarray(values).view(bits)
    return not bool(((view & exponent) == exponent).any())
