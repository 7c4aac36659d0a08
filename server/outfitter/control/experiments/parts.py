"""The parts of a definition that say who gets what, and what happens by itself. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

from outfitter.control.experiments.reading import Fields, check_unique, wrong
from outfitter.errors import ApiError, from_task_vector_error
from taskvectors.errors import TaskVectorError
from taskvectors.spec import parse_task_vectors

MAX_WEIGHT = 1e6
MAX_VETO_S = 30 * 86400
BY = ("user", "header", "key")
OFF, SAVE, PROMOTE = SHIPS = ("off", "save", "promote")
_HEADER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_OWN = ("authorization", "cookie", "x-api-key")


@dataclass(frozen=True)
class Variant:
    """One of the mixes that are compared.

    model: the base or a saved loadout, by name or pinned; else task_vectors: as a request says
    them. weight: its part of the traffic, relative to the others'. shadow: the share of requests
    that are mirrored to it; such a variant serves nobody, and its weight is 0.
    """

    FIELDS: ClassVar = ("key", "model", "task_vectors", "weight", "shadow")
    key: str
    model: str | None = None
    task_vectors: Any = None
    weight: float = 1.0
    shadow: float | None = None

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """One of `variants`."""
        key = fields.name("key")
        if ("model" in fields) == ("task_vectors" in fields):
            what = "both model and task_vectors" if "model" in fields else "neither"
            message = f"{fields.where} ({key}) needs either model or task_vectors, and has {what}"
            raise ApiError(400, message, "invalid_parameter", fields.where)
        if "shadow" in fields and "weight" in fields:
            raise fields.wrong("weight", "absent where there is shadow: it serves nobody")
        shadow = fields.number("shadow", 0, 1) if "shadow" in fields else None
        weight = 0.0 if shadow is not None else fields.number("weight", 0, MAX_WEIGHT, 1.0)
        if "model" in fields:
            return cls(key, model=_model(fields), weight=weight, shadow=shadow)
        value = fields.given["task_vectors"]
        try:
            parse_task_vectors(value)
        except TaskVectorError as error:
            raise from_task_vector_error(error, fields.path("task_vectors")) from error
        return cls(key, task_vectors=value, weight=weight, shadow=shadow)

    @property
    def is_shadow(self) -> bool:
        """Whether it only gets copies of requests."""
        return self.shadow is not None

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        mix = {"model": self.model} if self.model else {"task_vectors": self.task_vectors}
        part = {"shadow": self.shadow} if self.is_shadow else {"weight": self.weight}
        return {"key": self.key, **mix, **part}


@dataclass(frozen=True)
class Slice:
    """A part of the units, from `start` to below `end`, both from 0 to 1.

    As a layer (GrowthBook's namespace): only its units may take part. As a holdout: its units take
    no part. Units have the same place in all slices of one name.
    """

    name: str
    start: float
    end: float

    @classmethod
    def parse(cls, fields: Fields, name: str) -> Self | None:
        """`{"name": "chat", "range": [0, 0.5]}`; None where there is none."""
        own = fields.only(name, ("name", "range"))
        if own is None:
            return None
        label, value = own.name("name"), own.given.get("range")
        right = "two numbers from 0 to 1, the second greater, such as [0, 0.5]"
        if not isinstance(value, list) or len(value) != 2:
            raise own.wrong("range", right)
        ends = Fields({"start": value[0], "end": value[1]}, own.path("range"), ("start", "end"))
        start, end = ends.number("start", 0, 1), ends.number("end", 0, 1)
        if not start < end:
            raise wrong(own.path("range"), f"[{start:g}, {end:g}]", right)
        return cls(label, start, end)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {"name": self.name, "range": [self.start, self.end]}


@dataclass(frozen=True)
class Unit:
    """Who is assigned. by: the request's `user`, a header (in lower case), or the API key."""

    by: str = "user"
    header: str | None = None

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """`{"by": "header", "header": "x-user-id"}`; the user without."""
        own = fields.only("unit", ("by", "header"))
        if own is None:
            return cls()
        by = own.choice("by", BY, "user")
        if by != "header":
            if "header" in own:
                raise own.wrong("header", f"absent where units are by {by}")
            return cls(by)
        header = own.text("header", most=64).lower()
        if not header or not set(header) <= _HEADER or header in _OWN:
            raise own.wrong("header", "the name of a header that holds no secret, as x-user-id")
        return cls(by, header)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {"by": self.by, **({"header": self.header} if self.header else {})}


@dataclass(frozen=True)
class RampStep:
    """A part of the way to full coverage; the next begins after so many units and hours of it."""

    FIELDS: ClassVar = ("coverage", "min_units", "min_hours")
    coverage: float
    min_units: int = 0
    min_hours: float = 0.0

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """One of `ramp`."""
        return cls(
            fields.number("coverage", 0, 1),
            fields.whole("min_units", 0, 10**9, 0),
            fields.number("min_hours", 0, 10**5, 0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        own = {"coverage": self.coverage, "min_units": self.min_units}
        return {**own, "min_hours": self.min_hours}


@dataclass(frozen=True)
class Automatic:
    """What happens without anybody. ship: the winner is not, or saved, or promoted.

    rollback: to the control when a guardrail is breached. ship_as: the saved loadout whose next
    version the winner becomes. veto_s: seconds between an act's decision and the act.
    """

    FIELDS: ClassVar = ("rollback", "ramp", "ship", "ship_as", "veto_s")
    rollback: bool = True
    ramp: bool = True
    ship: str = OFF
    ship_as: str | None = None
    veto_s: float = 0.0

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """`automatic`, all of whose fields have defaults."""
        own = fields.only("automatic", cls.FIELDS)
        if own is None:
            return cls()
        ship = own.choice("ship", SHIPS, OFF)
        if ship == SAVE and "ship_as" not in own:
            raise own.wrong("ship_as", "the name of a saved loadout where ship is save")
        return cls(
            own.flag("rollback", default=True),
            own.flag("ramp", default=True),
            ship,
            own.text("ship_as", most=200) if "ship_as" in own else None,
            own.number("veto_s", 0, MAX_VETO_S, 0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        own = {"rollback": self.rollback, "ramp": self.ramp, "ship": self.ship}
        return {**own, "ship_as": self.ship_as, "veto_s": self.veto_s}


def check_variants(variants: Sequence[Variant], control: str) -> None:
    """Raise ApiError (400) unless there are two, with keys of their own, and the control serves."""
    if len(variants) < 2:
        raise wrong("variants", f"{len(variants)} of them", "two or more, the control among them")
    check_unique((variant.key for variant in variants), "variants", "variants")
    own = {variant.key: variant for variant in variants}
    if control not in own:
        raise wrong("control", control, f"the key of a variant: {', '.join(own)}")
    if not own[control].weight > 0:
        raise wrong("control", control, "a variant with a weight, to compare the others with")


def check_ramp(ramp: Sequence[RampStep]) -> None:
    """Raise ApiError (400) unless each step covers more than the one before."""
    for position, (before, after) in enumerate(pairwise(ramp), 1):
        if not after.coverage > before.coverage:
            right = f"more than {before.coverage:g}, that of the step before"
            raise wrong(f"ramp[{position}].coverage", after.coverage, right)


def _model(fields: Fields) -> str:
    model = fields.text("model", most=1024)
    if not model or model.startswith("exp:"):
        raise fields.wrong("model", "the base or a saved loadout, such as acme/bot@3")
    return model
