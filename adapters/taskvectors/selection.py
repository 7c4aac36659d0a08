"""Which layers and modules a weight applies to: parsed from requests, matched by name. Pure."""

import fnmatch
import functools
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from taskvectors.errors import InvalidLoadout
from taskvectors.values import MAX_ECHO, kind_of, parse_weight

MAX_SELECTORS = 128
MAX_LAYER = 4095

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,100}")
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")

LayerRange: TypeAlias = tuple[int, int, float]
"""First layer, last layer (inclusive), factor."""

ModuleFactor: TypeAlias = tuple[str, float]
"""Glob over module names, factor."""


@dataclass(frozen=True)
class Selection:
    """Which parameters a weight applies to, and with which factor.

    `layers`: empty means every parameter; else a parameter outside the listed decoder layers
    (the embedding, the final norm and the head included) gets factor 0.
    `modules`: empty means every module; else the first glob that matches the module's full name
    (`model.layers.3.mlp.down_proj`) or its trailing components (`mlp.*`, `q_proj`) decides.
    """

    layers: tuple[LayerRange, ...] = ()
    modules: tuple[ModuleFactor, ...] = ()

    def factor(self, module: str) -> float:
        """The factor for the parameters of `module`, a name as in the checkpoint."""
        return self._layer_factor(module) * self._module_factor(module)

    def _layer_factor(self, module: str) -> float:
        if not self.layers:
            return 1.0
        match = _LAYER.search(module)
        if match is None:
            return 0.0
        layer = int(match[1])
        return next((f for first, last, f in self.layers if first <= layer <= last), 0.0)

    def _module_factor(self, module: str) -> float:
        if not self.modules:
            return 1.0
        return next((f for glob, f in self.modules if _matcher(glob).match(module)), 0.0)

    @property
    def num_selectors(self) -> int:
        """Entries of `layers` and `modules` together."""
        return len(self.layers) + len(self.modules)

    def to_json(self) -> dict[str, object]:
        """The canonical fields; an empty selection has none."""
        fields: dict[str, object] = {}
        if self.layers:
            fields["layers"] = [list(entry) for entry in self.layers]
        if self.modules:
            fields["modules"] = [list(entry) for entry in self.modules]
        return fields


EVERYWHERE = Selection()


def parse_selection(fields: Mapping[str, object], where: str) -> Selection:
    """The `layers` and `modules` of one entry of a request; raises InvalidLoadout."""
    return Selection(
        _parse_layers(fields.get("layers"), where), _parse_modules(fields.get("modules"), where)
    )


def selection_from_json(fields: Mapping[str, object]) -> Selection:
    """The inverse of `Selection.to_json`; raises InvalidLoadout, ValueError, TypeError."""
    layers = tuple((int(a), int(b), float(f)) for a, b, f in _entries(fields, "layers"))
    modules = tuple((str(glob), float(f)) for glob, f in _entries(fields, "modules"))
    return Selection(layers, modules)


def layer_of(module: str) -> int | None:
    """The decoder layer in a module or parameter name; None outside the layers."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def _parse_layers(value: object, where: str) -> tuple[LayerRange, ...]:
    pairs = _selector_pairs(value, f"{where}.layers")
    ranges = sorted(_layer_range(key, factor, f"{where}.layers") for key, factor in pairs)
    for (_, last, _), (first, _, _) in itertools.pairwise(ranges):
        if first <= last:
            raise InvalidLoadout(f"{where}.layers names layer {first} twice")
    return tuple(ranges)


def _parse_modules(value: object, where: str) -> tuple[ModuleFactor, ...]:
    pairs = _selector_pairs(value, f"{where}.modules")
    for glob, _ in pairs:
        if not isinstance(glob, str) or not _GLOB.fullmatch(glob):
            raise InvalidLoadout(
                f"{where}.modules takes globs such as 'mlp.*' of at most 100 letters, digits and"
                f" _.*?-, not {str(glob)[:MAX_ECHO]!r}"
            )
    return tuple((str(glob), factor) for glob, factor in pairs)


def _selector_pairs(value: object, where: str) -> list[tuple[object, float]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        pairs = [
            (key, parse_weight(factor, f"a factor in {where}")) for key, factor in value.items()
        ]
    elif isinstance(value, list):
        pairs = [(key, 1.0) for key in value]
    else:
        raise InvalidLoadout(f"{where} must be a list or an object, not {kind_of(value)}")
    if not 0 < len(pairs) <= MAX_SELECTORS:
        raise InvalidLoadout(f"{where} must have 1 to {MAX_SELECTORS} entries, not {len(pairs)}")
    return pairs


@functools.lru_cache(1024)
def _matcher(glob: str) -> re.Pattern[str]:
    """Matches a module's full name or its trailing components."""
    return re.compile(r"(?:.*\.)?" + fnmatch.translate(glob))


def _layer_range(key: object, factor: float, where: str) -> LayerRange:
    match = None if isinstance(key, bool) else _RANGE.fullmatch(str(key))
    if match is not None:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last <= MAX_LAYER:
            return first, last, factor
    raise InvalidLoadout(
        f"{where} takes layers such as 3 or '0-14' up to {MAX_LAYER}, not {str(key)[:MAX_ECHO]!r}"
    )


def _entries(fields: Mapping[str, object], key: str) -> list[list[Any]]:
    value = fields.get(key, [])
    if not isinstance(value, list):
        raise InvalidLoadout(f"{key} of a canonical loadout must be a list")
    return value
