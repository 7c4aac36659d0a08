"""The product of two tiles on tensor cores, and in Triton's interpreter."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

WIDEN = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""The interpreter multiplies the bits of bfloat16; in float32 their product is exact."""


@triton.jit
def dot(a, b):  # type: ignore[no-untyped-def]
    """a @ b in float32. a: [M, K]; b: [K, N]; of one dtype."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
