"""Events as rows: each once, and their sums over units, held against plain loops."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.event import listens_for

from outfitter.control.experiments.event import Event
from outfitter.control.experiments.feedback import Feedback
from outfitter.control.experiments.measures import BUILT_IN, Metric, built_in
from outfitter.control.experiments.mirrored import Mirrored, Pairs
from outfitter.state.database import Database, Patience, sqlite_url
from outfitter.state.events import Events
from outfitter.statistics.contrast import estimate
from outfitter.statistics.moments import Moments
from tests.outfitter.experiments.making import E, T, event


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, Patience())
    yield opened
    opened.close()


@pytest.fixture
def events(database: Database) -> Events:
    return Events(database)


SCORE = Metric("score", "feedback", "mean", "up")
KNOWN = {**{name: built_in(name) for name in BUILT_IN}, "score": SCORE}


def told(events: Events, *metrics: Metric) -> dict[str, dict[str, Moments]]:
    return events.moments(E, metrics, KNOWN)


def test_an_event_that_comes_twice_is_one(events: Events) -> None:
    """In one batch, in two, and from two writers."""
    one = event("r1", "u")
    events.add([one, one, event("r2", "u")])
    events.add([one])
    assert told(events, built_in("requests"))["requests"]["a"] == Moments(1, 2, 4, 1, 1, 2)


def test_a_request_whose_id_was_used_before_makes_no_unit(events: Events) -> None:
    """It is not measured, so it must not pass steps of a ramp either."""
    events.add([event("r1", "u", at=5.0)])
    events.add([event("r1", "v"), event("r1", "w", grades={"is_json": 1.0}), event("r2", "x")])
    events.add([event("r1", "u", at=5.0), event("r1", "y", at=1.0)])
    assert events.units(E) == {"a": 2}
    assert events.units(E, since=4.0) == {"a": 1}
    assert told(events, built_in("requests"))["requests"]["a"].n == 2


def test_the_same_event_with_grades_has_them_in_either_order(events: Events) -> None:
    """And an event without never takes them away."""
    graded = event("r1", "u", grades={"is_json": 1.0, "is-json.v2": 0.25})
    events.add([graded, event("r1", "u")])
    events.add([event("r2", "v"), event("r1", "u")])
    events.add([event("r2", "v", grades={"is_json": 0.0})])
    found = told(
        events,
        Metric("is_json", "grader", "proportion", "up"),
        Metric("is-json.v2", "grader", "mean", "up"),
    )
    assert found["is_json"]["a"] == Moments(2, 1, 1, 2, 2, 1)
    assert found["is-json.v2"]["a"] == Moments(1, 0.25, 0.0625, 1, 1, 0.25)
    assert {row["request_id"]: row["grades"] for row in events.rows(E)} == {
        "r1": {"is_json": 1.0, "is-json.v2": 0.25},
        "r2": {"is_json": 0.0},
    }


def test_only_a_units_first_variant_counts_whatever_came_first(events: Events) -> None:
    """Also when the earlier event is written later."""
    events.add([event("r2", "u", "b", at=20.0), event("r3", "v", "b", at=5.0)])
    assert events.units(E) == {"b": 2}
    events.add([event("r1", "u", "a", at=10.0), event("r4", "u", "a", at=30.0)])
    assert events.units(E) == {"a": 1, "b": 1}
    assert events.units(E, since=7.0) == {"a": 1}
    found = told(events, built_in("requests"))["requests"]
    assert found == {"a": Moments(1, 2, 4, 1, 1, 2), "b": Moments(1, 1, 1, 1, 1, 1)}


def test_shadows_and_what_is_not_counted_make_no_units(events: Events) -> None:
    """But shadows' requests are told."""
    events.add(
        [
            event("r1", "u", "new", is_shadow=True),
            event("r2", "v", is_counted=False),
            event("r1", "u", "a"),
        ]
    )
    assert events.units(E) == {"a": 1}
    assert events.mirrored(E, []) == {"new": Mirrored(1, {})}
    assert len(list(events.rows(E))) == 3


def test_a_copy_is_held_against_the_request_it_was_made_of(events: Events) -> None:
    """Of the same tenant, whichever variant served it; where one showed nothing is no pair."""
    shadow = {"variant": "new", "is_shadow": True}
    events.add(
        [
            event("r1", "u", "a", latency_s=0.5, grades={"is_json": 1.0}),
            event("r1:new", "u", **shadow, latency_s=0.75, grades={"is_json": 0.0}),
            event("r2", "v", "b", latency_s=1.5),
            event("r2:new", "v", **shadow, latency_s=None, error=1, status=500),
            event("r3", "w", "b", latency_s=2.5, tenant="other"),
            event("r3:new", "w", **shadow, latency_s=9.0),
            event("r4:old", "w", variant="old", is_shadow=True),
        ]
    )
    grade = Metric("is_json", "grader", "proportion", "up")
    metrics = [built_in("latency_s"), built_in("error"), grade]
    assert events.mirrored(E, metrics) == {
        "new": Mirrored(
            3,
            {
                "latency_s": Pairs(1, 0.75, 0.5),
                "error": Pairs(2, 1.0, 0.0),
                "is_json": Pairs(1, 0.0, 1.0),
            },
        ),
        "old": Mirrored(1, dict.fromkeys(("latency_s", "error", "is_json"), Pairs(0, 0.0, 0.0))),
    }


