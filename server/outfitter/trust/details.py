"""What people say of a version, checked: the file's header, the card, and what was given."""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from outfitter.errors import InvalidDetails
from outfitter.state.records import Details
from outfitter.trust.cards import MAX_CARD, fields_of
from outfitter.trust.licenses import normalize, reference
from taskvectors.values import MAX_ECHO

log = logging.getLogger(__name__)

MAX_DESCRIPTION = 2000
MAX_LABELS = 64
MAX_LABEL = 96
MAX_LANGUAGES = 200

_HUB_LANGUAGES = ("code", "multilingual")
_LANGUAGE = re.compile(
    r"[A-Za-z]{2,3}(-[A-Za-z]{3}){0,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?"
    r"(-([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*"
)
_STEERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of text, with which one name can look like another."""


def merge_details(header_metadata: Mapping[str, object], given: Details) -> Details:
    """The details of a file to publish: `given`, else its card's, else the header's.

    header_metadata: the optional fields, as strings or decoded; what is wrong there is dropped
    with a warning. Raises InvalidDetails for what is wrong in `given`, or in fields of its card
    that `given` does not set.
    """
    details = check_details(given)
    if details.card is not None:
        details = _filled(details, fields_of(details.card), _refuse)
    return _filled(details, header_metadata, _ignore)


def details_of(card: str) -> Details:
    """What a card's front matter says, and the card itself; raises InvalidDetails."""
    return merge_details({}, Details(card=card))


def check_details(details: Details) -> Details:
    """`details` in canonical form, without reading the card's fields; raises InvalidDetails."""
    return Details(
        license=None if details.license is None else normalize(details.license),
        languages=languages_of(details.languages),
        description=None if details.description is None else description_of(details.description),
        card=None if details.card is None else _card(details.card),
        labels=labels_of(details.labels),
    )


def license_of(value: object, name: object = None) -> str:
    """The Hub's `license`: an id or a list of them, all of which hold; `name`: `license_name`."""
    entries = list(_texts(value, "license", 16))
    if not entries:
        raise InvalidDetails("license is an empty list; leave it out or name one")
    if [entry.lower() for entry in entries] == ["other"] and isinstance(name, str) and name:
        return _named(name)
    each = [normalize(entry) for entry in entries]
    joined = each[0] if len(each) == 1 else " AND ".join(f"({one})" for one in each)
    return normalize(joined)


def _named(name: str) -> str:
    """`license_name`: an expression that the Hub has no id for, or any name."""
    try:
        return normalize(name)
    except InvalidDetails:
        return normalize(reference(name))


def languages_of(value: object) -> tuple[str, ...]:
    """The Hub's `language`: BCP 47 tags in their usual case; raises InvalidDetails."""
    return _unique(_language(text) for text in _texts(value, "language", MAX_LANGUAGES))


def labels_of(value: object) -> tuple[str, ...]:
    """The Hub's `tags`; raises InvalidDetails."""
    return _unique(_label(text) for text in _texts(value, "tags", MAX_LABELS))


def description_of(value: object) -> str:
    """One paragraph, its line breaks as spaces; raises InvalidDetails."""
    if not isinstance(value, str):
        raise InvalidDetails(f"a description must be text, not {type(value).__name__}")
    if len(value) > MAX_DESCRIPTION:
        raise InvalidDetails(
            f"the description has {len(value)} characters; at most {MAX_DESCRIPTION} are allowed:"
            " put the rest into the card"
        )
    if re.search(r"\n[ \t\r]*\n", value.strip()):
        raise InvalidDetails(
            "the description has more than one paragraph; put the rest into the card"
        )
    text = " ".join(value.split())
    _check_printable(text, "the description")
    return text


def _filled(
    details: Details, fields: Mapping[str, object], wrong: Callable[[str, InvalidDetails], None]
) -> Details:
    """`details`, and what it lacks from `fields` in the Hub's words; `wrong` hears what is not."""
    readers: Mapping[str, tuple[str, Callable[[object], object]]] = {
        "license": ("license", lambda value: license_of(value, fields.get("license_name"))),
        "languages": ("language", languages_of),
        "description": ("description", description_of),
        "labels": ("tags", labels_of),
    }
    found: dict[str, Any] = {}
    for name, (key, reader) in readers.items():
        value = fields.get(key)
        if not getattr(details, name) and value not in (None, "", []):
            try:
                found[name] = reader(value)
            except InvalidDetails as error:
                wrong(key, error)
    return replace(details, **found)


def _refuse(key: str, error: InvalidDetails) -> None:
    raise InvalidDetails(f"the card's {key}: {error}") from error


def _ignore(key: str, error: InvalidDetails) -> None:
    log.warning("the file's own %s is ignored: %s", key, str(error)[:300])


def _texts(value: object, what: str, most: int) -> Iterable[str]:
    """A text, a list of texts, or a JSON list of texts, as a file's header has it."""
    if isinstance(value, str) and value.startswith("["):
        value = _json_list(value, what)
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, str) for e in entries):
        raise InvalidDetails(f"{what} must be a text or a list of texts")
    if len(entries) > most:
        raise InvalidDetails(f"{what} has {len(entries)} entries; at most {most} are allowed")
    return entries


def _json_list(text: str, what: str) -> object:
    try:
        return json.loads(text[: 2**16])
    except (ValueError, RecursionError) as error:
        raise InvalidDetails(f"{what} is not a JSON list: {text[:MAX_ECHO]!r}") from error


def _language(text: str) -> str:
    stripped = text.strip()
    if stripped.lower() in _HUB_LANGUAGES:
        return stripped.lower()
    if len(stripped) > 35 or not _LANGUAGE.fullmatch(stripped):
        raise InvalidDetails(
            f"invalid language {text[:MAX_ECHO]!r}: use ISO 639 or BCP 47, such as en or pt-BR"
        )
    first, *rest = stripped.split("-")
    return "-".join([first.lower(), *(_subtag(part) for part in rest)])


def _subtag(part: str) -> str:
    if part.isalpha() and len(part) == 2:
        return part.upper()
    return part.title() if part.isalpha() and len(part) == 4 else part.lower()


def _label(text: str) -> str:
    label = text.strip()
    if not 1 <= len(label) <= MAX_LABEL:
        raise InvalidDetails(f"invalid label {text[:MAX_ECHO]!r}: use 1 to {MAX_LABEL} characters")
    _check_printable(label, f"the label {label!r}")
    return label


def _card(text: str) -> str:
    if len(text) > MAX_CARD or len(text.encode("utf-8", "surrogatepass")) > MAX_CARD:
        raise InvalidDetails(f"the card has more than {MAX_CARD} bytes")
    _check_printable(text.translate({ord(c): None for c in "\t\n\r\f\ufeff"}), "the card")
    return text


def _check_printable(text: str, what: str) -> None:
    """Refuse control characters, lone surrogates, and what turns the direction of text."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") or character in _STEERING:
            raise InvalidDetails(
                f"{what} has the character U+{ord(character):04X}; leave control characters out"
            )


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
