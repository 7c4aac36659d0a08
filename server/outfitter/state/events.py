"""What experiments saw: requests, units and feedback, and their sums."""

from collections.abc import Iterator, Mapping, Sequence

from outfitter.control.experiments.measures import Metric
from outfitter.state.database import Database
from outfitter.statistics.moments import Moments


class Events:
    """The tables of events. Every method may block, and raises CatalogUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def moments(
        self, experiment: str, metrics: Sequence[Metric], known: Mapping[str, Metric]
    ) -> dict[str, dict[str, Moments]]:
        """By metric's name and variant, over the units that count.

        known: every metric that may be a denominator or covariate, as `Definition.measured`.
        """
        raise NotImplementedError

    def units(self, experiment: str, since: float | None = None) -> dict[str, int]:
        """By variant: units that were first exposed to it. since: Unix time, seconds; or ever."""
        raise NotImplementedError

    def rows(self, experiment: str) -> Iterator[dict[str, object]]:
        """Every event, in the order of time, for a CSV."""
        raise NotImplementedError

    def forget(self, experiment: str) -> None:
        """Delete all events of an experiment."""
        raise NotImplementedError
