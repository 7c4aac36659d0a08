"""The resident base weights: each tensor found by checkpoint name, read, and written in place.

On a CPU vLLM packs a linear layer for its matrix library and drops the weight. What it packed is
then read back through the layer's own product with the identity, which is exact, and packed anew
after a change; no second copy of the base is kept. A weight of -0.0 reads back as 0.0: no product
tells them apart.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskvectors.errors import BaseMismatch, VectorLoadFailed
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.sites import Part, Site, SiteIndex


@dataclass(frozen=True, eq=False)
class ResidentTensor:
    """A weight or bias of the base, and every module that computes with it.

    Two for a tied embedding, else one. leaf: weight or bias. parts: its rows.
    """

    name: str
    leaf: str
    modules: tuple[nn.Module, ...]
    parts: tuple[Part, ...]
    is_matrix: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        width = compat.input_width(self.modules[0]) if self.is_matrix else 1
        return self.parts[-1].stop * width * self.dtype.itemsize

    @property
    def is_packed(self) -> bool:
        """Whether only a packed form is there, so that opening makes a copy."""
        return self.is_matrix and not self._tensor.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self._tensor.dtype

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """The shape of one part in the checkpoint."""
        return (part.size, compat.input_width(self.modules[0])) if self.is_matrix else (part.size,)

    @contextmanager
    def opened(self, *, to_write: bool) -> Iterator[Tensor]:
        """[out, in] or [out], with all parts; what is written to it is what the layer uses after.

        A packed weight is packed anew at the end, unless the block raises.
        """
        values = compat.unpacked_weight(self.modules[0]) if self.is_packed else self._tensor.data
        yield values
        if to_write and self.is_matrix:
            for module in self.modules:
                compat.repack_weight(module, values)

    def digest(self, values: Tensor) -> str:
        """sha256 of the bytes of all parts in `values`, in hex."""
        found = hashlib.sha256()
        for rows in torch.split(values[: self.parts[-1].stop], 4096):
            found.update(rows.contiguous().view(torch.uint8).cpu().numpy().data)
        return found.hexdigest()

    @property
    def _tensor(self) -> Tensor:
        tensor = getattr(self.modules[0], self.leaf)
        assert isinstance(tensor, Tensor)
        return tensor


class ResidentWeights:
    """All tensors of the hooked layers, by the names that the checkpoint uses."""

    def __init__(self, index: SiteIndex) -> None:
        self._index = index
        sites: dict[tuple[Part, ...], list[Site]] = {}
        for site in index.sites:
            sites.setdefault(site.parts, []).append(site)
        self.tensors = [
            tensor
            for shared in sites.values()
            for leaf in ("weight", "bias")
            if (tensor := _resident(shared, leaf)) is not None
        ]
        self._by_name = {tensor.name: tensor for tensor in self.tensors}

    def find(self, parameter: str, shape: tuple[int, ...]) -> tuple[ResidentTensor, Part]:
        """The tensor that has a checkpoint parameter, and the part in it.

        Raises VectorLoadFailed for a parameter that the engine keeps in no such tensor,
        BaseMismatch for another shape.
        """
        leaf = parameter.rpartition(".")[2]
        for site, position in self._index.find(parameter):
            tensor = self._by_name.get(_name(site.parts, leaf))
            if tensor is None:
                break
            part = site.parts[position]
            if tensor.shape_of(part) != tuple(shape):
                raise BaseMismatch(
                    f"{parameter!r} has shape {list(shape)}, the engine's is"
                    f" {list(tensor.shape_of(part))}"
                )
            return tensor, part
        raise VectorLoadFailed(
            f"{parameter!r} cannot be promoted: the engine has no plain tensor for it; serve the"
            " loadout per request"
        )

    def checksum(self) -> str:
        """sha256 over the digests of all tensors, in hex. Reads every weight: seconds."""
        digests = {}
        for tensor in self.tensors:
            with tensor.opened(to_write=False) as values:
                digests[tensor.name] = tensor.digest(values)
        return combined(digests)


def combined(digests: Mapping[str, str]) -> str:
    """One sha256 for digests by name."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _name(parts: tuple[Part, ...], leaf: str) -> str:
    return f"{'+'.join(part.module for part in parts)}.{leaf}"


def _resident(sites: list[Site], leaf: str) -> ResidentTensor | None:
    """The tensor of sites with the same parts; None where there is none, or a quantised one."""
    modules = tuple(site.module for site in sites)
    parts = sites[0].parts
    is_matrix = leaf == "weight" and sites[0].kind != "norm"
    for module in modules:
        tensor = getattr(module, leaf, None)
        is_plain = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not is_plain or (is_matrix and not compat.is_plain_weight(module)):
            return None
        if tensor is not getattr(modules[0], leaf):
            return None
    return ResidentTensor(_name(parts, leaf), leaf, modules, parts, is_matrix)
