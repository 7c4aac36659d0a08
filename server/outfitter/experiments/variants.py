"""What a variant serves: resolved when its experiment starts, and checked with every request."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from outfitter.control.experiments.experiment import Experiment, Pin
from outfitter.control.experiments.parts import Variant
from outfitter.control.resolve import Plan, plan
from outfitter.control.rights import Viewer
from outfitter.control.saved import apply, check_servable, saved_reference
from outfitter.vectors import Base, Vectors
from taskvectors.errors import BaseMismatch, VectorNotFound
from taskvectors.spec import Loadout, Reference, parse_task_vectors

_NOTHING = Plan(Loadout(()), None)


@dataclass(frozen=True)
class Variants:
    """Variants by the rights of their experiment's owner: whoever may use it may use them.

    whole: the store, as an operator sees it. owner_of: by whose rights a name is made up; None for
    the operator's. served_names: of the base. Every method may block, and raises TaskVectorError.
    """

    whole: Vectors
    owner_of: Callable[[str], Viewer | None]
    served_names: Collection[str]

    def pin(self, experiment: Experiment, key: str, base: Base) -> Pin:
        """What a variant stands for now."""
        variant = experiment.definition.variant(key)
        own = self.whole.seen_by(self.owner_of(experiment.name))
        model, found = self._resolved(variant, own, base)
        return Pin(model, found.loadout.canonical, found.task_vectors, base.fingerprint)

    def current(self, experiment: Experiment, key: str, base: Base) -> Pin:
        """What a variant serves: what it was pinned to, if it still may be; for a draft, as now."""
        pin = experiment.pins.get(key)
        if pin is None:
            return self.pin(experiment, key, base)
        self._check(experiment, key, pin, base)
        return pin

    def saved_model(self, pin: Pin) -> str | None:
        """The saved loadout that it is, with its version; None for the base and other mixes."""
        return None if pin.model in self.served_names else pin.model

    def _resolved(self, variant: Variant, own: Vectors, base: Base) -> tuple[str | None, Plan]:
        if variant.model is None:
            requested = parse_task_vectors(variant.task_vectors)
            return None, plan(requested, own.resolve, base.fingerprint, base.modules)
        if variant.model in self.served_names:
            return variant.model, _NOTHING
        reference = saved_reference(variant.model)
        if reference is None:
            raise VectorNotFound(f"no saved loadout {variant.model[:200]!r}")
        saved = own.loadout(reference)
        owner = self.whole.seen_by(self.owner_of(saved.name))
        check_servable(saved, owner.resolve, base.fingerprint)
        return saved.id, apply(saved, _NOTHING)

    def _check(self, experiment: Experiment, key: str, pin: Pin, base: Base) -> None:
        """Raise TaskVectorError unless every vector may still be served, on this very base."""
        if pin.base_fingerprint != base.fingerprint:
            raise BaseMismatch(
                f"the variant {key!r} of the experiment {experiment.name!r} was resolved for the"
                f" base {pin.base_fingerprint}, but this server serves {base.fingerprint}"
            )
        owner = self._owner(experiment, pin)
        for digest in sorted(pin.plan.loadout.digests):
            owner.resolve(Reference(digest=digest))

    def _owner(self, experiment: Experiment, pin: Pin) -> Vectors:
        """The store as whoever made up the mix sees it."""
        own = self.whole.seen_by(self.owner_of(experiment.name))
        if (name := self.saved_model(pin)) is None:
            return own
        reference = saved_reference(name)
        assert reference is not None
        if self._exists(reference):
            own.loadout(reference)  # or it is no longer shared with the owner
        return self.whole.seen_by(self.owner_of(str(reference.path)))

    def _exists(self, reference: Reference) -> bool:
        """Whether a saved loadout is there for anybody; a variant outlives its deletion."""
        try:
            self.whole.loadout(reference)
        except VectorNotFound:
            return False
        return True
