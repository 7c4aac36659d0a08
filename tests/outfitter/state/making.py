"""Publications for tests: files that need not exist."""

import hashlib
from dataclasses import replace
from typing import Any

from outfitter.state.catalog import Catalog
from outfitter.state.records import Details, FileFacts, Publication, Version
from taskvectors.spec import Loadout, LoadoutItem, Reference

FACTS = FileFacts("0" * 64, 1000, "tiny/base", "f" * 64, 3, 50, 1000, "magnitude")


def digest_of(word: object) -> str:
    """The digest of a file that is called so."""
    return hashlib.sha256(str(word).encode()).hexdigest()


def publication(
    name: str, word: object, *tags: str, details: Details | None = None, **facts: Any
) -> Publication:
    """A version of `name` with the file that is called `word`."""
    its = replace(FACTS, digest=digest_of(word), **facts)
    return Publication(name, its, details or Details(), tags, "ann")


def publish(
    catalog: Catalog, name: str, word: object, *tags: str, details: Details | None = None, **f: Any
) -> Version:
    """Claim and publish."""
    catalog.claim(digest_of(word))
    return catalog.publish(publication(name, word, *tags, details=details, **f))


def ref(text: str) -> Reference:
    """A reference."""
    return Reference.parse(text)


def loadout_of(*words: object) -> Loadout:
    """The sum of files that are called so."""
    return Loadout.build([LoadoutItem(digest_of(word), 1.0) for word in words])
