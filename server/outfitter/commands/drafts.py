"""What is said of a task vector when it is published, by options of `push` and `pull`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from outfitter.commands.console import byte_progress
from outfitter.commands.places import Place
from outfitter.commands.vectors import print_published
from outfitter.config import InvalidConfig
from outfitter.trust.cards import MAX_CARD

TagsOption = Annotated[
    list[str] | None, typer.Option("--tag", help="Points at this version from now on; repeatable.")
]
LicenseOption = Annotated[str | None, typer.Option(help="An SPDX expression.")]
LanguagesOption = Annotated[
    list[str] | None, typer.Option("--language", help="Such as en; repeatable.")
]
LabelsOption = Annotated[
    list[str] | None, typer.Option("--label", help="To be found by; repeatable.")
]
DescriptionOption = Annotated[str | None, typer.Option(help="A sentence.")]
CardOption = Annotated[
    Path | None, typer.Option(help="A README.md; the Hub's fields in it are read.")
]


def draft_fields(
    tags: list[str] | None,
    license: str | None,
    languages: list[str] | None,
    labels: list[str] | None,
    description: str | None,
    card: Path | None,
) -> dict[str, Any]:
    """The fields of a draft that are given; raises InvalidConfig for a card that is not text."""
    fields = {"tags": tags, "license": license, "languages": languages, "labels": labels}
    fields |= {"description": description, "card": None if card is None else _read(card)}
    return {name: value for name, value in fields.items() if value}


def publish(place: Place, file: Path, draft: Mapping[str, object]) -> None:
    """Push with a progress bar, and say what was published."""
    with byte_progress() as bar:
        task = bar.add_task("pushing", total=file.stat().st_size)
        answer = place.push(file, draft, lambda step: bar.advance(task, step))
    print_published(answer)


def _read(card: Path) -> str:
    try:
        with card.open("rb") as file:
            text = file.read(MAX_CARD + 1)
        if len(text) <= MAX_CARD:
            return text.decode()
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read --card {card}: {error}") from error
    raise InvalidConfig(f"--card {card} has more than {MAX_CARD} bytes")
