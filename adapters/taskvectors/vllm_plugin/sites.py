"""Sites: the places in vLLM's model where a task vector adds to an output.

A site is one vLLM module. It covers one or more *parts*, modules of the checkpoint: vLLM fuses
`q_proj`, `k_proj` and `v_proj` into one `qkv_proj`. A tied embedding is two sites over one part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.deltas import Deltas

Kind = Literal["linear", "embedding", "head", "norm"]


@dataclass(frozen=True)
class Part:
    """One checkpoint module inside a site.

    index: its position among all parts of the model. start, size: its rows of the output.
    """

    module: str
    index: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last output row."""
        return self.start + self.size


@dataclass
class Site:
    """One hooked module and what the pool holds for it."""

    kind: Kind
    module: nn.Module
    parts: tuple[Part, ...]
    deltas: Deltas = field(default_factory=Deltas)

    @property
    def out_features(self) -> int:
        """Rows of the fused output."""
        return self.parts[-1].stop

    @property
    def part_indexes(self) -> tuple[int, ...]:
        """Positions of the parts among all parts of the model."""
        return tuple(part.index for part in self.parts)


class SiteIndex:
    """All sites of a model, found by the names that the checkpoint uses."""

    def __init__(self, model: nn.Module, tied: bool) -> None:
        self.sites: list[Site] = []
        self.parts: list[str] = []
        self._by_module: dict[str, list[tuple[Site, int]]] = {}
        self._rename = compat.checkpoint_renamer(model)
        self._collect(model)
        if tied:
            self._tie()

    def find(self, parameter: str) -> Sequence[tuple[Site, int]]:
        """The (site, position of the part in it) pairs of a checkpoint parameter.

        Empty when no site serves it.
        """
        module, _, leaf = self._rename(parameter).rpartition(".")
        return self._by_module.get(module, ()) if leaf in ("weight", "bias") else ()

    def _collect(self, model: nn.Module) -> None:
        packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
        for name, module in model.named_modules():
            kind = compat.site_kind(module)
            if kind is None:
                continue
            parent, _, leaf = name.rpartition(".")
            leaves = packed.get(leaf, [leaf]) if kind == "linear" else [leaf]
            names = [f"{parent}.{part}" if parent else part for part in leaves]
            self._add(kind, module, names, compat.output_sizes(module, kind))

    def _add(self, kind: Kind, module: nn.Module, names: list[str], sizes: list[int]) -> None:
        if len(names) != len(sizes):  # one output for several names: nothing to split by
            return
        parts, start = [], 0
        for name, size in zip(names, sizes, strict=True):
            parts.append(Part(name, len(self.parts), start, size))
            self.parts.append(name)
            start += size
        site = Site(kind, module, tuple(parts))
        self.sites.append(site)
        for position, name in enumerate(names):
            self._by_module.setdefault(name, []).append((site, position))

    def _tie(self) -> None:
        """Let the embedding's deltas reach the head too, with the embedding's weights."""
        heads = [site for site in self.sites if site.kind == "head"]
        embeddings = [site for site in self.sites if site.kind == "embedding"]
        if len(heads) != 1 or len(embeddings) != 1:
            return
        head, (embedding,) = heads[0], embeddings
        self._by_module.pop(head.parts[0].module, None)
        head.parts = embedding.parts
        self._by_module[embedding.parts[0].module].append((head, 0))
