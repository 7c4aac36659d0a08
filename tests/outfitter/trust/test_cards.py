"""Cards are read without trusting them, and written so that the Hub would read them."""

import contextlib
import dataclasses
import string
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from outfitter.errors import InvalidDetails
from outfitter.state.records import Details, FileFacts, Version
from outfitter.trust.cards import MAX_FRONT_MATTER, fields_of, render
from outfitter.trust.details import details_of

FACTS = FileFacts("ab" * 32, 2**20, "acme/base", "cd" * 32, 12, 4000, 80000, "magnitude")
DETAILS = Details("Apache-2.0", ("en", "no"), "Answers in JSON: always.", None, ("json", "a: b"))
VERSION = Version("acme/json", 3, FACTS, DETAILS, 1_700_000_000, "me", 0, ("latest",))


def test_fields_are_texts() -> None:
    """`no` is Norwegian, not false; a number is what was written."""
    card = "---\nlanguage:\n- no\n- yes\nversion: 1.10\nlicense: mit # mine\n---\nText"
    assert fields_of(card) == {"language": ["no", "yes"], "version": "1.10", "license": "mit"}


@pytest.mark.parametrize(
    "card",
    ["", "# Text only", "---", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n", "---\n---"],
)
def test_a_card_may_have_no_fields(card: str) -> None:
    """Then it says nothing."""
    assert fields_of(card) == {}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_endings_and_a_byte_order_mark_do_not_matter(newline: str) -> None:
    """Cards come from everywhere."""
    card = newline.join(["\ufeff---", "license: mit", "tags: [a]", "---", "Text"])
    assert fields_of(card) == {"license": "mit", "tags": ["a"]}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
    for a, b in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False)
)


@pytest.mark.parametrize(
    ("front", "why"),
    [
        (BOMB, "alias"),
        ("a: &a {b: *a}", "alias"),
        ("a: " + "[" * 30_000, "levels deep"),
        ("- " * 30_000, "levels deep|not YAML"),
        ("a: {" * 10_000, "levels deep|not YAML"),
        ("a: b: c", "not YAML"),
        ("'", "not YAML"),
        ("- just\n- a list", "fields"),
        ("only words", "fields"),
        ("? [a]\n: b", "not YAML"),
        ("a: \x07", "not YAML"),
        ("x: " + "y" * (MAX_FRONT_MATTER + 10), "no end"),
    ],
    ids=lambda text: text[:16],
)
def test_hostile_front_matter_is_refused(front: str, why: str) -> None:
    """It is bounded in size and depth, and cannot grow."""
    with pytest.raises(InvalidDetails, match=why) as caught:
        fields_of(f"---\n{front}\n---\n")
    assert len(str(caught.value)) < 400


def test_nothing_of_a_card_is_executed() -> None:
    """Tags of YAML mean nothing here."""
    card = "---\nlicense: !!python/object/apply:os.system ['exit 1']\n---\n"
    assert fields_of(card) == {"license": ["exit 1"]}


@given(st.text(max_size=300))
def test_any_text_is_fields_or_refused(text: str) -> None:
    """There is no third way."""
    with contextlib.suppress(InvalidDetails):
        assert isinstance(fields_of(f"---\n{text}\n---\n"), dict)


def test_a_written_card_says_what_was_known() -> None:
    """Reading it gives the same details."""
    card = render(VERSION)
    found = details_of(card)
    assert found.license == DETAILS.license
    assert found.languages == DETAILS.languages
    assert set(found.labels) == {*DETAILS.labels, "task-vector"}
    assert fields_of(card)["base_model"] == "acme/base"
    for text in ("acme/json, version 3", f"sha256:{'ab' * 32}", "Answers in JSON: always."):
        assert text in card


def test_the_hubs_own_library_reads_a_written_card() -> None:
    """`no` stays a language there, too."""
    data = ModelCard(render(VERSION)).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "no"]
    assert data["base_model"] == "acme/base"


@pytest.mark.parametrize(
    "license", ["LicenseRef-llama3", "LicenseRef-mine", "MIT OR ISC", "LicenseRef-a AND MIT", None]
)
def test_a_licence_survives_its_card(license: str | None) -> None:
    """Also one that the Hub has no id for: exactly, or as a reference with its name."""
    found = details_of(render(_with(license=license))).license
    assert found == license


def test_a_cards_own_text_stays() -> None:
    """Byte by byte."""
    card = "---\nlicense: mit\n---\nMine\r\n"
    assert render(_with(card=card)) == card


def _with(**details: Any) -> Version:
    return dataclasses.replace(VERSION, details=dataclasses.replace(DETAILS, **details))
