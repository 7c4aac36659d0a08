"""The optional fields of a task vector file: its model card, its extraction, its provenance.

In the file every field is a string; `license`, `base_model` and `base_model_relation` are plain
text, the others JSON. In memory they are what the JSON says. The words are the Hub's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from taskvectors.container.strict_json import dumps, loads
from taskvectors.errors import InvalidHeader

TEXT_FIELDS = ("license", "base_model", "base_model_relation")
LIST_FIELDS = ("tags", "language")
OBJECT_FIELDS = ("extraction", "provenance")
FIELDS = (*TEXT_FIELDS, *LIST_FIELDS, *OBJECT_FIELDS)

MAX_METADATA = 64 << 10
"""Most bytes that all optional fields may have together, names included."""


def card(
    *,
    license: str | None = None,
    base_model: str | None = None,
    base_model_relation: str | None = None,
    tags: Sequence[str] | None = None,
    language: Sequence[str] | None = None,
    extraction: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a TaskVector, without the fields that are not given."""
    given = {
        "license": license,
        "base_model": base_model,
        "base_model_relation": base_model_relation,
        "tags": None if tags is None else list(tags),
        "language": None if language is None else list(language),
        "extraction": extraction,
        "provenance": provenance,
    }
    return {name: value for name, value in given.items() if value is not None}


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Fields in memory to strings of the file; raises InvalidHeader."""
    for name, value in metadata.items():
        _check(name, value)
    strings = {
        name: value if name in TEXT_FIELDS else dumps(value) for name, value in metadata.items()
    }
    _check_size(strings)
    return strings


def decode_metadata(strings: Mapping[str, str]) -> dict[str, Any]:
    """Strings of the file to fields in memory; raises InvalidHeader."""
    _check_size(strings)
    fields = {
        name: text if name in TEXT_FIELDS else loads(text.encode(), name)
        for name, text in strings.items()
    }
    for name, value in fields.items():
        _check(name, value)
    return fields


def _check_size(strings: Mapping[str, str]) -> None:
    sizes = {name: _nbytes(name) + _nbytes(text) for name, text in strings.items()}
    if (total := sum(sizes.values())) > MAX_METADATA:
        largest = max(sizes, key=sizes.__getitem__)
        raise InvalidHeader(
            f"the optional metadata has {total} bytes, {sizes[largest]} of them in"
            f" {largest[:80]!r}; at most {MAX_METADATA} are allowed"
        )


def _nbytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _check(name: str, value: Any) -> None:
    if name not in FIELDS:
        raise InvalidHeader(f"unknown metadata field {name[:80]!r}; choose {', '.join(FIELDS)}")
    if name in TEXT_FIELDS and not isinstance(value, str):
        raise InvalidHeader(f"{name} must be a string")
    if name in LIST_FIELDS and not (
        isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    ):
        raise InvalidHeader(f"{name} must be a list of strings")
    if name in OBJECT_FIELDS and not isinstance(value, Mapping):
        raise InvalidHeader(f"{name} must be an object")
