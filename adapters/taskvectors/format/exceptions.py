"""The entries of a fine-tuned parameter that base + delta does not restore bit for bit."""

from dataclasses import dataclass

import numpy as np

from taskvectors.container.dtypes import DTYPES, EXACT_DTYPES, is_finite
from taskvectors.delta import Array
from taskvectors.errors import InvalidIndex, InvalidTensor, NonFiniteValue

_DTYPES = tuple(DTYPES[name] for name in sorted(EXACT_DTYPES))


@dataclass(frozen=True, eq=False)
class Exceptions:
    """`finetuned.flat[index[k]] = values[k]`: the fine-tuned values themselves, not differences.

    Only a checkpoint restored from one vector at weight 1 needs them; serving and algebra ignore
    them. index: int64 [m], strictly ascending, row-major. values: [m] of the fine-tuned
    checkpoint's dtype (float64, float32, float16 or bfloat16), finite.
    Raises InvalidTensor, InvalidIndex, NonFiniteValue.
    """

    index: Array
    values: Array

    def __post_init__(self) -> None:
        if self.values.dtype not in _DTYPES:
            choices = ", ".join(dtype.name for dtype in _DTYPES)
            raise InvalidTensor(
                f"unsupported exception dtype {self.values.dtype}; choose {choices}"
            )
        if self.index.dtype != np.int64 or self.index.ndim != 1 or self.values.ndim != 1:
            raise InvalidTensor("exceptions need a 1-D int64 index and 1-D values")
        if len(self.index) != len(self.values):
            raise InvalidIndex(f"{len(self.index)} indices for {len(self.values)} exceptions")
        if len(self.index) and not (
            self.index[0] >= 0 and bool((self.index[1:] > self.index[:-1]).all())
        ):
            raise InvalidIndex("indices of exceptions must ascend strictly from 0")
        if not is_finite(self.values):
            raise NonFiniteValue("an exception is NaN or infinite")

    def __len__(self) -> int:
        return len(self.index)
