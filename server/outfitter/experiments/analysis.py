"""What an experiment's events say: read from the database, compared, judged."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outfitter.control.experiments import mirrored, told
from outfitter.control.experiments.acts import Act, wanted
from outfitter.control.experiments.decide import Finding, findings
from outfitter.control.experiments.experiment import Experiment
from outfitter.control.experiments.report import Report, Standing, report
from outfitter.experiments.book import Book
from outfitter.state.database import Database
from outfitter.state.dealt import units_by_version
from outfitter.state.events import Events
from outfitter.statistics.balance import Stretch

Shares = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Analysis:
    """Of an experiment as it is at `at`, Unix time in seconds."""

    experiment: Experiment
    at: float
    report: Report
    findings: tuple[Finding, ...]

    @property
    def act(self) -> Act | None:
        """What it does by itself now, unless somebody has forbidden it."""
        return wanted(self.experiment, self.report, self.findings)

    def to_json(self) -> dict[str, Any]:
        """As `Analyst.results` tells it."""
        experiment, pending = self.experiment, self.experiment.pending
        return {
            "object": "experiment.results",
            "experiment": experiment.name,
            "version": experiment.version,
            "status": str(experiment.status),
            "at": self.at,
            "step": experiment.step,
            "coverage": experiment.coverage,
            "weights": experiment.definition.shares,
            "verdict": self.findings[0].to_json(),
            "findings": [one.to_json() for one in self.findings],
            "units": told.balance(self.report.balance),
            "metrics": told.metrics(self.report),
            "guardrails": [told.guardrail(one) for one in self.report.rails],
            "pending": None if pending is None else pending.to_json(),
            "forbidden": list(experiment.forbidden),
        }


class Analyst:
    """Every method may block, and raises CatalogUnavailable."""

    def __init__(
        self,
        database: Database,
        book: Book,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._book, self._events = database, book, events
        self._clock = clock

    def analyse(self, experiment: Experiment) -> Analysis:
        """Everything that was measured until now, for an experiment as it is."""
        definition, now = experiment.definition, self._clock()
        known = definition.measured
        since = experiment.stepped
        standing = Standing(
            definition,
            now,
            self._stretches(experiment),
            self._events.moments(experiment.name, list(known.values()), known),
            experiment.step,
            since,
            0 if since is None else sum(self._events.units(experiment.name, since).values()),
        )
        found = report(standing)
        return Analysis(experiment, now, found, findings(found))

    def results(self, experiment: Experiment) -> dict[str, Any]:
        """As `GET /v1/experiments/{name}/results` tells it: with shadows, which decide nothing."""
        return {**self.analyse(experiment).to_json(), "shadows": self._shadows(experiment)}

    def _shadows(self, experiment: Experiment) -> list[dict[str, Any]]:
        definition = experiment.definition
        if not definition.shadows:
            return []
        seen = self._events.mirrored(experiment.name, mirrored.pairable(definition))
        return mirrored.told(definition, seen)

    def _stretches(self, experiment: Experiment) -> list[Stretch]:
        """Units by what the buckets were like; versions that dealt alike are one stretch."""
        versions = self._versions(experiment)
        shares = known_shares(versions)
        if len(shares) == len(versions) and len(set(shares.values())) == 1:
            counts = {experiment.version: self._events.units(experiment.name)}
        else:
            with self._database.reading() as session:
                counts = units_by_version(session, experiment.name)
        return stretches(shares, counts)

    def _versions(self, experiment: Experiment) -> Sequence[Experiment]:
        started = experiment.started is not None
        found = self._book.versions(None, experiment.name) if started else (experiment,)
        return [one for one in found if one.is_running] or [experiment]


def dealt_shares(experiment: Experiment) -> Shares:
    """Of the buckets that any variant has, what each one has; the plan's before they are dealt."""
    if experiment.allotment is None:
        return tuple(sorted(experiment.definition.shares.items()))
    counts = experiment.allotment.counts
    total = sum(counts.values())
    own = {key: counts.get(key, 0) for key in experiment.definition.shares}
    return tuple(sorted((key, num / total if total else 0.0) for key, num in own.items()))


def known_shares(versions: Iterable[Experiment]) -> dict[int, Shares]:
    """By version, in which shares new units come.

    Regulars are soon known in buckets that were dealt long ago, so most new units come from others.
    Where a variant has more of those than of all buckets, as after a change of weights before all
    take part, nobody knows the shares, and the version is not there.
    """
    since: dict[int, int] = {}
    known: dict[int, Shares] = {}
    for one in sorted(versions, key=lambda version: version.version):
        shares, ages = dealt_shares(one), defaultdict[int, Counter[str]](Counter)
        for bucket, (variant, _) in enumerate(one.allotment.buckets if one.allotment else ()):
            if variant is not None:
                ages[since.setdefault(bucket, one.version)][variant] += 1
        if all(_is_dealt(shares, counts) for counts in ages.values()):
            known[one.version] = shares
    return known


def _is_dealt(shares: Shares, counts: Counter[str]) -> bool:
    """Whether buckets are those shares of them, but for rounding."""
    return all(abs(counts[key] - share * counts.total()) <= 2 for key, share in shares)


def stretches(
    shares: Mapping[int, Shares], counts: Mapping[int, Mapping[str, int]]
) -> list[Stretch]:
    """Sums of the counts of all versions that dealt alike.

    Of other versions nobody can say how they dealt, be it that they are too old to be known: they
    count as dealt the way that their units came.
    """
    sums: dict[Shares, dict[str, int]] = {}
    for version, units in counts.items():
        own = sums.setdefault(shares.get(version) or _as_came(units), {})
        for key, num in units.items():
            own[key] = own.get(key, 0) + num
    return [Stretch(dict(dealt), units) for dealt, units in sums.items()]


def _as_came(units: Mapping[str, int]) -> Shares:
    total = sum(units.values())
    return tuple(sorted((key, num / total) for key, num in units.items() if num))
