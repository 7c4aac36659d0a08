"""From a report to a verdict, with the figures that say so, and to the act that follows. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from outfitter.control.experiments import told
from outfitter.control.experiments.compare import Comparison, units_needed
from outfitter.control.experiments.report import BREACHED, Rail, Report, treatments
from outfitter.statistics.balance import ALPHA

NOTHING_YET = "nothing_yet"
KEEP_COLLECTING = "keep_collecting"
WINNER = "winner"
NO_DIFFERENCE = "no_difference"
GUARDRAIL_BREACHED = "guardrail_breached"
SAMPLE_RATIO_MISMATCH = "sample_ratio_mismatch"
RAMP_STEP_PASSED = "ramp_step_passed"
KINDS = (
    *(GUARDRAIL_BREACHED, SAMPLE_RATIO_MISMATCH, WINNER, RAMP_STEP_PASSED),
    *(NO_DIFFERENCE, KEEP_COLLECTING, NOTHING_YET),
)
"""In the order in which they count: the first that holds is the verdict."""


@dataclass(frozen=True)
class Finding:
    """What the figures say. kind: one of KINDS. reason: in words. variant, metric: where of one."""

    kind: str
    reason: str
    variant: str | None = None
    metric: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the API tells it."""
        own = {"kind": self.kind, "reason": self.reason, "variant": self.variant}
        return {**own, "metric": self.metric, "figures": dict(self.figures)}


def findings(report: Report) -> tuple[Finding, ...]:
    """All that holds, the verdict first; there is always one."""
    definition = report.definition
    if not report.units_of(definition.control) or not any(
        report.units_of(key) for key in treatments(definition)
    ):
        reason = "there are no units yet in the control and in a variant"
        return (Finding(NOTHING_YET, reason, figures={"units": dict(report.balance.counts)}),)
    held = [*_breaches(report), *_mismatch(report)]
    held += [*_winner(report), *(() if held else _ramp(report))]
    held += _no_difference(report) if not held else ()
    return tuple(held) or (_keep_collecting(report),)


def verdict(report: Report) -> Finding:
    """The first of the findings."""
    return findings(report)[0]


def live(report: Report) -> tuple[str, ...]:
    """The variants that serve now, without the control."""
    shares = report.definition.shares
    return tuple(key for key in treatments(report.definition) if shares[key] > 0)


def is_ramped(report: Report) -> bool:
    """Whether no step of the ramp is left."""
    return report.standing.step >= len(report.definition.ramp) - 1


def _breaches(report: Report) -> Iterator[Finding]:
    """One per variant that serves, of the guardrail that is named first."""
    for key in live(report):
        for rail in report.rails:
            if rail.comparison.variant == key and rail.state == BREACHED:
                yield _breach(report, rail)
                break


def _breach(report: Report, rail: Rail) -> Finding:
    one = rail.comparison
    by = f"more than {rail.guardrail.margin:.4g} of it" if rail.guardrail.margin else "it"
    reason = (
        f"{one.variant} is worse than {report.definition.control} on {one.metric} by {by}:"
        f" variant − {one.factor:.4g}·control is {_span(one)}, at {one.n:,} units"
    )
    return Finding(GUARDRAIL_BREACHED, reason, one.variant, one.metric, told.guardrail(rail))


def _mismatch(report: Report) -> Iterator[Finding]:
    if report.balance.is_mismatch:
        shown = ", ".join(
            f"{key} {count:,} ({report.balance.expected.get(key, 0.0):,.0f} planned)"
            for key, count in report.balance.counts.items()
        )
        reason = f"units did not come to the variants as planned: {shown}; no other figure counts"
        figures = {**told.balance(report.balance), "alpha": ALPHA}
        yield Finding(SAMPLE_RATIO_MISMATCH, reason, figures=figures)


def _winner(report: Report) -> Iterator[Finding]:
    """The best by its estimate of those that are surely better, and breach nothing."""
    if report.balance.is_mismatch:
        return
    breached = {rail.comparison.variant for rail in report.rails if rail.state == BREACHED}
    sign = _sign(report)
    won = [
        report.primary[key]
        for key in live(report)
        if key in report.primary and key not in breached and _is_better(report, key)
    ]
    if won:
        best = max(won, key=lambda one: sign * (one.effect or 0.0))
        reason = (
            f"{best.variant} is better than {report.definition.control} on {best.metric}:"
            f" by {_span(best)}, at {best.n:,} units"
        )
        yield Finding(WINNER, reason, best.variant, best.metric, told.comparison(best))


def _ramp(report: Report) -> Iterator[Finding]:
    standing = report.standing
    if is_ramped(report) or standing.stepped is None:
        return
    ramp = report.definition.ramp
    step, hours = ramp[standing.step], (standing.now - standing.stepped) / 3600
    if standing.step_units >= step.min_units and hours >= step.min_hours:
        following = ramp[standing.step + 1].coverage
        figures = {
            "step": standing.step,
            "units": standing.step_units,
            "hours": round(hours, 4),
            "min_units": step.min_units,
            "min_hours": step.min_hours,
            "coverage": step.coverage,
            "next_coverage": following,
        }
        reason = (
            f"step {standing.step} of the ramp has {standing.step_units:,} units in {hours:.4g}"
            f" hours and no guardrail is breached: {following:.4g} of units may take part"
        )
        yield Finding(RAMP_STEP_PASSED, reason, figures=figures)


def _no_difference(report: Report) -> Iterator[Finding]:
    primary = report.definition.primary
    least = report.definition.measured[primary].min_effect if primary else 0.0
    compared = [report.primary[key] for key in live(report) if key in report.primary]
    if (
        least > 0
        and compared
        and all(one.is_above(-least) and one.is_below(least) for one in compared)
    ):
        spans = "; ".join(f"{one.variant} by {_span(one)}" for one in compared)
        reason = f"no variant differs on {primary} by {least:.4g}, which would matter: {spans}"
        figures = {"min_effect": least, "comparisons": [told.comparison(one) for one in compared]}
        yield Finding(NO_DIFFERENCE, reason, metric=primary, figures=figures)


def _keep_collecting(report: Report) -> Finding:
    primary = report.definition.primary
    if primary is None:
        reason = "there is no primary metric: this experiment measures, and decides nothing"
        return Finding(KEEP_COLLECTING, reason)
    compared = [report.primary[key] for key in live(report) if key in report.primary]
    least = report.definition.measured[primary].min_effect
    needed = [n for one in compared if (n := units_needed(one, least)) is not None]
    figures: dict[str, Any] = {"comparisons": [told.comparison(one) for one in compared]}
    parts = [_so_far(one) for one in compared]
    if least and needed:
        figures |= {"min_effect": least, "units_needed": max(needed)}
        parts.append(f"about {max(needed):,} units tell differences of {least:.4g} from none")
    return Finding(KEEP_COLLECTING, "; ".join(parts) or "no variant serves", None, primary, figures)


def _so_far(one: Comparison) -> str:
    if one.waits_for is not None:
        return f"{one.variant} waits for {one.waits_for}"
    return f"{one.variant} differs on {one.metric} by {_span(one)}, at {one.n:,} units"


def _is_better(report: Report, key: str) -> bool:
    one = report.primary[key]
    return one.is_above() if _sign(report) > 0 else one.is_below()


def _sign(report: Report) -> int:
    definition = report.definition
    if definition.primary is None:
        return 1
    return 1 if definition.measured[definition.primary].is_better_up else -1


def _span(one: Comparison) -> str:
    assert one.effect is not None
    return f"{one.effect:.4g} ({one.lower:.4g} to {one.upper:.4g})"
