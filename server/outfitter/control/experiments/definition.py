"""What an experiment is: who gets what, what is measured, what happens by itself. Pure.

Every `parse` raises ApiError (400), whose param is the field and whose message tells its value and
what would be right. What `to_json` tells, `parse` reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from outfitter.control.experiments import graders as grading
from outfitter.control.experiments.graders import Grader
from outfitter.control.experiments.measures import (
    METRICS,
    Guardrail,
    Metric,
    built_in,
    check_metrics,
)
from outfitter.control.experiments.parts import (
    Automatic,
    RampStep,
    Slice,
    Unit,
    Variant,
    check_ramp,
    check_variants,
)
from outfitter.control.experiments.reading import Fields, is_number, wrong
from outfitter.errors import ApiError
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference

FIXED, THOMPSON = ALLOCATIONS = ("fixed", "thompson")
MAX_VARIANTS, MAX_METRICS, MAX_GRADERS, MAX_STEPS = 16, 32, 16, 32
RESERVED = ("versions", "growthbook", "results", "events", "access", "veto")
"""Parts of an experiment's own routes, which no name may end in."""
FIELDS = (
    *("name", "hypothesis", "variants", "control", "coverage", "layer", "holdout", "unit"),
    *("metrics", "primary", "guardrails", "alpha", "ramp", "allocation", "graders", "automatic"),
)


