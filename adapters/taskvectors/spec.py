"""References and loadouts: what a request may ask for, and its canonical form.

A *reference* is how a person names a task vector; a *loadout* is the resolved mix, whose
canonical JSON has one digest per distinct mix. Everything here is pure: no I/O, no torch.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from taskvectors.errors import InvalidLoadout, InvalidReference
from taskvectors.method import Parameters
from taskvectors.methods import LINEAR, find_method
from taskvectors.selection import (
    EVERYWHERE,
    MAX_SELECTORS,
    Selection,
    parse_selection,
    selection_from_json,
)
from taskvectors.values import MAX_ECHO, kind_of, parse_weight, reject_unknown

MAX_VECTORS = 16
MAX_GLOBS = 32

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_TAG = re.compile(r"[a-z][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Reference:
    """`name` or `namespace/name`, bare or with `@version`, `@tag` or `@sha256:…`; or a digest."""

    name: str | None = None
    namespace: str | None = None
    version: int | None = None
    digest: str | None = None
    tag: str | None = None

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
        bare = cls(name=name, namespace=namespace or None)
        return replace(bare, **_parse_pin(text, pin)) if "@" in text else bare

    @property
    def path(self) -> str | None:
        """`namespace/name` or `name`; None for a bare digest."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def __str__(self) -> str:
        if self.name is None:
            return f"sha256:{self.digest}"
        pin = f"sha256:{self.digest}" if self.digest else self.version or self.tag
        return f"{self.path}@{pin}" if pin else str(self.path)


def parse_tag(text: str) -> str:
    """`text`, if it can be a tag; raises InvalidReference."""
    if not _TAG.fullmatch(text):
        raise InvalidReference(
            f"invalid tag {text[:MAX_ECHO]!r}: use a lowercase letter, then up to 63 lowercase"
            " letters, digits, '.', '_' and '-', such as stable"
        )
    return text


def _parse_pin(text: str, pin: str) -> dict[str, Any]:
    if match := _DIGEST.fullmatch(pin):
        return {"digest": match[1]}
    if re.fullmatch(r"[1-9][0-9]{0,8}", pin):
        return {"version": int(pin)}
    if _TAG.fullmatch(pin):
        return {"tag": pin}
    raise InvalidReference(
        f"invalid version {pin[:MAX_ECHO]!r} in reference {text[:MAX_ECHO]!r}:"
        " use @3, @sha256:<64 hex digits>, or a tag such as @stable"
    )


@dataclass(frozen=True)
class RequestedVector:
    """One entry of a request's `task_vectors`, not resolved yet."""

    reference: Reference
    weight: float
    selection: Selection = EVERYWHERE


@dataclass(frozen=True)
class RequestedLoadout:
    """A request's `task_vectors`, not resolved yet. parameters: complete, sorted by name."""

    vectors: tuple[RequestedVector, ...] = ()
    method: str = LINEAR.name
    parameters: Parameters = ()


@dataclass(frozen=True)
class LoadoutItem:
    """One resolved entry: the file's digest, its weight, and where it applies."""

    digest: str
    weight: float
    selection: Selection = EVERYWHERE


