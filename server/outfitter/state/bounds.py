"""What the catalog holds at most of each detail, and text that every database can hold."""

import unicodedata
from collections.abc import Sequence

from outfitter.errors import InvalidDetails
from outfitter.state.records import Details, FileFacts, Publication

MAX_INTEGER = 2**63 - 1
MAX_LISTED = 256
MAX_LABEL = 256
MAX_LANGUAGE = 64
MAX_LICENSE = 1024
MAX_DESCRIPTION = 16_384
MAX_CARD = 2**20
MAX_SIGNATURE = 2**20
MAX_PUBLISHER = 512
MAX_REQUEST = 2**20


def check_text(text: str | None, what: str, most: int) -> None:
    """Raise InvalidDetails for text that is too long or that no database keeps."""
    if text is None:
        return
    if len(text) > most:
        raise InvalidDetails(f"{what} has {len(text)} characters; at most {most} are kept")
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidDetails(f"{what} has a character that is no text: {text[:80]!r}")


def check_details(details: Details) -> None:
    """Raise InvalidDetails for what the catalog cannot hold."""
    check_text(details.license, "the licence", MAX_LICENSE)
    check_text(details.description, "the description", MAX_DESCRIPTION)
    check_text(details.card, "the card", MAX_CARD)
    _check_list(details.labels, "label", MAX_LABEL)
    _check_list(details.languages, "language", MAX_LANGUAGE)


def check_publication(publication: Publication) -> None:
    """Raise InvalidDetails for what the catalog cannot hold."""
    check_details(publication.details)
    check_text(publication.publisher, "the publisher", MAX_PUBLISHER)
    check_text(publication.signature, "the signature", MAX_SIGNATURE)
    check_facts(publication.facts)


def check_facts(facts: FileFacts) -> None:
    """Raise InvalidDetails for what the catalog cannot hold."""
    check_text(facts.base_name, "the base's name", 1024)
    check_text(facts.base_fingerprint, "the base's fingerprint", 128)
    check_text(facts.method, "the method", 256)
    for what in ("size", "parameters", "nnz", "numel"):
        number = getattr(facts, what)
        if not 0 <= number <= MAX_INTEGER:
            raise InvalidDetails(f"{what} is {number}; it must be 0 to 2^63 - 1")


def fold(text: str) -> str:
    """`text` as it is searched: equal for any case and any way to write the same letters."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def searchable(name: str, details: Details) -> str:
    """What a search looks at."""
    return fold("\n".join((name, details.description or "", *details.labels)))


def _check_list(texts: Sequence[str], what: str, most: int) -> None:
    if len(texts) > MAX_LISTED:
        raise InvalidDetails(f"{len(texts)} {what}s; at most {MAX_LISTED} are kept")
    for text in texts:
        check_text(text, f"the {what} {text[:80]!r}", most)
