"""The sums that statistics are made of: by the database, first over requests, then over units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Subquery,
    and_,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    text,
)
from sqlalchemy.orm import Session

from outfitter.control.experiments.measures import (
    FEEDBACK,
    GRADER,
    PROPORTION,
    RATIO,
    Metric,
)
from outfitter.state.event_rows import FeedbackRow, RequestRow, UnitRow
from outfitter.statistics.moments import Moments

R, U, F = RequestRow, UnitRow, FeedbackRow
Number = ColumnElement[Any]
REQUESTS = "requests"
"""A metric that is a number per unit, and not a mean of its observations."""
SUMS = tuple(item.name for item in fields(Moments))


@dataclass(frozen=True)
class Seen:
    """What a unit showed of one metric: the sum of its observations, and how many they are."""

    total: Number
    count: Number


def moments_of(
    session: Session, experiment: str, metrics: Sequence[Metric], known: Mapping[str, Metric]
) -> dict[str, dict[str, Moments]]:
    """By metric's name and variant."""
    if session.get_bind().dialect.name == "postgresql":
        # Of tables that have just grown it knows no sizes, and would join row by row for hours.
        session.execute(text("SET LOCAL enable_nestloop = off"))
    found: dict[str, dict[str, Moments]] = {metric.name: {} for metric in metrics}
    num = len(SUMS)
    for variant, *numbers in session.execute(_over_units(experiment, metrics, known)):
        for position, metric in enumerate(metrics):
            n, *sums = numbers[num * position : num * (position + 1)]
            found[metric.name][variant] = Moments(int(n), *(float(one or 0.0) for one in sums))
    return found


def _over_units(experiment: str, metrics: Sequence[Metric], known: Mapping[str, Metric]) -> Any:
    """One row for each variant: the sums of every metric, one after another."""
    units = _by_unit(experiment, metrics, known)
    columns: list[Number] = []
    for position in range(len(metrics)):
        x, y, z = (units.c[f"{name}{position}"] for name in "xyz")
        products = (x, x * x, y, y * y, x * y, z, z * z, x * z, y * z)
        columns += [func.count(x), *(func.sum(product) for product in products)]
    return select(units.c.variant, *columns).group_by(units.c.variant)


def _by_unit(experiment: str, metrics: Sequence[Metric], known: Mapping[str, Metric]) -> Subquery:
    """One row for each unit: of every metric x, y and z, all NULL for a unit that is left out."""
    named = [known[name] for one in metrics for name in (one.denominator,) if name is not None]
    covariates = [known[one.covariate] for one in metrics if one.covariate is not None]
    during, joins = _parts(experiment, [*metrics, *named], is_before=False)
    before, more = _parts(experiment, covariates, is_before=True)
    columns: list[Number] = []
    for position, metric in enumerate(metrics):
        is_in, x, y = _x_and_y(metric, during)
        z = literal(0.0) if metric.covariate is None else _mean(before[metric.covariate])
        for name, value in (("x", x), ("y", y), ("z", func.coalesce(z, 0.0))):
            columns.append(case((is_in, value), else_=null()).label(f"{name}{position}"))
    chosen = select(U.variant, *columns).where(U.experiment == experiment)
    source: Any = U.__table__
    for part in (*joins, *more):
        same = part.c.unit == U.unit
        if "variant" in part.c:
            same = and_(same, part.c.variant == U.variant)
        source = (
            source.__table__.outerjoin(part, same) if source is U else source.outerjoin(part, same)
        )
    return chosen.select_from(source).subquery("by_unit")


def _x_and_y(metric: Metric, seen: Mapping[str, Seen]) -> tuple[Number, Number, Number]:
    """Whether a unit is in, its numerator and its denominator."""
    own = seen[metric.name]
    if metric.kind == RATIO:
        assert metric.denominator is not None
        below = seen[metric.denominator]
        is_in = or_(own.count > 0, below.count > 0)
        return is_in, func.coalesce(own.total, 0.0), func.coalesce(below.total, 0.0)
    if metric.kind == PROPORTION:
        mean = own.total / own.count
        clipped = case((mean < 0, 0.0), (mean > 1, 1.0), else_=mean)
        return own.count > 0, clipped, literal(1.0)
    if metric.source == REQUESTS:
        return own.count > 0, own.total, literal(1.0)
    return own.count > 0, own.total, cast(own.count, Double)


