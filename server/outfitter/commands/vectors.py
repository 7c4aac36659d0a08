"""`outfitter list`, `search`, `show`, `tag`, `untag`, `delete`: what a gateway or a store has."""

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from outfitter.commands.console import err, human_bytes, out, printable
from outfitter.commands.places import Place, StoreOption, UrlOption, open_place
from outfitter.config import InvalidConfig

PAGE = 1000
"""Most rows that a gateway gives at once."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReferenceArgument = Annotated[
    str, typer.Argument(help="name, namespace/name, name@3, name@stable or sha256:….")
]
NamespaceOption = Annotated[str | None, typer.Option(help="Only of this namespace.")]
BaseOption = Annotated[
    str | None, typer.Option(help="Only for this base: its name or fingerprint.")
]
LicenseOption = Annotated[str | None, typer.Option(help="Only under this SPDX licence.")]
TagOption = Annotated[str | None, typer.Option(help="Only what this tag points at.")]
LabelOption = Annotated[str | None, typer.Option(help="Only with this label.")]
LanguageOption = Annotated[str | None, typer.Option(help="Only for this language, such as en.")]
OrderOption = Annotated[
    str, typer.Option(help="name, created, downloads or size; -created: the newest first.")
]
AllVersionsOption = Annotated[
    bool, typer.Option("--all-versions", help="Every version, not only the latest of each name.")
]
LimitOption = Annotated[int, typer.Option(help="Most rows.", min=1)]
AfterOption = Annotated[
    str | None, typer.Option(help="Go on where an earlier list ended, as it says at its end.")
]


def list_vectors(
    namespace: NamespaceOption = None,
    base: BaseOption = None,
    license: LicenseOption = None,
    tag: TagOption = None,
    label: LabelOption = None,
    language: LanguageOption = None,
    order: OrderOption = "name",
    all_versions: AllVersionsOption = False,
    limit: LimitOption = 100,
    after: AfterOption = None,
    url: UrlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the task vectors of a gateway or a store."""
    given = {"namespace": namespace, "base": base, "license": license, "tag": tag}
    given |= {"label": label, "language": language, "after": after}
    query = _query(given, order, all_versions)
    with open_place(url, store) as place:
        _print_found(*_rows(place, query, limit), as_json=as_json, with_description=False)


