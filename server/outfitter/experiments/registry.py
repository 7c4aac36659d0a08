"""Experiments by name, remembered for as long as they are known to be so: for every request."""

import json

from outfitter.control.experiments.experiment import Experiment
from outfitter.control.rights import Viewer
from outfitter.errors import ExperimentNotFound
from outfitter.state import experiments
from outfitter.state.answers import Answers, Question
from outfitter.state.database import Database
from outfitter.state.generation import Generation
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference


class Registry:
    """Answers as the database does, at most half a second late; own changes at once. Thread-safe.

    Every gateway on one database hears so of what another has changed.
    """

    def __init__(self, database: Database, generation: Generation) -> None:
        self._database = database
        self._generation = generation
        self._answers = Answers(self._ask, _weigh)

    def find(self, viewer: Viewer | None, name: str) -> Experiment:
        """An experiment as it is, for whoever may see it; without waiting where memory knows it.

        name: without `exp:`. Raises ExperimentNotFound, CatalogUnavailable.
        """
        question = (_reference(name), viewer)
        generation = self._generation.current()
        answers = self._answers
        return (answers.find(question, generation) or answers.ask(question, generation)).get()

    def _ask(self, question: Question) -> Experiment:
        with self._database.reading() as session:
            return experiments.find(session, str(question[0]), question[1])


def _reference(name: str) -> Reference:
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        reference = Reference()
    if reference.path != name:
        raise ExperimentNotFound(f"no experiment {name[:200]!r}")
    return reference


def _weigh(experiment: Experiment) -> int:
    """Its texts, and segments that weigh as much as a hundred letters."""
    pins = sum(len(pin.canonical) for pin in experiment.pins.values())
    segments = 0 if experiment.allotment is None else len(experiment.allotment.segments)
    return len(json.dumps(experiment.definition.to_json())) + 4 * pins + 100 * segments
