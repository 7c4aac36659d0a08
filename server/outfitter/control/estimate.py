"""About how many tokens a prompt has, before the engine has counted them. Pure."""

import math
from collections.abc import Mapping

BYTES_PER_TOKEN = 4
"""Of English in UTF-8, by the usual vocabularies; code and most other languages have fewer."""
_FIELDS = (
    *("prompt", "messages", "input", "system", "instructions", "tools"),
    *("query", "queries", "documents", "text_1", "text_2", "data_1", "data_2"),
)
"""Of the bodies that are relayed, those that hold what the model reads."""
_MEDIA = "data:"
"""How an image or a sound begins; its tokens do not follow from its bytes."""


def prompt_tokens(body: Mapping[str, object]) -> int:
    """A quarter of the bytes of all texts, and one for each token that is given as a number."""
    return math.ceil(sum(_tokens(body.get(name)) for name in _FIELDS))


def _tokens(value: object) -> float:
    if isinstance(value, str):
        nbytes = len(value) if value.isascii() else len(value.encode(errors="replace"))
        return 0.0 if value.startswith(_MEDIA) else nbytes / BYTES_PER_TOKEN
    if isinstance(value, Mapping):
        return sum(_tokens(inner) for inner in value.values())
    if isinstance(value, list):
        return sum(_tokens(inner) for inner in value)
    return float(isinstance(value, int))
