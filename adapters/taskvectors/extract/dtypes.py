"""Which dtype each parameter of a fine-tuned checkpoint has, said in few words.

A mapping from patterns to dtypes: a parameter's name, its kind (every number in it as `*`), or `*`
alone for all. What it does not name has the base's dtype.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from taskvectors.checkpoint import Checkpoint
from taskvectors.vector import kind_of

_ALL = "*"


def describe_dtypes(base: Checkpoint, finetuned: Checkpoint) -> dict[str, str]:
    """The shortest such mapping that these rules allow; empty where all dtypes are the base's."""
    theirs = {name: finetuned.info(name)[1] for name in finetuned.names}
    if all(base.info(name)[1] == dtype for name, dtype in theirs.items()):
        return {}
    if len(set(theirs.values())) == 1:
        return {_ALL: next(iter(theirs.values()))}
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, dtype in theirs.items():
        kinds[kind_of(name)].add(dtype)
    return {
        kind_of(name) if len(kinds[kind_of(name)]) == 1 else name: dtype
        for name, dtype in theirs.items()
        if dtype != base.info(name)[1] or len(kinds[kind_of(name)]) == 1
    }


def dtype_of(dtypes: Mapping[str, Any], name: str, base_dtype: str) -> str:
    """The dtype of `name` by such a mapping."""
    for pattern in (name, kind_of(name), _ALL):
        if pattern in dtypes:
            return str(dtypes[pattern])
    return base_dtype