@dataclass(frozen=True)
class Definition:
    """An experiment as somebody wants it.

    name: `tone` or `acme/tone`. control: the key of a variant. coverage: the share of units that
    take part, at most; a ramp has less of them at first. primary: the name of the metric that
    decides; None measures only. alpha: the chance of a false verdict that is accepted.
    """

    name: str
    variants: tuple[Variant, ...]
    control: str
    hypothesis: str = ""
    coverage: float = 1.0
    layer: Slice | None = None
    holdout: Slice | None = None
    unit: Unit = field(default_factory=Unit)
    metrics: tuple[Metric, ...] = ()
    primary: str | None = None
    guardrails: tuple[Guardrail, ...] = ()
    alpha: float = 0.05
    ramp: tuple[RampStep, ...] = ()
    allocation: str = FIXED
    graders: tuple[Grader, ...] = ()
    automatic: Automatic = field(default_factory=Automatic)

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Self:
        """The body of `POST /v1/experiments`."""
        fields = Fields(given, "", FIELDS)
        variants = tuple(map(Variant.parse, fields.each("variants", Variant.FIELDS, MAX_VARIANTS)))
        control = fields.name("control", variants[0].key if variants else "control")
        check_variants(variants, control)
        metrics = tuple(map(Metric.parse, fields.each("metrics", METRICS, MAX_METRICS)))
        graders = tuple(map(Grader.parse, fields.each("graders", grading.FIELDS, MAX_GRADERS)))
        guardrails = fields.each("guardrails", Guardrail.FIELDS, MAX_METRICS)
        ramp = tuple(map(RampStep.parse, fields.each("ramp", RampStep.FIELDS, MAX_STEPS)))
        check_ramp(ramp)
        found = cls(
            name=parse_name(fields),
            variants=variants,
            control=control,
            hypothesis=fields.text("hypothesis", ""),
            coverage=fields.number("coverage", 0, 1, 1.0),
            layer=Slice.parse(fields, "layer"),
            holdout=Slice.parse(fields, "holdout"),
            unit=Unit.parse(fields),
            metrics=metrics,
            primary=fields.name("primary") if "primary" in fields else None,
            guardrails=tuple(map(Guardrail.parse, guardrails)),
            alpha=_alpha(fields),
            ramp=ramp,
            allocation=fields.choice("allocation", ALLOCATIONS, FIXED),
            graders=graders,
            automatic=Automatic.parse(fields),
        )
        check_metrics(metrics, graders, found.guardrails, found.primary)
        _check_together(found)
        return found

    def changed(self, changes: Mapping[str, object]) -> Self:
        """With what the body of a PATCH gives; null puts a field back to its default."""
        if "name" in changes:
            message = f"an experiment keeps its name, {self.name!r}: its units hang on it"
            raise ApiError(400, message, "invalid_parameter", "name")
        return type(self).parse({**self.to_json(), **changes})

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {
            "name": self.name,
            "hypothesis": self.hypothesis,
            "variants": [variant.to_json() for variant in self.variants],
            "control": self.control,
            "coverage": self.coverage,
            "layer": None if self.layer is None else self.layer.to_json(),
            "holdout": None if self.holdout is None else self.holdout.to_json(),
            "unit": self.unit.to_json(),
            "metrics": [metric.to_json() for metric in self.metrics],
            "primary": self.primary,
            "guardrails": [guardrail.to_json() for guardrail in self.guardrails],
            "alpha": self.alpha,
            "ramp": [step.to_json() for step in self.ramp],
            "allocation": self.allocation,
            "graders": [grader.to_json() for grader in self.graders],
            "automatic": self.automatic.to_json(),
        }

    @property
    def shares(self) -> dict[str, float]:
        """Of each variant that serves, in their order: its share of the traffic; they sum to 1."""
        weights = {one.key: one.weight for one in self.variants if not one.is_shadow}
        total = sum(weights.values())
        return {key: weight / total for key, weight in weights.items()}

    @property
    def shadows(self) -> tuple[Variant, ...]:
        """Those that are mirrored to, and serve nobody."""
        return tuple(variant for variant in self.variants if variant.is_shadow)

    def variant(self, key: str) -> Variant:
        """The one of a key; raises KeyError."""
        return {variant.key: variant for variant in self.variants}[key]

    def weighted(self, weights: Mapping[str, float]) -> Self:
        """With other weights of the variants that are named."""
        variants = (replace(one, weight=weights.get(one.key, one.weight)) for one in self.variants)
        return replace(self, variants=tuple(variants))

    def coverage_at(self, step: int) -> float:
        """The share of units that take part at a step of the ramp, counted from 0."""
        if not self.ramp:
            return self.coverage
        return min(self.coverage, self.ramp[min(step, len(self.ramp) - 1)].coverage)

    @property
    def measured(self) -> dict[str, Metric]:
        """Every metric by its name; with the built-in ones that are only named somewhere."""
        found = {metric.name: metric for metric in self.metrics}
        named = [rail.metric for rail in self.guardrails]
        named += [name for one in self.metrics for name in (one.denominator, one.covariate) if name]
        for name in [*named, *([self.primary] if self.primary else [])]:
            if name not in found:
                found[name] = built_in(name)
        return found


def parse_name(fields: Fields) -> str:
    """`tone` or `acme/tone`."""
    name = fields.text("name", most=200)
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        reference = Reference()
    if reference.path != name:
        raise fields.wrong("name", "name or namespace/name, such as acme/tone")
    if reference.namespace and reference.name in RESERVED:
        raise fields.wrong("name", f"no name that ends in {', '.join(RESERVED)}")
    return name


def _alpha(fields: Fields) -> float:
    value = fields.given.get("alpha")
    alpha = 0.05 if value is None else value
    if not is_number(alpha) or not 1e-6 <= alpha <= 0.5:
        raise fields.wrong("alpha", "a number from 0.000001 to 0.5")
    return float(alpha)


def _check_together(found: Definition) -> None:
    """Raise ApiError (400) for what cannot be at once."""
    if found.primary is None:
        wants = "allocation" if found.allocation == THOMPSON else "automatic.ship"
        if found.allocation == THOMPSON or found.automatic.ship != "off":
            raise wrong("primary", None, f"the name of a metric, by which {wants} decides")
    if found.automatic.ship != "off" and len(found.shares) < 2:
        right = "off where no variant but the control serves"
        raise wrong("automatic.ship", found.automatic.ship, right)