def test_feedback_may_be_early_late_and_said_again(events: Events) -> None:
    """The last of one id counts; several ids are several observations."""
    say = [Feedback("r1", "score", 1.0), Feedback("r1", "score", 3.0), Feedback("r9", "score", 7.0)]
    events.add_feedback(T, say, 1.0)
    events.add([event("r1", "u"), event("r2", "v")])
    assert told(events, SCORE)["score"]["a"] == Moments(1, 3, 9, 1, 1, 3)
    events.add_feedback(
        T, [Feedback("r1", "score", 2.0), Feedback("r1", "score", 5.0, id="x")], 2.0
    )
    assert told(events, SCORE)["score"]["a"] == Moments(1, 7, 49, 2, 4, 14)


def test_feedback_of_another_tenant_is_about_nothing(events: Events) -> None:
    """Though the request has the same id."""
    events.add([event("r1", "u")])
    events.add_feedback("umbra", [Feedback("r1", "score", 1.0)], 1.0)
    assert told(events, SCORE)["score"]["a"] == Moments()
    assert [row["feedback"] for row in events.rows(E)] == [{}]


def test_a_label_is_a_metric_of_its_own(events: Events) -> None:
    """`tone.warm`: which share of what was labelled."""
    events.add([event("r1", "u"), event("r2", "u"), event("r3", "v")])
    labels = [Feedback(f"r{i}", "tone", label=word) for i, word in ((1, "warm"), (2, "cold"))]
    events.add_feedback(T, labels, 1.0)
    warm = Metric("tone.warm", "feedback", "proportion", "up")
    assert told(events, warm)["tone.warm"]["a"] == Moments(1, 0.5, 0.25, 1, 1, 0.5)
    assert [row["feedback"] for row in events.rows(E)] == [
        {"tone": ["warm"]},
        {"tone": ["cold"]},
        {},
    ]


