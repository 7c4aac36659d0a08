"""References and loadouts: what a request may ask for, and its canonical form.

A *reference* is how a person names a task vector; a *loadout* is the resolved mix, whose
canonical JSON has one digest per distinct mix. Everything here is pure: no I/O, no torch.
"""

import fnmatch
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from taskvectors.errors import InvalidLoadout, InvalidReference

MAX_VECTORS = 16
MAX_WEIGHT = 16.0
MAX_SELECTORS = 128
MAX_GLOBS = 32
MAX_LAYER = 4095
MAX_ECHO = 200
METHODS = ("linear",)

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,100}")
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")

LayerRange: TypeAlias = tuple[int, int, float]
"""First layer, last layer (inclusive), factor."""

ModuleFactor: TypeAlias = tuple[str, float]
"""Glob over module names, factor."""


@dataclass(frozen=True)
class Reference:
    """`name`, `namespace/name`, either with `@version` or `@sha256:digest`, or a bare digest."""

    name: str | None = None
    namespace: str | None = None
    version: int | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Parse `text`; raises InvalidReference."""
        if match := _DIGEST.fullmatch(text):
            return cls(digest=match[1])
        path, _, pin = text.partition("@")
        namespace, _, name = path.rpartition("/")
        parts = [namespace, name] if namespace or "/" in path else [name]
        if not all(_PART.fullmatch(part) for part in parts):
            raise InvalidReference(
                f"invalid reference {text[:MAX_ECHO]!r}: use name, namespace/name,"
                " namespace/name@3 or sha256:<64 hex digits>, and letters, digits, '.', '_' and"
                " '-' in names"
            )
        version, digest = cls._parse_pin(text, pin) if "@" in text else (None, None)
        return cls(name=name, namespace=namespace or None, version=version, digest=digest)

    @staticmethod
    def _parse_pin(text: str, pin: str) -> tuple[int | None, str | None]:
        if match := _DIGEST.fullmatch(pin):
            return None, match[1]
        if re.fullmatch(r"[1-9][0-9]{0,8}", pin):
            return int(pin), None
        raise InvalidReference(
            f"invalid version {pin[:MAX_ECHO]!r} in reference {text[:MAX_ECHO]!r}:"
            " use @3 or @sha256:<64 hex digits>"
        )

    @property
    def path(self) -> str | None:
        """`namespace/name` or `name`; None for a bare digest."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def __str__(self) -> str:
        if self.name is None:
            return f"sha256:{self.digest}"
        pin = (
            f"@sha256:{self.digest}" if self.digest else f"@{self.version}" if self.version else ""
        )
        return f"{self.path}{pin}"


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


@dataclass(frozen=True)
class RequestedVector:
    """One entry of a request's `task_vectors`, not resolved yet."""

    reference: Reference
    weight: float
    selection: Selection = EVERYWHERE


@dataclass(frozen=True)
class LoadoutItem:
    """One resolved entry: the file's digest, its weight, and where it applies."""

    digest: str
    weight: float
    selection: Selection = EVERYWHERE


@dataclass(frozen=True)
class Loadout:
    """A resolved mix of task vectors in canonical order. Equal mixes are equal objects."""

    items: tuple[LoadoutItem, ...]

    @classmethod
    def build(cls, items: Sequence[LoadoutItem]) -> "Loadout":
        """Merge duplicates, drop zero weights, and sort; raises InvalidLoadout."""
        weights: dict[tuple[str, Selection], float] = {}
        for item in items:
            key = (item.digest, item.selection)
            weights[key] = weights.get(key, 0.0) + item.weight
        kept = [LoadoutItem(d, _weight(w, "weight"), s) for (d, s), w in weights.items() if w != 0]
        return cls(tuple(sorted(kept, key=lambda i: (i.digest, repr(i.selection)))))

    @classmethod
    def from_canonical(cls, text: str) -> "Loadout":
        """The inverse of `canonical`; raises InvalidLoadout for anything else."""
        try:
            fields = json.loads(text)
            vectors = [_item_from_json(vector) for vector in fields["vectors"]]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidLoadout(f"not a canonical loadout: {error!r}") from error
        loadout = cls.build(vectors)
        if loadout.canonical != text:
            raise InvalidLoadout("not a canonical loadout: it does not reproduce its own text")
        _check_size(len(vectors), [vector.selection for vector in vectors])
        return loadout

    @cached_property
    def canonical(self) -> str:
        """Compact JSON with sorted keys; equal mixes have equal text."""
        vectors = [
            {"digest": i.digest, "weight": i.weight, **i.selection.to_json()} for i in self.items
        ]
        fields = {"method": "linear", "vectors": vectors}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of `canonical`, in hex."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def engine_name(self) -> str:
        """The model name under which the engine serves this loadout."""
        return f"tv:{self.digest}"

    @property
    def digests(self) -> frozenset[str]:
        """The digests of the task vectors that must be resident."""
        return frozenset(item.digest for item in self.items)

    @property
    def is_base(self) -> bool:
        """True when nothing is added to the base."""
        return not self.items


