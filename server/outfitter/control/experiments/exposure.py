"""That a request was served by a variant of an experiment. Pure."""

from dataclasses import dataclass, field

from outfitter.control.experiments.graders import Grader


@dataclass(frozen=True)
class Exposure:
    """Which variant of an experiment serves a request, and for whom.

    experiment: its name, without `exp:`. version: of its definition. variant: its key. unit: who
    was assigned; None where the request names nobody. is_counted: whether the request says
    anything about the experiment; not so outside of coverage or layer, in a holdout, without a
    unit, where the variant was forced, or where the experiment does not run. is_shadow: whether it
    is a mirrored request, whose answer nobody gets; it is recorded, and `is_counted` is as of the
    request that it mirrors. is_before: whether the unit may be exposed later, so that what it does
    now is its past. graders: those of the definition, which judge its answer.
    """

    experiment: str
    version: int
    variant: str
    unit: str | None
    is_counted: bool
    is_shadow: bool = False
    is_before: bool = False
    graders: tuple[Grader, ...] = field(default=(), compare=False, repr=False)

    @property
    def label(self) -> str:
        """`acme/tone@3/warm`, as in the header `x-outfitter-variant`."""
        return f"{self.experiment}@{self.version}/{self.variant}"
