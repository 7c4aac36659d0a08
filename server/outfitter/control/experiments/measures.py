"""The parts of a definition that say what is measured. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from outfitter.control.experiments.graders import Grader
from outfitter.control.experiments.reading import Fields, check_unique, wrong

FEEDBACK, GRADER = "feedback", "grader"
UP, DOWN = DIRECTIONS = ("up", "down")
PROPORTION, MEAN, RATIO = KINDS = ("proportion", "mean", "ratio")
BUILT_IN: Mapping[str, tuple[str, str]] = {
    "latency_s": (MEAN, DOWN),
    "first_token_s": (MEAN, DOWN),
    "inter_token_s": (MEAN, DOWN),
    "prompt_tokens": (MEAN, DOWN),
    "completion_tokens": (MEAN, DOWN),
    "cached_tokens": (MEAN, UP),
    "tokens": (MEAN, DOWN),
    "error": (PROPORTION, DOWN),
    "cost": (MEAN, DOWN),
    "requests": (MEAN, UP),
    "truncated": (PROPORTION, DOWN),
}
"""What is known of every request by itself: its kind, and the better direction."""
SOURCES = (FEEDBACK, GRADER, *BUILT_IN)
METRICS = (*("name", "source", "kind", "direction", "denominator", "min_effect", "covariate"),)


@dataclass(frozen=True)
class Metric:
    """A number per unit, compared between variants.

    source: a built-in, `feedback` or `grader` (by the metric's name). kind: how it is compared.
    direction: which way is better. denominator, for a ratio, and covariate: names of metrics.
    min_effect: the smallest difference that matters, in the metric's own units.
    """

    name: str
    source: str
    kind: str
    direction: str
    denominator: str | None = None
    min_effect: float = 0.0
    covariate: str | None = None

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """One of `metrics`. Of a built-in, only the name is needed."""
        name = fields.name("name")
        source = fields.choice("source", SOURCES, name if name in BUILT_IN else FEEDBACK)
        if name in BUILT_IN and source != name:
            raise fields.wrong("source", f"{name}, as that is a built-in; or choose another name")
        kind, direction = BUILT_IN.get(source, (PROPORTION if source == GRADER else MEAN, UP))
        kind = fields.choice("kind", KINDS, RATIO if "denominator" in fields else kind)
        if (kind == RATIO) != ("denominator" in fields):
            right = "the name of a metric" if kind == RATIO else f"absent where kind is {kind}"
            raise fields.wrong("denominator", right)
        return cls(
            name,
            source,
            kind,
            fields.choice("direction", DIRECTIONS, direction),
            fields.name("denominator") if kind == RATIO else None,
            fields.number("min_effect", 0, 1e12, 0.0),
            fields.name("covariate") if "covariate" in fields else None,
        )

    @property
    def is_better_up(self) -> bool:
        """Whether more of it is better."""
        return self.direction == UP

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        own = {"name": self.name, "source": self.source, "kind": self.kind}
        more = {"denominator": self.denominator, "covariate": self.covariate}
        told = {key: value for key, value in more.items() if value is not None}
        return {**own, "direction": self.direction, "min_effect": self.min_effect, **told}


def built_in(name: str) -> Metric:
    """The metric of a built-in; raises KeyError."""
    kind, direction = BUILT_IN[name]
    return Metric(name, name, kind, direction)


@dataclass(frozen=True)
class Guardrail:
    """A metric that must not become worse than the control's by more than `margin` of it."""

    FIELDS: ClassVar = ("metric", "margin")
    metric: str
    margin: float = 0.0

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """One of `guardrails`."""
        return cls(fields.name("metric"), fields.number("margin", 0, 1e6, 0.0))

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {"metric": self.metric, "margin": self.margin}


def check_metrics(
    metrics: Sequence[Metric],
    graders: Sequence[Grader],
    guardrails: Sequence[Guardrail],
    primary: str | None,
) -> None:
    """Raise ApiError (400) for a name that is taken twice, or names nothing."""
    check_unique((metric.name for metric in metrics), "metrics", "metrics")
    check_unique((grader.name for grader in graders), "graders", "graders")
    check_unique((rail.metric for rail in guardrails), "guardrails on", "guardrails")
    own = {metric.name: metric for metric in metrics}
    known = (*own, *(name for name in BUILT_IN if name not in own))
    right = f"the name of a metric: {', '.join(known)}"
    if primary is not None and primary not in known:
        raise wrong("primary", primary, right)
    for position, rail in enumerate(guardrails):
        if rail.metric not in known:
            raise wrong(f"guardrails[{position}].metric", rail.metric, right)
    names = {grader.name for grader in graders}
    for position, metric in enumerate(metrics):
        where = f"metrics[{position}]"
        if metric.source == GRADER and metric.name not in names:
            there = ", ".join(sorted(names)) or "there is none"
            raise wrong(f"{where}.name", metric.name, f"the name of a grader: {there}")
        for label, other in (("denominator", metric.denominator), ("covariate", metric.covariate)):
            if other is None:
                continue
            is_ratio = other in own and own[other].kind == RATIO
            if other not in known or is_ratio or (label == "denominator" and other == metric.name):
                raise wrong(f"{where}.{label}", other, f"{right}, and none that is a ratio")