def _mean(seen: Seen) -> Number:
    """NULL for a unit without a past."""
    return case((seen.count > 0, seen.total / seen.count), else_=null())


def _parts(
    experiment: str, metrics: Iterable[Metric], *, is_before: bool
) -> tuple[dict[str, Seen], list[Subquery]]:
    """Sums by unit from requests, and from feedback; each table is read once."""
    distinct = {metric.name: metric for metric in metrics}
    own = [one for one in distinct.values() if one.source != FEEDBACK]
    told = [one for one in distinct.values() if one.source == FEEDBACK]
    seen: dict[str, Seen] = {}
    parts = []
    for some, value_of, name in ((own, of_request, "requests"), (told, _of_feedback, "feedback")):
        if not some:
            continue
        columns = []
        for position, metric in enumerate(some):
            value = cast(value_of(metric), Double)
            columns += [
                func.sum(value).label(f"s{position}"),
                func.count(value).label(f"c{position}"),
            ]
        chosen = _chosen(experiment, columns, is_before=is_before)
        if name == "feedback":
            joined = and_(F.tenant == R.tenant, F.request_id == R.request_id)
            chosen = chosen.join(F, joined).where(_named(some))
        part = chosen.subquery(f"{name}_{'before' if is_before else 'during'}")
        parts.append(part)
        for position, metric in enumerate(some):
            seen[metric.name] = Seen(part.c[f"s{position}"], part.c[f"c{position}"])
    if is_before:
        for metric in own:
            if metric.source == REQUESTS:  # how many there were, not how many each of them is
                seen[metric.name] = Seen(seen[metric.name].total, literal(1.0))
    return seen, parts


def _chosen(experiment: str, columns: Sequence[Number], *, is_before: bool) -> Any:
    """Of requests that count, by unit and variant; or of those before a unit was exposed, by unit.

    Nothing that counts is older than its unit's exposure.
    """
    if not is_before:
        chosen = select(R.unit, R.variant, *columns).where(R.experiment == experiment)
        chosen = chosen.where(R.is_counted, ~R.is_shadow)
        return chosen.group_by(R.unit, R.variant)
    exposed = and_(U.experiment == R.experiment, U.unit == R.unit)
    chosen = select(R.unit, *columns).select_from(R).join(U, exposed)
    chosen = chosen.where(R.experiment == experiment, ~R.is_counted, ~R.is_shadow, R.at < U.at)
    return chosen.group_by(R.unit)


def of_request(metric: Metric, row: type[RequestRow] = R) -> Number:
    """What one request shows of a metric; NULL for nothing. row: the table, or an alias of it."""
    if metric.source == GRADER:
        grade: Number = row.grades[metric.name].as_float()
        return grade
    if metric.source == REQUESTS:
        return literal(1.0)
    if metric.source == "tokens":
        return row.prompt_tokens + row.completion_tokens
    if metric.source == "truncated":
        is_cut = case((row.finish_reason == "length", 1.0), else_=0.0)
        return case((row.finish_reason.is_not(None), is_cut), else_=null())
    column: Number = getattr(row, metric.source)
    return column


def _of_feedback(metric: Metric) -> Number:
    """What one feedback says of a metric: its value, or whether its label is the metric's.

    A metric `tone.warm` is 1 where the feedback `tone` has the label `warm`, 0 for another label.
    """
    name, dot, label = metric.name.rpartition(".")
    value: list[tuple[Any, Any]] = [(F.metric == metric.name, F.value)]
    if dot and name:
        is_it = case((F.label == label, 1.0), else_=0.0)
        value.append((and_(F.metric == name, F.label.is_not(None)), is_it))
    return case(*value, else_=null())


def _named(metrics: Iterable[Metric]) -> Number:
    names = {name for one in metrics for name in (one.name, one.name.rpartition(".")[0]) if name}
    return F.metric.in_(sorted(names))
