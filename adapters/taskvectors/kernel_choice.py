"""Which kernels an engine's layers use."""

import os
from typing import Literal, cast

from taskvectors.errors import UnsupportedEngine

Kernels = Literal["cpu", "triton", "torch"]
KERNELS = ("auto", "cpu", "triton", "torch")


def chosen_kernels(asked: str, device_type: str) -> Kernels:
    """`auto`: compiled ones on a CPU, torch's own operators elsewhere.

    Triton's have not run on CUDA yet, so they are served only where they are asked for; on a CPU
    only in its interpreter, which is for tests. Raises UnsupportedEngine where what was asked for
    does not run on `device_type`.
    """
    if asked == "auto":
        return "cpu" if device_type == "cpu" else "torch"
    is_interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if asked == "triton" and device_type != "cuda" and not is_interpreted:
        raise UnsupportedEngine(
            f"kernels 'triton' need CUDA, not {device_type}; for tests on a CPU, start with"
            " TRITON_INTERPRET=1"
        )
    if asked == "cpu" and device_type != "cpu":
        raise UnsupportedEngine(f"kernels 'cpu' need a CPU, not {device_type}")
    return cast(Kernels, asked)
