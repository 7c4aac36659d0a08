"""How new units came to variants, by the version of the experiment that dealt them."""

from sqlalchemy import and_, func, select, text
from sqlalchemy.orm import Session

from outfitter.state.event_rows import RequestRow, UnitRow


def units_by_version(session: Session, experiment: str) -> dict[int, dict[str, int]]:
    """Units that were first exposed under each version, by variant."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL enable_nestloop = off"))  # as in `event_sums`
    request, unit = RequestRow, UnitRow
    is_first = and_(
        request.experiment == unit.experiment,
        request.unit == unit.unit,
        request.variant == unit.variant,
        request.at == unit.at,
    )
    first = (
        select(unit.unit, unit.variant, func.min(request.version).label("version"))
        .join(request, is_first)
        .where(unit.experiment == experiment, request.is_counted, ~request.is_shadow)
        .group_by(unit.unit, unit.variant)
        .subquery("first")
    )
    counted = select(first.c.version, first.c.variant, func.count())
    found: dict[int, dict[str, int]] = {}
    for version, variant, num in session.execute(
        counted.group_by(first.c.version, first.c.variant)
    ):
        found.setdefault(int(version), {})[variant] = int(num)
    return found
