"""The models that requests may name: the base, saved loadouts, and experiments."""

import asyncio

from fastapi import APIRouter

from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.status import Status
from outfitter.control.saved import OWNER, describe_model
from outfitter.deps import GatewayDep, PrincipalDep, VectorsDep
from outfitter.experiments.shown import describe_model as describe_experiment
from outfitter.gateway import Gateway
from outfitter.state.records import SavedLoadout
from outfitter.vectors import Vectors

router = APIRouter(prefix="/v1/models")

MAX_MODELS = 10_000
"""Saved loadouts in a listing, which OpenAI's API does not cut into pages."""
_PAGE = 1000


@router.get("")
async def list_models(gateway: GatewayDep, vectors: VectorsDep) -> dict[str, object]:
    """The models that requests may name. `has_more`: there are more than are listed."""
    saved, has_more = await asyncio.to_thread(_saved, gateway, vectors)
    base = gateway.config.name
    experiments = await asyncio.to_thread(_experiments, gateway, vectors)
    data = [_base(gateway), *(describe_model(one, one.name, base) for one in saved)]
    data += [describe_experiment(one, base) for one in experiments]
    return {"object": "list", "data": data, "has_more": has_more}


@router.get("/{model:path}")
async def get_model(model: str, gateway: GatewayDep, principal: PrincipalDep) -> dict[str, object]:
    """One model: the base, a saved loadout or a version of one, or an experiment."""
    asked = await gateway.asked(principal, model)
    if asked.experiment is not None:
        return describe_experiment(asked.experiment, gateway.config.name)
    if asked.saved is None:
        return _base(gateway)
    return describe_model(asked.saved, asked.name, gateway.config.name)


def _base(gateway: Gateway) -> dict[str, object]:
    fields = {"object": "model", "created": gateway.created, "owned_by": OWNER}
    return {"id": gateway.config.name, **fields, "root": gateway.config.name, "parent": None}


def _experiments(gateway: Gateway, vectors: Vectors) -> list[Experiment]:
    """The visible ones that serve somebody, by name."""
    found = gateway.book.all(vectors.viewer)
    return [one for one in found if one.status is not Status.DRAFT]


def _saved(gateway: Gateway, vectors: Vectors) -> tuple[list[SavedLoadout], bool]:
    """The visible ones of this base, by name, and whether more may be there."""
    found: list[SavedLoadout] = []
    after: str | None = None
    while True:
        page, after = vectors.loadouts(_PAGE, after)
        found += [one for one in page if _is_ours(gateway, one)]
        if after is None or len(found) >= MAX_MODELS:
            return found[:MAX_MODELS], after is not None or len(found) > MAX_MODELS


def _is_ours(gateway: Gateway, saved: SavedLoadout) -> bool:
    """Whether it belongs to this base, and is not hidden behind a name of the base itself."""
    base, made_for = gateway.base, saved.terms.base_fingerprint
    is_same = base is None or made_for in (None, base.fingerprint)
    return is_same and saved.name not in gateway.config.served_names
