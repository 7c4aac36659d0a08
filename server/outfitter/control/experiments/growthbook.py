"""An experiment as GrowthBook's SDKs read it, so that outside tools assign alike. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from outfitter.control.experiments.allotment import Segment
from outfitter.control.experiments.assign import HOLDOUT, LAYER, Part, Split, part_seed
from outfitter.control.experiments.hashing import HASH_VERSION

NOTHING = 0.0, 0.0
"""A range that no unit is in."""


def payload(
    name: str,
    split: Split,
    values: Mapping[str, Any],
    attribute: str,
    *,
    is_running: bool = True,
) -> dict[str, Any]:
    """The SDK's payload: one feature, whose value is a variant's, and the control's by default.

    values: of each variant, by its key. attribute: of the user, that holds the unit. A variant
    with several stretches is several variations with its key in `meta`.
    """
    keys = [split.control, *(key for key in values if key != split.control)]
    held = [one for one in split.allotment.segments if one.variant is not None]
    held += [Segment(0, 0, key) for key in keys if key not in {one.variant for one in held}]
    held.sort(key=lambda one: (keys.index(str(one.variant)), one.start))
    rule: dict[str, Any] = {
        "key": name,
        "seed": split.seed,
        "hashAttribute": attribute,
        "hashVersion": HASH_VERSION,
        "variations": [values[str(one.variant)] for one in held],
        "meta": [{"key": one.variant, "name": one.variant} for one in held],
        "ranges": [list(one.range) for one in held],
    }
    if filters := _filters(split, attribute):
        rule["filters"] = filters
    rules = [rule] if is_running else []
    return {"features": {name: {"defaultValue": values[split.control], "rules": rules}}}


def _filters(split: Split, attribute: str) -> list[dict[str, Any]]:
    filters = []
    if (holdout := split.holdout) is not None:
        rest = [(0.0, holdout.start), (holdout.end, 1.0)]
        filters.append(_filter(HOLDOUT, holdout, rest, attribute))
    if (layer := split.layer) is not None:
        filters.append(_filter(LAYER, layer, [(layer.start, layer.end)], attribute))
    return filters


def _filter(
    kind: str, part: Part, ranges: Sequence[tuple[float, float]], attribute: str
) -> dict[str, Any]:
    return {
        "seed": part_seed(kind, part.name),
        "ranges": [list(one) for one in ranges if one[0] < one[1]] or [list(NOTHING)],
        "hashVersion": HASH_VERSION,
        "attribute": attribute,
    }
