"""Details come from what was given, the card and the file's header, in this order; all checked."""

import dataclasses
import json
import logging

import pytest

from outfitter.errors import InvalidDetails
from outfitter.state.records import Details
from outfitter.trust.details import (
    MAX_DESCRIPTION,
    MAX_LABELS,
    check_details,
    details_of,
    merge_details,
)

CARD = "---\nlicense: mit\nlanguage: [en, pt-br]\ntags: [json]\n---\n# Mine\n"
HEADER = {
    "license": "apache-2.0",
    "language": '["de"]',
    "tags": '["from-header"]',
    "base_model": "acme/base",
}


def test_given_wins_over_card_and_card_over_header() -> None:
    """Each field by itself."""
    merged = merge_details(HEADER, Details(license="isc", card=CARD))
    assert merged == Details("ISC", ("en", "pt-BR"), None, CARD, ("json",))
    assert merge_details(HEADER, Details()) == Details(
        "Apache-2.0", ("de",), None, None, ("from-header",)
    )


def test_a_decoded_header_says_the_same_as_its_strings() -> None:
    """Readers have it in either form."""
    decoded = {
        key: json.loads(text) if text.startswith("[") else text for key, text in HEADER.items()
    }
    assert merge_details(decoded, Details()) == merge_details(HEADER, Details())


@pytest.mark.parametrize(
    "header",
    [
        {"license": "no-such-licence"},
        {"license": "x" * 60_000},
        {"language": '["english!"]'},
        {"language": "[" * 60_000},
        {"language": '{"a": 1}'},
        {"tags": json.dumps(["x"] * 1000)},
        {"tags": '["\\u0000"]'},
        {"tags": [1, 2]},
        {"license": {"a": 1}},
    ],
    ids=str,
)
def test_wrong_values_of_a_header_are_dropped(
    header: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Who publishes a file need not be who wrote it; the log says what was ignored."""
    with caplog.at_level(logging.WARNING):
        assert merge_details(header, Details(description="kept")) == Details(description="kept")
    [record] = caplog.records
    assert "is ignored" in record.getMessage()
    assert len(record.getMessage()) < 400


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (Details(license="no-such-licence"), "invalid licence"),
        (Details(languages=("english!",)), "invalid language"),
        (Details(languages=("en-" + "abcdefgh-" * 9,)), "invalid language"),
        (Details(labels=("",)), "invalid label"),
        (Details(labels=("x" * 97,)), "invalid label"),
        (Details(labels=("a\u202eb",)), r"U\+202E"),
        (Details(labels=tuple(map(str, range(MAX_LABELS + 1)))), "at most 64"),
        (Details(description="x" * (MAX_DESCRIPTION + 1)), "at most 2000"),
        (Details(description="one\n\ntwo"), "paragraph"),
        (Details(description="a\x1b[31mb"), r"U\+001B"),
        (Details(description="a\ud800b"), r"U\+D800"),
        (Details(card="# a\x00"), r"U\+0000"),
        (Details(card="ä" * 600_000), "more than 1048576 bytes"),
        (Details(card="---\nlicense: no-such-licence\n---\n"), "the card's license"),
        (Details(card="---\nlicense: []\nlanguage: {a: b}\n---\n"), "the card's language"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_that_are_given_are_refused(given: Details, why: str) -> None:
    """Each by name."""
    with pytest.raises(InvalidDetails, match=why):
        merge_details({}, given)


def test_a_wrong_field_of_a_card_can_be_overridden() -> None:
    """A card from elsewhere may have a licence that nobody knows."""
    card = "---\nlicense: no-such-licence\n---\n"
    assert merge_details({}, Details(license="mit", card=card)).license == "MIT"


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (("EN", "en"), ("en",)),
        (("zh-hans-cn",), ("zh-Hans-CN",)),
        (("multilingual", "code"), ("multilingual", "code")),
        (("no", "nob", "es-419", "de-1901"), ("no", "nob", "es-419", "de-1901")),
    ],
)
def test_languages_have_their_usual_case(
    given: tuple[str, ...], canonical: tuple[str, ...]
) -> None:
    """BCP 47 tags, and the two words of the Hub."""
    assert check_details(Details(languages=given)).languages == canonical


def test_a_description_is_one_line() -> None:
    """Line breaks of a paragraph are spaces; other alphabets and emoji stay."""
    details = check_details(Details(description=" Emits\n  JSON. 日本語 👩‍🚀 "))
    assert details.description == "Emits JSON. 日本語 👩‍🚀"


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: other\nlicense_name: Acme License", "LicenseRef-Acme-License"),
        ("license: other", "LicenseRef-other"),
        ("license: [mit, apache-2.0]", "MIT AND Apache-2.0"),
        ("license: [mit or isc, llama3]", "(MIT OR ISC) AND LicenseRef-llama3"),
        ("license: llama3.2", "LicenseRef-llama3.2"),
        ("license: ~", None),
        ("license:", None),
    ],
)
def test_the_hubs_ways_to_name_a_licence(front: str, license: str | None) -> None:
    """One id, several, or a name of one's own."""
    assert details_of(f"---\n{front}\n---\n").license == license


def test_checked_details_stay_as_they_are() -> None:
    """Canonical is a fixed point."""
    once = merge_details(HEADER, Details(card=CARD, description="It\nworks"))
    assert check_details(once) == once
    assert merge_details({}, dataclasses.replace(once)) == once
