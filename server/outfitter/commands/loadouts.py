"""Loadouts on the command line: a loadout file, or vectors with weights, a method and settings."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outfitter.commands.console import err
from outfitter.commands.options import LocalStore
from outfitter.config import InvalidConfig, cache_home
from outfitter.control.selection import Modules
from taskvectors.checkpoint import Checkpoint, cached_fingerprint
from taskvectors.errors import BaseMismatch, InvalidLoadout
from taskvectors.format import read_header
from taskvectors.merge.spec_file import SUFFIX, ResolvedSpec, read_spec, resolve_spec
from taskvectors.method import Value
from taskvectors.methods import METHODS
from taskvectors.vector import BaseInfo

if TYPE_CHECKING:
    from outfitter.vectors import Vectors

VectorsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VECTOR=WEIGHT...",
        help="Files (*.safetensors) or, with --store, names; without a weight: 1.",
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(help="A loadout file: what a request's task_vectors says, with paths as names."),
]
MethodOption = Annotated[
    str | None, typer.Option(help="Merge method; see `outfitter merge --list-methods`.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the method; repeatable."),
]
StoreOption = Annotated[Path | None, typer.Option(help="A store's folder, to look up names in.")]
BaseOption = Annotated[Path | None, typer.Option(help="The base's checkpoint folder.")]


def read_loadout(
    vectors: list[str] | None,
    spec: Path | None,
    method: str | None,
    settings: list[str] | None,
    store: Path | None,
) -> ResolvedSpec:
    """The loadout that the command line asks for; raises InvalidConfig, TaskVectorError."""
    if spec is not None:
        if vectors or method or settings:
            raise InvalidConfig("--spec says it all; leave out vectors, --method and --set")
        with opened(store) as names:
            return read_spec(spec, names)
    if not vectors:
        raise InvalidConfig("name the vectors to merge, such as a.safetensors=0.7, or use --spec")
    value = request_of(vectors, method, settings)
    with opened(store) as names:
        return resolve_spec(value, Path(), names)


def request_of(
    vectors: list[str], method: str | None, settings: list[str] | None
) -> dict[str, Any]:
    """What the command line says, as the `task_vectors` of a request; raises InvalidConfig."""
    return {
        **_settings(settings or []),
        "vectors": [_entry(text) for text in vectors],
        "method": method or "linear",
    }


@contextmanager
def opened(store: Path | None) -> "Iterator[Vectors | None]":
    """The store in a folder, which must be there, to look up names in; None without a folder.

    Raises InvalidConfig, CatalogUnavailable.
    """
    if store is None:
        yield None
        return
    if not store.is_dir():
        raise InvalidConfig(f"unsupported --store {str(store)!r}; there is no such folder")
    with LocalStore.of(store).open() as vectors:
        yield vectors


def check_base(info: BaseInfo, base: Checkpoint) -> str:
    """The base's fingerprint; raises BaseMismatch unless the vectors belong to it."""
    actual = cached_fingerprint(base.directory, cache_home() / "fingerprints")
    if info.fingerprint is None:
        err.print("the vectors do not say which base they belong to: names and shapes must do")
    elif info.fingerprint != actual:
        raise BaseMismatch(
            f"the task vectors belong to {info}; {base.directory} has fingerprint {actual}"
        )
    return actual


def check_selections(loadout: ResolvedSpec, base: Checkpoint | None) -> None:
    """Raise InvalidLoadout for layers or modules that match nothing: a typo would do nothing.

    Without the base, the parameters that the vectors change must do.
    """
    if base is not None:
        names: Iterable[str] = base.names
    else:
        names = {name for path in loadout.paths.values() for name in read_header(path).parameters}
    modules = Modules(names)
    for item in loadout.loadout.items:
        if problem := modules.problem(item.selection):
            what = "of the base" if base is not None else "that the vectors change"
            raise InvalidLoadout(problem.replace("of the base", what))


def list_methods(wanted: bool) -> None:
    """Print every method with its parameters, and end."""
    if wanted:
        typer.echo(methods_text())
        raise typer.Exit


def methods_text() -> str:
    """Method, summary, source and parameters of each, as plain text."""
    lines: list[str] = []
    for method in METHODS.values():
        notes = [] if method.at_request else ["publish time only"]
        notes += [] if method.is_weighted else ["no weights"]
        suffix = f" [{', '.join(notes)}]" if notes else ""
        lines += [f"{method.name}{suffix}: {method.summary}"]
        lines += [f"    {method.paper}; dialect: {method.dialect}"]
        for parameter in method.parameters:
            default = _shown(parameter.default)
            lines += [f"    --set {parameter.name}={default}: {parameter.description}"]
    return "\n".join(lines)


def _shown(default: Value) -> str:
    if default is None:
        return "VECTOR"
    return default if isinstance(default, str) else json.dumps(default)


def _entry(text: str) -> dict[str, object]:
    """`a.safetensors=0.7`, or without a weight."""
    name, equals, weight = text.rpartition("=")
    if not equals or text.endswith(SUFFIX):
        return {"name": text}
    try:
        return {"name": name, "weight": float(weight)}
    except ValueError as error:
        raise InvalidConfig(
            f"the weight of {name!r} must be a number, not {weight[:40]!r}"
        ) from error


def _settings(texts: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for text in texts:
        name, value = _setting(text)
        if name in values:
            raise InvalidConfig(f"--set gives {name!r} twice; once is enough")
        values[name] = value
    return values


def _setting(text: str) -> tuple[str, object]:
    """`density=0.2`: JSON if it is some, else a number such as .2, else text."""
    name, equals, value = text.partition("=")
    if not equals or name in ("", "method", "vectors"):
        raise InvalidConfig(f"unsupported --set {text[:80]!r}; use NAME=VALUE such as density=0.2")
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError):
        return name, _number_or_text(value)
    return name, value if isinstance(parsed, str | list | dict) else parsed


def _number_or_text(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
