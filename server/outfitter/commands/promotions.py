"""`outfitter promote`, `outfitter demote`: the resident base of a gateway, for its operator."""

import json
from typing import Annotated, Any

import typer

from outfitter.client import GatewayClient
from outfitter.commands.console import err, human_bytes, printable
from outfitter.commands.places import DEFAULT_URL, UrlOption
from outfitter.config import InvalidConfig

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PATH = "/v1/promotions"


def promote(
    vectors: Annotated[
        list[str] | None,
        typer.Argument(metavar="VECTOR=WEIGHT...", help="Task vectors; without a weight: 1."),
    ] = None,
    loadout: Annotated[str | None, typer.Option(help="A saved loadout instead.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a loadout into a gateway's resident weights; without any, show what is promoted."""
    if vectors and loadout:
        raise InvalidConfig("--loadout and VECTOR=WEIGHT exclude each other; choose one")
    with GatewayClient(url or DEFAULT_URL) as gateway:
        if loadout:
            state = gateway.json("POST", PATH, json={"loadout": loadout})
        elif vectors:
            asked = dict(_weighted(text) for text in vectors)
            if len(asked) < len(vectors):
                raise InvalidConfig("a task vector is named twice; give it one weight")
            state = gateway.json("POST", PATH, json={"task_vectors": asked})
        else:
            state = gateway.json("GET", PATH)
    _print(state, as_json=as_json)


def demote(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Put the base's own weights back into a gateway's engine."""
    with GatewayClient(url or DEFAULT_URL) as gateway:
        state = gateway.json("DELETE", PATH)
    _print(state, as_json=as_json)


def _weighted(text: str) -> tuple[str, float]:
    """`name=0.7`; raises InvalidConfig."""
    name, separator, weight = text.rpartition("=")
    if not separator:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise InvalidConfig(f"unsupported weight in {text!r}; use name=0.7") from None


def _print(state: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(state, indent=2))
    elif state.get("promoted"):
        saved = human_bytes(int(state.get("saved_bytes", 0)))
        tensors = f"{state.get('num_tensors')} tensors, {saved} of originals kept"
        err.print(f"promoted: {printable(str(state.get('loadout')))} ({tensors})")
    else:
        err.print("nothing is promoted: the base is as it was loaded")