@dataclass(frozen=True)
class Loadout:
    """A resolved mix of task vectors in canonical order. Equal mixes are equal objects.

    parameters: of the method, complete and sorted by name.
    """

    items: tuple[LoadoutItem, ...]
    method: str = LINEAR.name
    parameters: Parameters = ()

    @classmethod
    def build(
        cls,
        items: Sequence[LoadoutItem],
        method: str = LINEAR.name,
        parameters: Mapping[str, object] | Parameters = (),
    ) -> "Loadout":
        """The canonical form of a mix; raises InvalidLoadout.

        In a linear one duplicates are added up and zero weights dropped; other methods count
        vectors, so there they stay. Without any vector every method is the base.
        """
        found = find_method(method)
        complete = found.parse(dict(parameters))
        if found is LINEAR:
            return cls(_canonical_order(_summed(items)))
        if not items:
            return cls(())
        found.check_vectors([item.weight for item in items])
        for item in items:
            found.check_selection(item.selection)
        found.check_named(dict(complete), {item.digest for item in items})
        return cls(_canonical_order(items), method, complete)

    @classmethod
    def from_canonical(cls, text: str) -> "Loadout":
        """The inverse of `canonical`; raises InvalidLoadout for anything else."""
        try:
            fields = json.loads(text)
            items = [_item_from_json(vector) for vector in fields["vectors"]]
            method, parameters = fields["method"], dict(fields.get("parameters", {}))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidLoadout(f"not a canonical loadout: {error!r}") from error
        _check_size(len(items), [item.selection for item in items])
        loadout = cls.build(items, method, parameters)
        if loadout.canonical != text:
            raise InvalidLoadout("not a canonical loadout: it does not reproduce its own text")
        return loadout

    @cached_property
    def canonical(self) -> str:
        """Compact JSON with sorted keys; equal mixes have equal text."""
        vectors = [
            {"digest": i.digest, "weight": i.weight, **i.selection.to_json()} for i in self.items
        ]
        fields: dict[str, object] = {"method": self.method, "vectors": vectors}
        if self.parameters:
            fields["parameters"] = dict(self.parameters)
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
        """The digests of the task vectors that it is made of."""
        return frozenset(item.digest for item in self.items)

    @property
    def is_base(self) -> bool:
        """True when nothing is added to the base."""
        return not self.items

    @property
    def is_linear(self) -> bool:
        """True when it is computed per request; others are composed once."""
        return self.method == LINEAR.name


def parse_task_vectors(value: object) -> RequestedLoadout:
    """Read the `task_vectors` field of a request, in any of its forms.

    Forms: `{"json": 0.8}`; `[{"name": "json", "weight": 0.8, "layers": …, "modules": …}]`;
    `{"vectors": <either form>, "method": "ties", "density": 0.2, …}`. Raises InvalidLoadout,
    InvalidReference.
    """
    method, fields = LINEAR, {}
    if isinstance(value, Mapping) and isinstance(value.get("vectors"), (list, Mapping)):
        method = find_method(value.get("method", LINEAR.name))
        fields = {key: v for key, v in value.items() if key not in ("vectors", "method")}
        value = value["vectors"]
    if not isinstance(value, (list, Mapping)):
        raise InvalidLoadout(
            f"task_vectors must be an object of name → weight or a list, not {kind_of(value)}"
        )
    parameters = method.parse(fields)
    _check_size(len(value), ())
    vectors = (
        [_parse_pair(str(name), weight) for name, weight in value.items()]
        if isinstance(value, Mapping)
        else [_parse_entry(entry, position) for position, entry in enumerate(value)]
    )
    _check_size(len(vectors), [vector.selection for vector in vectors])
    method.check_vectors([vector.weight for vector in vectors])
    for vector in vectors:
        method.check_selection(vector.selection)
    return RequestedLoadout(tuple(vectors), method.name, parameters)


def _summed(items: Sequence[LoadoutItem]) -> list[LoadoutItem]:
    weights: dict[tuple[str, Selection], float] = {}
    for item in items:
        key = (item.digest, item.selection)
        weights[key] = weights.get(key, 0.0) + item.weight
    summed = ((d, parse_weight(w, "weight"), s) for (d, s), w in weights.items())
    return [LoadoutItem(d, w, s) for d, w, s in summed if w != 0]


def _canonical_order(items: Sequence[LoadoutItem]) -> tuple[LoadoutItem, ...]:
    return tuple(sorted(items, key=lambda i: (i.digest, repr(i.selection), i.weight)))


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
    return RequestedVector(Reference.parse(name), parse_weight(weight, where))


def _parse_entry(entry: object, position: int) -> RequestedVector:
    where = f"task_vectors[{position}]"
    if not isinstance(entry, Mapping):
        raise InvalidLoadout(f"{where} must be an object with a name, not {kind_of(entry)}")
    reject_unknown(entry, {"name", "weight", "layers", "modules"}, where)
    name = entry.get("name")
    if not isinstance(name, str):
        raise InvalidLoadout(f"{where}.name must be a string, not {kind_of(name)}")
    weight = parse_weight(entry.get("weight", 1.0), f"{where}.weight")
    return RequestedVector(Reference.parse(name), weight, parse_selection(entry, where))


def _item_from_json(fields: Mapping[str, object]) -> LoadoutItem:
    digest = str(fields["digest"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidLoadout(f"not a digest: {digest!r}")
    weight = parse_weight(fields["weight"], "weight")
    return LoadoutItem(digest, weight, selection_from_json(fields))
