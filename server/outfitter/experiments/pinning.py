"""What the variants of an experiment are now: saved loadouts at their version, mixes by digest."""

from typing import TYPE_CHECKING

from outfitter.control.experiments.definition import Definition
from outfitter.control.experiments.experiment import Experiment, Pin
from outfitter.control.experiments.parts import PROMOTE
from outfitter.control.principal import Principal, Scope
from outfitter.control.rights import check_change, check_scope, viewer_of
from outfitter.errors import from_task_vector_error
from outfitter.vectors import plain_name
from taskvectors.errors import TaskVectorError

if TYPE_CHECKING:
    from outfitter.gateway import Gateway


async def pinned(gateway: "Gateway", definition: Definition) -> dict[str, Pin]:
    """Every variant, resolved by the rights of whoever owns the experiment's name.

    Raises ApiError, whose param is the variant's: 404 for what is not there, 503 while the base is
    not known yet.
    """
    draft, found = Experiment(definition, seed=definition.name), {}
    for position, variant in enumerate(definition.variants):
        try:
            found[variant.key] = await gateway.pin(draft, variant.key)
        except TaskVectorError as error:
            field = "model" if variant.model else "task_vectors"
            raise from_task_vector_error(error, f"variants[{position}].{field}") from error
    return found


def check_automatic(principal: Principal, definition: Definition) -> None:
    """Raise unless whoever defines this may do what it does by itself: NotYours, ApiError (403)."""
    automatic = definition.automatic
    if automatic.ship_as is not None:
        check_change(viewer_of(principal), plain_name(automatic.ship_as))
    if automatic.ship == PROMOTE:
        check_scope(principal, (Scope.OPERATE,))
