"""What the variants of an experiment are now: saved loadouts at their version, mixes by digest."""

from typing import TYPE_CHECKING

from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Pin
from outfitter.control.experiments.parts import Variant
from outfitter.control.principal import Principal, Scope
from outfitter.control.resolve import Plan
from outfitter.control.rights import check_change, check_scope, viewer_of
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.vectors import plain_name
from taskvectors.errors import TaskVectorError
from taskvectors.spec import parse_task_vectors

if TYPE_CHECKING:
    from outfitter.gateway import Gateway


async def pinned(
    gateway: "Gateway", principal: Principal, definition: Definition
) -> dict[str, Pin]:
    """Every variant, resolved by the rights of whoever asks.

    Raises ApiError, whose param is the variant's: 404 for what is not there, 503 while the base is
    not known yet.
    """
    fingerprint = gateway.ready_base().fingerprint
    found = {}
    for position, variant in enumerate(definition.variants):
        param = f"variants[{position}].{'model' if variant.model else 'task_vectors'}"
        try:
            model, plan = await _plan(gateway, principal, variant)
        except ApiError as error:
            error.param = param
            raise
        except TaskVectorError as error:
            raise from_task_vector_error(error, param) from error
        pin = Pin(model, plan.loadout.canonical, plan.task_vectors, fingerprint)
        found[variant.key] = pin
    return found


def check_automatic(principal: Principal, definition: Definition) -> None:
    """Raise unless whoever defines this may do what it does by itself: NotYours, ApiError (403)."""
    automatic = definition.automatic
    if automatic.ship_as is not None:
        check_change(viewer_of(principal), plain_name(automatic.ship_as))
    if automatic.ship == "promote":
        check_scope(principal, (Scope.OPERATE,))


async def _plan(
    gateway: "Gateway", principal: Principal, variant: Variant
) -> tuple[str | None, Plan]:
    """What the variant is called, and how it is served."""
    if variant.model is None:
        requested = parse_task_vectors(variant.task_vectors)
        return None, await gateway.plan(principal, requested)
    asked = await gateway.asked(principal, variant.model)
    plan = await gateway.plan(principal, None, asked.saved)
    return asked.saved_model or gateway.config.name, plan
