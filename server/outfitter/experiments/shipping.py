"""The winner of an experiment becomes a model's next version, or a part of the base."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outfitter.accounts import By
from outfitter.control.experiments.experiment import Experiment, Pin
from outfitter.control.experiments.status import SHIP
from outfitter.control.experiments.steps import shipped
from outfitter.control.rights import Viewer
from outfitter.errors import ApiError
from outfitter.experiments.book import check_version
from outfitter.state.records import SavedLoadout, Terms
from taskvectors.spec import Loadout

if TYPE_CHECKING:
    from outfitter.gateway import Gateway


@dataclass(frozen=True)
class Shipment:
    """variant: the winner's key. save_as: the saved loadout whose next version it becomes.

    promote: whether it is written into the base. With neither, it is what `exp:…` serves from then
    on.
    """

    variant: str
    save_as: str | None = None
    promote: bool = False


async def ship(
    gateway: "Gateway",
    by: By,
    viewer: Viewer | None,
    experiment: Experiment,
    wanted: Shipment,
    figures: Mapping[str, Any] | None = None,
) -> Experiment:
    """Make the winner what everybody gets; figures: by which it won.

    viewer: whose rights bind. Raises ApiError: 400 where there is nothing to save, 403 without
    promotions, 409 where the experiment cannot be shipped or has changed since `experiment`.
    """
    book, told = gateway.book, dict(figures or {})
    current = await asyncio.to_thread(book.owned, viewer, experiment.name)
    check_version(current, experiment.version)  # before what no version undoes
    shipped(experiment, wanted.variant)
    if wanted.save_as is not None:
        saved = await _save(gateway, by, viewer, experiment, wanted)
        told["saved"] = saved.id
        gateway.prefetch(saved.loadout.digests)
    if wanted.promote:
        if not gateway.config.allow_promotions:
            message = "promotions change the model for everybody: start with --allow-promotions"
            raise ApiError(403, message, "promotions_not_allowed", "promote")
        loadout = _changing(experiment.pins[wanted.variant], "promote")
        await gateway.ready_relay().promotion("POST", loadout.canonical)
        told["promoted"] = f"sha256:{loadout.digest}"
        await gateway.note(by, "promotion.promote", told["promoted"])
    return await asyncio.to_thread(
        lambda: book.change(
            by,
            viewer,
            experiment.name,
            SHIP,
            lambda old: shipped(old, wanted.variant),
            expected=experiment.version,
            figures=told,
        )
    )


async def _save(
    gateway: "Gateway",
    by: By,
    viewer: Viewer | None,
    experiment: Experiment,
    wanted: Shipment,
) -> SavedLoadout:
    pin = experiment.pins[wanted.variant]
    loadout, description = _changing(pin, "as"), f"won the experiment {experiment.id}"
    request = _request(experiment, wanted.variant, pin)
    terms = Terms(
        description=description,
        base_fingerprint=pin.base_fingerprint,
        described={k: v for k, v in (pin.described or {}).items() if k != "saved"},
    )
    save = gateway.vectors.seen_by(viewer).save_loadout
    saved = await asyncio.to_thread(
        save, str(wanted.save_as), loadout, request, by.publisher, terms
    )
    await gateway.note(by, "loadout.save", saved.id)
    return saved


def _changing(pin: Pin, param: str) -> Loadout:
    """The loadout of a winner that is not the base itself; raises ApiError (400)."""
    loadout = pin.plan.loadout
    if loadout.is_base:
        message = "the winner is the base itself: there is nothing to save or promote"
        raise ApiError(400, message, "invalid_parameter", param)
    return loadout


def _request(experiment: Experiment, variant: str, pin: Pin) -> dict[str, object]:
    """What the saved loadout is said to have been asked for as."""
    asked = experiment.definition.variant(variant).task_vectors
    if asked is None:
        return {key: (pin.described or {})[key] for key in ("vectors", "method")}
    return dict(asked) if isinstance(asked, Mapping) else {"vectors": asked}