def parse_task_vectors(value: object) -> list[RequestedVector]:
    """Read the `task_vectors` field of a request, in any of its forms.

    Forms: `{"json": 0.8}`; `[{"name": "json", "weight": 0.8, "layers": …, "modules": …}]`;
    `{"vectors": <either form>, "method": "linear"}`. Raises InvalidLoadout, InvalidReference.
    """
    if isinstance(value, Mapping) and isinstance(value.get("vectors"), (list, Mapping)):
        _reject_unknown(value, {"vectors", "method"}, "task_vectors")
        method = value.get("method", "linear")
        if method not in METHODS:
            name = str(method)[:MAX_ECHO]
            raise InvalidLoadout(f"unsupported method {name!r}; choose {', '.join(METHODS)}")
        value = value["vectors"]
    if not isinstance(value, (list, Mapping)):
        raise InvalidLoadout(
            f"task_vectors must be an object of name → weight or a list, not {_kind(value)}"
        )
    _check_size(len(value), ())
    if isinstance(value, Mapping):
        return [_parse_pair(str(name), weight) for name, weight in value.items()]
    vectors = [_parse_entry(entry, position) for position, entry in enumerate(value)]
    _check_size(len(vectors), [vector.selection for vector in vectors])
    return vectors


def layer_of(module: str) -> int | None:
    """The decoder layer in a module or parameter name; None outside the layers."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def _check_size(num_vectors: int, selections: Sequence[Selection]) -> None:
    """Bound what one request may make the engine compute; raises InvalidLoadout."""
    num_globs = sum(len(selection.modules) for selection in selections)
    num_selectors = sum(selection.num_selectors for selection in selections)
    for what, number, most in (
        ("vectors", num_vectors, MAX_VECTORS),
        ("entries in layers and modules", num_selectors, MAX_SELECTORS),
        ("globs in modules", num_globs, MAX_GLOBS),
    ):
        if number > most:
            raise InvalidLoadout(f"task_vectors has {number} {what}; at most {most} are allowed")


def _parse_pair(name: str, weight: object) -> RequestedVector:
    where = f"weight of {name[:MAX_ECHO]!r}"
    return RequestedVector(Reference.parse(name), _weight(weight, where))


def _parse_entry(entry: object, position: int) -> RequestedVector:
    where = f"task_vectors[{position}]"
    if not isinstance(entry, Mapping):
        raise InvalidLoadout(f"{where} must be an object with a name, not {_kind(entry)}")
    _reject_unknown(entry, {"name", "weight", "layers", "modules"}, where)
    name = entry.get("name")
    if not isinstance(name, str):
        raise InvalidLoadout(f"{where}.name must be a string, not {_kind(name)}")
    selection = Selection(
        _parse_layers(entry.get("layers"), where), _parse_modules(entry.get("modules"), where)
    )
    weight = _weight(entry.get("weight", 1.0), f"{where}.weight")
    return RequestedVector(Reference.parse(name), weight, selection)


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
        pairs = [(key, _weight(factor, f"a factor in {where}")) for key, factor in value.items()]
    elif isinstance(value, list):
        pairs = [(key, 1.0) for key in value]
    else:
        raise InvalidLoadout(f"{where} must be a list or an object, not {_kind(value)}")
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


def _item_from_json(fields: Mapping[str, object]) -> LoadoutItem:
    layers = tuple((int(a), int(b), float(f)) for a, b, f in _entries(fields, "layers"))
    modules = tuple((str(glob), float(f)) for glob, f in _entries(fields, "modules"))
    digest = str(fields["digest"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidLoadout(f"not a digest: {digest!r}")
    return LoadoutItem(digest, _weight(fields["weight"], "weight"), Selection(layers, modules))


def _entries(fields: Mapping[str, object], key: str) -> list[list[Any]]:
    value = fields.get(key, [])
    if not isinstance(value, list):
        raise InvalidLoadout(f"{key} of a canonical loadout must be a list")
    return value


def _weight(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidLoadout(f"{where} must be a number, not {_kind(value)}")
    if not abs(value) <= MAX_WEIGHT:  # False for NaN, too
        raise InvalidLoadout(
            f"{where} must be finite and within ±{MAX_WEIGHT:g}, not {str(value)[:40]}"
        )
    return float(value) + 0.0


def _reject_unknown(fields: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in fields.keys() - known):
        raise InvalidLoadout(
            f"unknown field {unknown[0]!r} in {where}; choose {', '.join(sorted(known))}"
        )


def _kind(value: object) -> str:
    names = {"NoneType": "null", "str": "a string", "bool": "a boolean", "list": "a list"}
    return names.get(type(value).__name__, type(value).__name__)
