"""What shadow variants showed, beside what the very requests that were mirrored to them showed."""

from collections.abc import Sequence

from sqlalchemy import Double, and_, case, cast, func, literal, null, select
from sqlalchemy.orm import Session, aliased

from outfitter.control.experiments.measures import Metric
from outfitter.control.experiments.mirrored import Mirrored, Pairs
from outfitter.state.event_rows import RequestRow
from outfitter.state.event_sums import Number, of_request


def mirrored_of(
    session: Session, experiment: str, metrics: Sequence[Metric]
) -> dict[str, Mirrored]:
    """By the variant's key. metrics: of single requests, none of feedback and no ratios.

    A copy has the id of its original, a colon, and its variant's key; one whose id was too long for
    that is counted and in no pair.
    """
    copy, original = aliased(RequestRow), aliased(RequestRow)
    length = func.length(copy.request_id) - func.length(copy.variant) - 1
    own_id = case((length > 0, length), else_=0)
    own = and_(
        original.experiment == copy.experiment,
        original.request_id == func.substr(copy.request_id, 1, own_id),
        original.tenant == copy.tenant,
        ~original.is_shadow,
    )
    columns: list[Number] = []
    for metric in metrics:
        ours, theirs = (cast(of_request(metric, row), Double) for row in (copy, original))
        is_pair = and_(ours.is_not(None), theirs.is_not(None))
        values = (literal(1.0), ours, theirs)
        columns += [func.sum(case((is_pair, value), else_=null())) for value in values]
    chosen = select(copy.variant, func.count(), *columns).outerjoin(original, own)
    chosen = chosen.where(copy.experiment == experiment, copy.is_shadow)
    found = {}
    for variant, number, *sums in session.execute(chosen.group_by(copy.variant)):
        parts = [float(one or 0.0) for one in sums]
        pairs = {
            metric.name: Pairs(int(parts[3 * place]), *parts[3 * place + 1 : 3 * place + 3])
            for place, metric in enumerate(metrics)
        }
        found[variant] = Mirrored(int(number), pairs)
    return found
