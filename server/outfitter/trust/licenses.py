"""Licences: SPDX expressions, and the Hub's own ids as references within them."""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

from license_expression import ExpressionError, get_spdx_licensing

from outfitter.errors import InvalidDetails
from taskvectors.values import MAX_ECHO

MAX_LICENSE = 512
"""Characters; an expression of this length parses in milliseconds."""
MAX_NESTING = 16

_HUB_IDS = (
    *("apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigscience-openrail-m", "bsd", "c-uda", "cc", "creativeml-openrail-m"),
    *("deepfloyd-if-license", "fair-noncommercial-research-license", "gemma", "gfdl"),
    *("grok2-community", "h-research", "intel-research", "lgpl-lr", "llama2", "llama3"),
    *("llama3.1", "llama3.2", "llama3.3", "llama4", "odbl", "odc-by", "open-mdw", "openrail"),
    *("other", "pddl", "unknown"),
)
HUB_LICENSES: Mapping[str, str] = {
    **{name: f"LicenseRef-{name}" for name in _HUB_IDS},
    "gpl": "GPL-1.0-or-later",
    "lgpl": "LGPL-2.0-or-later",
    "openrail++": "LicenseRef-openrail-plus-plus",  # + means "or later" in SPDX
}
"""The Hub's ids that SPDX has no licence for; some stand for a family."""

_WORD = re.compile(r"[^\s()]+")
_REFERENCE = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_PREFIX = re.compile(r"licenseref-", re.IGNORECASE)


def normalize(text: str) -> str:
    """The canonical form of an SPDX expression or an id of the Hub; raises InvalidDetails."""
    _check_bounds(text)
    words = _WORD.sub(lambda match: _canonical_word(match[0]), text)
    try:
        expression = _licensing().parse(words, strict=True)
    except ExpressionError as error:
        raise _invalid(text, str(error)[:200]) from error
    if expression is None:
        raise _invalid(text, "it is empty")
    for key in _licensing().unknown_license_keys(expression):
        if not _REFERENCE.fullmatch(key):
            raise _invalid(text, f"there is no licence {key[:MAX_ECHO]!r}{_suggestion(key)}")
    return str(expression)


def reference(name: str) -> str:
    """`LicenseRef-…` for a licence that has only a name of its own."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name[:MAX_LICENSE]).strip("-.")[:100]
    return HUB_LICENSES.get(name.lower(), f"LicenseRef-{slug or 'other'}")


@functools.cache
def _licensing() -> Any:
    return get_spdx_licensing()  # a tenth of a second


@functools.cache
def _known_ids() -> Mapping[str, str]:
    """From lowercase to what people write."""
    spdx = (key for key in _licensing().known_symbols if not key.startswith("LicenseRef-"))
    return {name.lower(): name for name in (*spdx, *HUB_LICENSES)}


def _canonical_word(word: str) -> str:
    found = HUB_LICENSES.get(word.lower(), word)
    return _PREFIX.sub("LicenseRef-", found, count=1) if _PREFIX.match(found) else found


def _check_bounds(text: str) -> None:
    if len(text) > MAX_LICENSE:
        raise _invalid(text, f"it has {len(text)} characters; at most {MAX_LICENSE} are allowed")
    depth = deepest = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise _invalid(text, f"it nests {deepest} deep; at most {MAX_NESTING} are allowed")


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key.lower(), _known_ids(), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(_known_ids()[name] for name in close)}?" if close else ""


def _invalid(text: str, why: str) -> InvalidDetails:
    return InvalidDetails(
        f"invalid licence {text[:MAX_ECHO]!r}: {why}; use an SPDX expression such as Apache-2.0"
        " or MIT OR Apache-2.0, an id of the Hub such as llama3, or LicenseRef-<name>"
    )
