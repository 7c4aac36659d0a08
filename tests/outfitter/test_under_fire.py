"""A gateway under load whose engine, Valkey and PostgreSQL are killed: the books must close.

What is asserted is what was counted, never how long anything took, but for the bound on hanging.
The load and the books are those of the benchmark, `python -m tests.benchmarks.fire`.
"""

import pytest

from tests.benchmarks.fire.asks import Ask
from tests.benchmarks.fire.battle import Plan, fight
from tests.benchmarks.fire.book import Book, End, Ending
from tests.benchmarks.fire.clients import Events
from tests.benchmarks.fire.site import TENANTS
from tests.benchmarks.fire.sums import check_usage

SEED = 41
DONE, EVENT = b"data: [DONE]", b'data: {"choices":[]}'
ERROR = b'data: {"error":{"message":"m","type":"t","param":null,"code":"engine_died"}}'


def test_under_fire_every_request_has_one_ending_and_the_books_close() -> None:
    """A few seconds, with a fixed seed, in which each of the three servers is killed."""
    found, book = fight(Plan(6.0, SEED, clients=24))
    assert book.problems == []
    assert set(found["kills"]) == {"engine", "valkey", "postgres"}
    ends = found["ends"]
    assert ends[End.ANSWERED.value]
    assert ends[End.REFUSED.value]
    assert ends[End.LEFT.value]
    assert sum(ends.values()) == found["requests"]


@pytest.mark.slow
def test_under_fire_for_half_an_hour_the_books_close() -> None:
    """The same, with more clients, and an engine that is started again ever more slowly."""
    found, book = fight(Plan(1800.0, SEED))
    assert book.problems == []
    assert min(found["kills"].values()) >= 10


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        ([EVENT, DONE], End.ANSWERED),
        ([EVENT, ERROR], End.CUT),
        ([EVENT, ERROR, DONE], End.CUT),
        ([EVENT], End.BROKEN),
        ([], End.BROKEN),
        ([EVENT, DONE, EVENT], End.BROKEN),
        ([ERROR, ERROR], End.BROKEN),
        ([EVENT, DONE, ERROR], End.BROKEN),
        ([ERROR.replace(b"engine_died", b"surprise")], End.BROKEN),
        ([b'data: {"error":"no object"}'], End.BROKEN),
    ],
)
def test_a_stream_has_exactly_one_end(lines: list[bytes], end: End) -> None:
    """The books call everything else broken."""
    events = Events(Ask("stream", "/v1/completions", {"stream": True}))
    for line in lines:
        events.feed(line)
    assert events.ending().end is end


@pytest.mark.parametrize(
    "ending",
    [
        Ending(End.HUNG),
        Ending(End.BROKEN, 200, was_heard=True),
        Ending(End.REFUSED, 500, "internal_error", was_heard=True),
        Ending(End.REFUSED, 404, "model_not_found", was_heard=True),
    ],
)
def test_what_must_not_be_is_a_problem(ending: Ending) -> None:
    """A request that hangs or breaks off, and a status that nobody asked for."""
    book = Book()
    book.relay("free", "plain", set(), ending, 1.0)
    assert book.num_problems == 1


@pytest.mark.parametrize(("counted", "problems"), [(2, 2), (3, 0), (4, 0), (5, 1)])
def test_usage_may_differ_only_by_what_was_not_heard_of(counted: int, problems: int) -> None:
    """Three requests were heard of, one client left before that."""
    book = Book()
    for _ in range(3):
        book.relay("free", "plain", set(), Ending(End.ANSWERED, 200, was_heard=True), 0.1)
    book.relay("free", "plain", set(), Ending(End.LEFT), 0.1)
    usage = {tenant: {"requests": 0} for tenant in TENANTS} | {"free": {"requests": counted}}
    check_usage(book, {"usage": usage, "loadout_use": {"free": 3}})
    assert book.num_problems == problems
