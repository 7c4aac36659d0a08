"""One vector as an arena holds it: a run of bytes, and entries that say where in it things lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from taskvectors.vllm_plugin.extents import aligned


@dataclass(frozen=True, eq=False)
class Entries:
    """A column of a table. values: int64 [N, F], bytes into the image, or constants.

    units: int64 [N, F], bytes of an element that a field counts in; 0 for a constant.
    """

    values: Tensor
    units: Tensor

    @classmethod
    def empty(cls, num: int, fields: int) -> "Entries":
        """All constants, all zero."""
        shape = (num, fields)
        return cls(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64))

    def set_place(self, row: int, field: int, at: int, unit: int) -> None:
        """Let a field count, in elements of `unit` bytes, to byte `at` of the image."""
        self.values[row, field], self.units[row, field] = at, unit

    def placed(self, start: int) -> Tensor:
        """The entries of an image that lies at byte `start`."""
        elements = (self.values + start) // self.units.clamp(min=1)
        return torch.where(self.units > 0, elements, self.values)


class Image:
    """Gathers the arrays of one vector, each once, at aligned offsets."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._pieces: list[tuple[int, Tensor, torch.dtype]] = []
        self._known: dict[tuple[int, torch.dtype], int] = {}

    def add(self, tensor: Tensor, dtype: torch.dtype) -> int:
        """Where `tensor`, in `dtype`, lies in the image."""
        key = (id(tensor), dtype)
        if key not in self._known:
            self._known[key] = self.nbytes
            self._pieces.append((self.nbytes, tensor, dtype))
            self.nbytes += aligned(tensor.numel() * dtype.itemsize)
        return self._known[key]

    def write(self, into: Tensor) -> None:
        """Copy the image to `into` [nbytes] uint8, in one transfer."""
        host = torch.zeros(self.nbytes, dtype=torch.uint8, pin_memory=into.is_cuda)
        for at, tensor, dtype in self._pieces:
            # To 16 bits by way of bits: 65535 is −1 there.
            piece = tensor.detach().cpu().contiguous().reshape(-1).to(dtype).view(torch.uint8)
            host[at : at + len(piece)] = piece
        into.copy_(host)
