"""What the parameters of a task vector file cost on disk, and what they could cost at best."""

import math
from dataclasses import dataclass

from taskvectors.format import FileHeader, ParameterSpec

_INDEX_PARTS = ("idx", "bits")


@dataclass(frozen=True)
class Size:
    """Bytes of one parameter, or of several together.

    stored: entries that have a value in the file. nbytes: all tensors. bound: the entropy bound.
    """

    numel: int = 0
    stored: int = 0
    exceptions: int = 0
    nbytes: int = 0
    bound: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.numel + other.numel,
            self.stored + other.stored,
            self.exceptions + other.exceptions,
            self.nbytes + other.nbytes,
            self.bound + other.bound,
        )

    @property
    def density(self) -> float:
        """Stored over all elements."""
        return self.stored / self.numel if self.numel else 0.0

    @property
    def per_nonzero(self) -> float:
        """Bytes for each stored entry."""
        return self.nbytes / self.stored if self.stored else 0.0


def size_of(header: FileHeader, name: str) -> Size:
    """The size of one parameter; raises KeyError for no such name.

    The bound takes the index at its entropy, `numel · H(density) / 8` bytes with H in bits (what a
    random support of this density needs at least), and all else as it is stored.
    """
    spec = header.parameters[name]
    index = sum(
        header.tensors[f"{name}.{part}"].nbytes for part in _INDEX_PARTS if part in spec.parts
    )
    stored = stored_values(spec)
    bound = spec.nbytes - index + (entropy_nbytes(spec.numel, stored) if index else 0.0)
    return Size(spec.numel, stored, spec.num_exceptions, spec.nbytes, bound)


def stored_values(spec: ParameterSpec) -> int:
    """Values in the file: of a low-rank parameter its factors' own."""
    return spec.rank * sum(spec.shape) if spec.kind == "low_rank" else spec.nnz


def entropy_nbytes(numel: int, nnz: int) -> float:
    """`numel · H(nnz / numel) / 8`, H the entropy of one bit."""
    if not 0 < nnz < numel:
        return 0.0
    share = nnz / numel
    bits = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return numel * bits / 8