def search(
    text: Annotated[str, typer.Argument(help="Words of the name, description or labels.")],
    namespace: NamespaceOption = None,
    base: BaseOption = None,
    license: LicenseOption = None,
    tag: TagOption = None,
    label: LabelOption = None,
    language: LanguageOption = None,
    order: OrderOption = "name",
    all_versions: AllVersionsOption = False,
    limit: LimitOption = 100,
    after: AfterOption = None,
    url: UrlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find task vectors by words, all of which must be there."""
    given = {"q": text, "namespace": namespace, "base": base, "license": license, "tag": tag}
    given |= {"label": label, "language": language, "after": after}
    query = _query(given, order, all_versions)
    with open_place(url, store) as place:
        _print_found(*_rows(place, query, limit), as_json=as_json, with_description=True)


def show(
    reference: ReferenceArgument,
    card: Annotated[bool, typer.Option("--card", help="Print its card instead.")] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that is known of a task vector."""
    if card and as_json:
        raise InvalidConfig("--card and --json exclude each other; choose one")
    with open_place(url, store) as place:
        if card:
            _print_card(place, reference)
            return
        entry = place.show(reference)
    if as_json:
        typer.echo(json.dumps(entry, indent=2))
        return
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in _facts(entry).items():
        table.add_row(key, _cell(value))
    out.print(table)


def tag(
    reference: ReferenceArgument,
    tag: Annotated[str, typer.Argument(help="Such as stable.")],
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Let a tag point at a version; it moves if it points elsewhere."""
    with open_place(url, store) as place:
        _say(f"{tag} is now {_id(place.tag(reference, tag))}")


def untag(
    name: Annotated[str, typer.Argument(help="name or namespace/name.")],
    tag: Annotated[str, typer.Argument(help="Such as stable.")],
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Take a tag away; what it pointed at stays."""
    with open_place(url, store) as place:
        place.untag(name, tag)
    _say(f"{name}@{tag} is gone")


def delete(reference: ReferenceArgument, url: UrlOption = None, store: StoreOption = None) -> None:
    """Remove a name, or one version of it, from a gateway or a store.

    What a saved loadout uses stays for that loadout. Files are dropped later.
    """
    with open_place(url, store) as place:
        answer = place.delete(reference)
    _say(f"deleted {reference}")
    if kept := answer.get("tombstones"):
        _say(f"saved loadouts still use {_joined(kept)}")


def print_published(answer: Mapping[str, Any]) -> None:
    """One line that says what a push made."""
    line = f"{_id(answer)} {_text(answer.get('digest'))}"
    out.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _query(given: Mapping[str, str | None], order: str, every: bool) -> dict[str, str | int]:
    query: dict[str, str | int] = {k: v for k, v in given.items() if v is not None}
    return {**query, "order": order, "versions": "all" if every else "latest"}


def _rows(
    place: Place, query: Mapping[str, str | int], limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit` rows, by as many pages as it takes, and the cursor after them."""
    rows: list[dict[str, Any]] = []
    query = dict(query)
    while True:
        page = place.find({**query, "limit": min(PAGE, limit - len(rows))})
        data, after = page.get("data"), page.get("after")
        found = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        rows += found[: limit - len(rows)]
        if not found or not isinstance(after, str) or len(rows) >= limit:
            return rows, after if isinstance(after, str) else None
        query["after"] = after


def _print_found(
    rows: list[dict[str, Any]], after: str | None, *, as_json: bool, with_description: bool
) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        out.print(_table(rows, with_description))
    if after is not None:
        _say(f"there is more: --after {after}")


def _table(rows: list[dict[str, Any]], with_description: bool) -> Table:
    names = ["name", "tags", "licence", "size", "density", "downloads", "base", "digest"]
    table = Table(box=None)
    for name in names:
        table.add_column(name, overflow="fold" if name == "name" else "ellipsis")
    if with_description:
        table.add_column("description", overflow="fold")
    for row in rows:
        cells = [
            _id(row),
            _joined(row.get("tags")),
            _text(row.get("license")),
            _size(row.get("bytes")),
            _share(row.get("density")),
            _text(row.get("downloads")),
            _text(_base(row).get("name")),
            _text(row.get("digest")).removeprefix("sha256:")[:12],
        ]
        description = [_text(row.get("description"))] if with_description else []
        table.add_row(*map(_cell, cells + description))
    return table


def _facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Every field of an entry, in words."""
    created = entry.get("created_at")
    facts = {
        "name": _text(entry.get("name")),
        "version": _text(entry.get("version")),
        "tags": _joined(entry.get("tags")),
        "digest": _text(entry.get("digest")),
        "size": _size(entry.get("bytes")),
        "base": _text(_base(entry).get("name")),
        "fingerprint": _text(_base(entry).get("fingerprint")),
        "parameters": _text(entry.get("parameters")),
        "values": f"{_text(entry.get('nnz'))} ({_share(entry.get('density'))})",
        "method": _text(entry.get("method")),
        "licence": _text(entry.get("license")),
        "languages": _joined(entry.get("languages")),
        "labels": _joined(entry.get("labels")),
        "description": _text(entry.get("description")),
        "card": "yes: --card" if entry.get("has_card") is True else "-",
        "signed": "yes" if entry.get("is_signed") is True else "-",
        "published": f"{_time(created)} by {_text(entry.get('publisher'))}",
        "downloads": _text(entry.get("downloads")),
    }
    return {**facts, "deleted": "yes"} if entry.get("deleted") is True else facts


def _print_card(place: Place, reference: str) -> None:
    card = place.card(reference)
    if card is None:
        raise InvalidConfig(f"{reference} has no card; give one with push --card")
    typer.echo("\n".join(map(printable, card.splitlines())))


def _say(text: str) -> None:
    err.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def _cell(text: str) -> Text:
    return Text(printable(text))


def _id(entry: Mapping[str, Any]) -> str:
    return f"{_text(entry.get('name'))}@{_text(entry.get('version'))}"


def _base(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    base = entry.get("base")
    return base if isinstance(base, Mapping) else {}


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) and value != "" else "-"


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) and value else "-"


def _size(value: object) -> str:
    return human_bytes(value) if isinstance(value, int | float) else "-"


def _share(value: object) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else "-"


def _time(value: object) -> str:
    """In UTC, to the minute."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return "-"
