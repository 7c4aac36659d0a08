"""Licences are SPDX expressions; a hostile one neither hangs nor recurses."""

import pytest

from outfitter.errors import InvalidDetails
from outfitter.trust.licenses import HUB_LICENSES, MAX_LICENSE, normalize, reference


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("  MIT ", "MIT"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("MIT AND (bsd-3-clause or isc)", "MIT AND (BSD-3-Clause OR ISC)"),
        ("gpl-2.0-only with classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("LicenseRef-Acme-1.0", "LicenseRef-Acme-1.0"),
        ("licenseref-Acme OR mit", "LicenseRef-Acme OR MIT"),
        ("llama3.1", "LicenseRef-llama3.1"),
        ("Gemma", "LicenseRef-gemma"),
        ("openrail++", "LicenseRef-openrail-plus-plus"),
        ("other", "LicenseRef-other"),
        ("llama3 and (mit or gemma)", "LicenseRef-llama3 AND (MIT OR LicenseRef-gemma)"),
    ],
)
def test_a_licence_has_one_canonical_form(given: str, canonical: str) -> None:
    """People write ids in any case, and the Hub's."""
    assert normalize(given) == canonical
    assert normalize(canonical) == canonical


@pytest.mark.parametrize("name", sorted(HUB_LICENSES))
def test_each_id_of_the_hub_is_a_licence(name: str) -> None:
    """None of them is taken for something else by SPDX."""
    assert normalize(name) == HUB_LICENSES[name]
    assert normalize(HUB_LICENSES[name]) == HUB_LICENSES[name]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "empty"),
        ("MIT AND", "two or more"),
        ("(MIT", "invalid expression"),
        ("MIT Apache-2.0", "no licence|symbol"),
        ("MIT WITH Apache-2.0", "exception"),
        ("Classpath-exception-2.0", "exception"),
        ("LicenseRef-", "no licence"),
        ("LicenseRef-a+", "no licence"),
        ("mit/apache-2.0", "characters"),
        ("MIT\x00", "characters"),
        ("<script>", "characters"),
    ],
)
def test_what_is_no_licence_is_refused(given: str, why: str) -> None:
    """The message says what is wrong, and what would be right."""
    with pytest.raises(InvalidDetails, match=rf"(?is)invalid licence.*({why}).*use an SPDX"):
        normalize(given)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("apache-2", "Apache-2.0"), ("apache 2.0", "Apache-2.0"), ("llama-3", "llama3")],
)
def test_a_near_miss_is_told_what_was_meant(given: str, meant: str) -> None:
    """Of SPDX and of the Hub alike."""
    with pytest.raises(InvalidDetails, match=f"did you mean.*{meant}"):
        normalize(given)


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 10_000 + "MIT" + ")" * 10_000,
        "(" * 40 + "MIT" + ")" * 40,
        " AND ".join(["MIT"] * 100_000),
        "a" * (MAX_LICENSE + 1),
        "(" * MAX_LICENSE,
        "MIT OR " * 60 + "no-such-licence",
        "))))((((" * 8,
    ],
    ids=lambda text: text[:12],
)
def test_a_hostile_expression_is_refused(hostile: str) -> None:
    """It is bounded before it is parsed."""
    with pytest.raises(InvalidDetails) as caught:
        normalize(hostile)
    assert len(str(caught.value)) < 1500


def test_a_name_becomes_a_reference() -> None:
    """Whatever it is made of, the result is a licence."""
    assert reference("Acme Model License v2") == "LicenseRef-Acme-Model-License-v2"
    assert reference("llama3") == "LicenseRef-llama3"
    for name in ("///", "ä" * 600, "x\x00y", "-"):
        assert normalize(reference(name)) == reference(name)
