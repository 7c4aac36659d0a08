"""Model cards: Markdown with the Hub's YAML fields in front."""

import re
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from outfitter.errors import InvalidDetails
from outfitter.state.records import Version
from outfitter.trust.licenses import HUB_LICENSES

MAX_CARD = 1 << 20
"""Bytes."""
MAX_FRONT_MATTER = 64 << 10
"""Bytes: YAML takes a few seconds per megabyte to parse."""
MAX_DEPTH = 16

_START = re.compile(r"\ufeff?\s{0,256}---[ \t]{0,256}(?:\r\n|\r|\n)")
_END = re.compile(r"^---[ \t]{0,256}$", re.MULTILINE)
_FROM_REFERENCE = {value: key for key, value in HUB_LICENSES.items()}


class _FieldLoader(yaml.BaseLoader):  # type: ignore[misc]
    """YAML whose scalars all are text (`no` is Norwegian); no aliases, so nothing can grow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidDetails("the card's front matter uses a YAML alias; write values out")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InvalidDetails(f"the card's front matter nests more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def fields_of(card: str) -> Mapping[str, object]:
    """The front matter's fields: texts, lists and mappings; raises InvalidDetails."""
    if (block := _front_matter(card)) is None:
        return {}
    try:
        loader = _FieldLoader(block)
        fields = loader.get_single_data()
    except (yaml.YAMLError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InvalidDetails(f"the card's front matter is not YAML: {why}") from error
    if fields in (None, ""):
        return {}
    if not isinstance(fields, dict):
        raise InvalidDetails("the card's front matter must be fields with values")
    return {str(key): None if value in ("~", "null") else value for key, value in fields.items()}


def render(version: Version) -> str:
    """The card of a version: its own, else one that says what the catalog knows."""
    if version.details.card is not None:
        return version.details.card
    fields = yaml.safe_dump(_card_fields(version), sort_keys=False, allow_unicode=True, width=78)
    return f"---\n{fields}---\n\n{_body(version)}"


def _front_matter(card: str) -> str | None:
    start = _START.match(card)
    if start is None:
        return None
    block = card[start.end() : start.end() + MAX_FRONT_MATTER + 1].replace("\r\n", "\n")
    end = _END.search(block)
    if end is None and len(block) > MAX_FRONT_MATTER // 2:
        raise InvalidDetails(
            f"the card's front matter has no end within {MAX_FRONT_MATTER} characters"
        )
    return block[: end.start()] if end else None


def _card_fields(version: Version) -> dict[str, object]:
    """In the Hub's words, without the empty ones."""
    details, facts = version.details, version.facts
    fields: dict[str, object] = {
        **_license_fields(details.license),
        "language": list(details.languages),
        "tags": list(dict.fromkeys([*details.labels, "task-vector"])),
        "base_model": facts.base_name,
        "base_model_relation": "adapter" if facts.base_name else None,
    }
    return {key: value for key, value in fields.items() if value}


def _license_fields(license: str | None) -> dict[str, object]:
    """The Hub's id where there is one, else `other` with the expression as its name."""
    if license is None:
        return {}
    if license in _FROM_REFERENCE:
        return {"license": _FROM_REFERENCE[license]}
    if license.startswith("LicenseRef-") or " " in license:
        return {"license": "other", "license_name": license}
    return {"license": license.lower()}


def _body(version: Version) -> str:
    facts = version.facts
    base = " ".join(filter(None, [facts.base_name, facts.base_fingerprint])) or "not given"
    lines = [
        f"# {version.name}, version {version.version}",
        *([version.details.description] if version.details.description else []),
        "A task vector: a fine-tuned checkpoint minus its base.",
        "\n".join(
            [
                f"- digest: sha256:{facts.digest}",
                f"- base: {base}",
                f"- {facts.parameters} parameters, {facts.nnz} stored values,"
                f" density {facts.density:.4f}",
                *([f"- method: {facts.method}"] if facts.method else []),
            ]
        ),
    ]
    return "\n\n".join(lines) + "\n"