def test_what_was_said_of_nothing_is_forgotten_after_a_month(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what was said of a request that is known."""
    events.add([event("r1", "u")])
    events.add_feedback(T, [Feedback("r1", "score", 1.0), Feedback("r2", "score", 1.0)], 1.0)
    assert events.tidy() == 1
    assert told(events, SCORE)["score"]["a"].n == 1


def test_an_experiment_is_forgotten_with_its_feedback(events: Events) -> None:
    """And no other one."""
    events.add([event("r1", "u"), event("r2", "u", experiment="other")])
    events.add_feedback(T, [Feedback("r1", "score", 1.0), Feedback("r2", "score", 1.0)], 1.0)
    events.forget(E)
    assert (list(events.rows(E)), events.units(E)) == ([], {})
    [kept] = events.rows("other")
    assert kept["feedback"] == {"score": [1.0]}


def test_feedback_on_a_request_of_two_experiments_stays_with_the_other(events: Events) -> None:
    """A client that asks both within one trace may call both requests alike."""
    events.add([event("r1", "u"), event("r1", "u", experiment="other"), event("r2", "u")])
    events.add_feedback(T, [Feedback("r1", "score", 1.0), Feedback("r2", "score", 1.0)], 1.0)
    events.forget(E)
    [kept] = events.rows("other")
    assert kept["feedback"] == {"score": [1.0]}
    assert events.tidy() == 0


def test_forgetting_looks_at_each_request_once(tmp_path: Path) -> None:
    """Not once for every feedback, while all others wait to write."""
    database = Database(sqlite_url(tmp_path / "catalog.sqlite3"), Patience())
    database.close()
    steps = []

    @listens_for(database.engine, "connect")
    def _count(connection: Any, _: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 1_000)

    events = Events(database)
    events.add([event(f"r{i}", f"u{i}") for i in range(2_000)])
    events.add_feedback(T, [Feedback(f"x{i}", "score", 1.0) for i in range(1_000)], 1.0)
    steps.clear()
    assert events.tidy() == 1_000
    assert len(steps) < 1_000
    database.close()


def test_rows_are_read_page_by_page(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once."""
    monkeypatch.setattr("outfitter.state.events.PAGE", 7)
    events.add([event(f"r{i:02}", "u", at=float(i)) for i in range(50)])
    assert [row["request_id"] for row in events.rows(E)] == [f"r{i:02}" for i in range(50)]


METRICS = (
    *map(built_in, ("latency_s", "first_token_s", "tokens", "error", "cost", "requests")),
    built_in("truncated"),
    Metric("helpful", "feedback", "proportion", "up", covariate="latency_s"),
    Metric("per_token", "latency_s", "ratio", "down", "tokens", covariate="requests"),
    Metric("score_ratio", "feedback", "ratio", "up", "requests"),
    SCORE,
    Metric("graded", "grader", "proportion", "up", covariate="score"),
)


def test_the_sums_are_those_of_a_plain_loop(events: Events) -> None:
    """Of 2,000 drawn events of 300 units, with a past, with crossings, with feedback."""
    draw = random.Random(11)
    made, said = [], []
    for i in range(2_000):
        at, unit = float(i), f"u{draw.randrange(300)}"
        first = draw.choice((None, draw.random()))
        failed = draw.random() < 0.05
        made.append(
            event(
                f"r{i}",
                unit,
                draw.choice("abc") if draw.random() < 0.1 else "abc"[int(unit[1:]) % 3],
                at,
                is_counted=i > 600 or draw.random() < 0.2,
                is_shadow=draw.random() < 0.05,
                status=500 if failed else 200,
                error=int(failed),
                latency_s=None if failed else draw.random(),
                first_token_s=first,
                prompt_tokens=draw.randrange(100),
                completion_tokens=draw.randrange(100),
                cost=draw.random(),
                finish_reason=draw.choice((None, "stop", "length")),
                grades={"graded": float(draw.random() < 0.5)} if draw.random() < 0.5 else None,
            )
        )
        if draw.random() < 0.4:
            said.append(Feedback(f"r{i}", "helpful", float(draw.random() < 0.7)))
        ids = [f"i{k}" for k in range(draw.choice((0, 0, 1, 3)))]
        said += [Feedback(f"r{i}", "score", draw.gauss(0, 2), id=id_) for id_ in ids]
        if draw.random() < 0.2:
            said.append(Feedback(f"r{i}", "score_ratio", draw.random()))
    draw.shuffle(made)
    for start in range(0, len(made), 300):
        events.add(made[start : start + 300])
    events.add_feedback(T, said, 1.0)
    found = told(events, *METRICS)
    wanted = plain(made, said, METRICS)
    for metric in METRICS:
        assert set(found[metric.name]) == {"a", "b", "c"}
        for variant, moments in found[metric.name].items():
            for name, value in vars(wanted[metric.name, variant]).items():
                same = math.isclose(getattr(moments, name), value, rel_tol=1e-9, abs_tol=1e-9)
                assert same, (metric.name, variant, name, moments, value)


def observations(metric: Metric, one: Event, said: dict) -> list[float]:
    if metric.source == "feedback":
        return said.get((one.request_id, metric.name), [])
    if metric.source == "grader":
        return [one.grades[metric.name]] if one.grades else []
    value = {
        "requests": 1.0,
        "tokens": (one.prompt_tokens or 0) + (one.completion_tokens or 0),
        "truncated": None if one.finish_reason is None else float(one.finish_reason == "length"),
    }.get(metric.source, getattr(one, metric.source, None))
    return [] if value is None else [float(value)]


def plain(made: list[Event], said: list[Feedback], metrics: tuple) -> dict:
    """The definition of the sums, unit by unit."""
    words = defaultdict(list)
    for one in said:
        words[one.request_id, one.metric].append(one.value)
    first: dict[str, Event] = {}
    for one in sorted(made, key=lambda one: one.at):
        if one.is_counted and not one.is_shadow:
            first.setdefault(one.unit, one)
    units = defaultdict(list)
    for metric in metrics:
        below = metric.denominator and KNOWN[metric.denominator]
        past = metric.covariate and KNOWN[metric.covariate]
        for unit, exposed in first.items():
            own = [one for one in made if one.unit == unit and not one.is_shadow]
            during = [o for o in own if o.is_counted and o.variant == exposed.variant]
            before = [o for o in own if not o.is_counted and o.at < exposed.at]
            xs = [v for o in during for v in observations(metric, o, words)]
            ys = [v for o in during for v in observations(below, o, words)] if below else []
            zs = [v for o in before for v in observations(past, o, words)] if past else []
            z = 0.0
            if past and zs:
                z = float(len(zs)) if past.name == "requests" else sum(zs) / len(zs)
            if not xs and not ys:
                continue
            x, y = sum(xs), float(len(xs))
            if metric.kind == "proportion":
                x, y = x / y, 1.0
            elif metric.kind == "ratio":
                y = sum(ys)
            elif metric.name == "requests":
                y = 1.0
            units[metric.name, exposed.variant].append((x, y, z))
    return {
        key: Moments.of(*(list(column) for column in zip(*rows, strict=True)))
        for key, rows in units.items()
    }


@pytest.mark.parametrize("tiny", [1e-200, -5e-324])
def test_numbers_that_are_all_but_0_are_summed(events: Events, tiny: float) -> None:
    """Their squares are too small for PostgreSQL, which refuses to tell any sum then."""
    ids = ("r1", "r2")
    events.add([event(id_, id_) for id_ in ids])
    given = [{"request_id": id_, "metric": "score", "value": tiny} for id_ in ids]
    events.add_feedback(T, [Feedback.parse(one) for one in given], 1.0)
    ratio = Metric("ratio", "requests", "ratio", "up", denominator="score")
    found = events.moments(E, [ratio], {**KNOWN, "ratio": ratio})["ratio"]["a"]
    assert found.n == 2
    assert estimate(found) is None
