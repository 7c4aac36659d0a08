"""What an operator says of a tenant's limits is understood, or refused by name."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfitter.control.limits import GENEROUS, LARGEST, Limits, LimitsBook
from outfitter.errors import InvalidLimits, from_task_vector_error

WHOLE = (
    *("requests_per_minute", "tokens_per_minute", "tokens_per_day"),
    *("concurrent_requests", "stored_bytes", "queue"),
)


def test_nothing_is_limited_unless_it_is_said() -> None:
    """An empty mapping is no limits at all, and null takes a default away."""
    assert Limits.parse({}) == Limits()
    assert Limits.parse({}).given() == {}
    default = Limits(requests_per_minute=5, queue=3)
    assert Limits.parse({"requests_per_minute": None}, default) == Limits(queue=3)


@given(st.dictionaries(st.sampled_from(WHOLE), st.integers(1, LARGEST)))
def test_what_is_given_is_read_back(limits: dict) -> None:
    """`parse` and `given` are each other's reverse."""
    assert Limits.parse(limits).given() == limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"rpm": 5}, r"unknown limit 'rpm'; choose requests_per_minute, tokens_per_minute"),
        ({"requests_per_minute": -1}, r"requests_per_minute .* from 0 to \d+, .* not -1"),
        ({"requests_per_minute": True}, "requests_per_minute .* not True"),
        ({"tokens_per_day": 1.5}, r"tokens_per_day .* not 1\.5"),
        ({"tokens_per_minute": "9"}, "tokens_per_minute .* not '9'"),
        ({"stored_bytes": LARGEST + 1}, "stored_bytes .* not 9007199254740993"),
        ({"concurrent_requests": 0}, "concurrent_requests .* from 1 "),
        ({"queue": [1]}, "queue .* not a list"),
        ({"pool_share": 1.01}, r"pool_share must be a number from 0 to 1, .* not 1\.01"),
        ({"pool_share": float("nan")}, "pool_share .* not nan"),
        ({"pool_share": False}, "pool_share .* not False"),
    ],
)
def test_a_wrong_limit_is_named(limits: dict, message: str) -> None:
    """Key, value and what would be right, as a 400 in OpenAI's shape."""
    with pytest.raises(InvalidLimits, match=message) as caught:
        Limits.parse(limits)
    error = from_task_vector_error(caught.value)
    assert (error.status, error.code) == (400, "invalid_limits")


def test_a_tenant_without_limits_of_its_own_has_the_default() -> None:
    """And one with some keeps the rest of it."""
    book = LimitsBook.parse(
        {"default": {"queue": 9, "tokens_per_day": 7}, "tenants": {"acme": {"queue": 1}}}
    )
    assert book.of("other") == replace(GENEROUS, queue=9, tokens_per_day=7)
    assert book.of("acme") == replace(GENEROUS, queue=1, tokens_per_day=7)
    assert LimitsBook.parse(None).of("acme") == GENEROUS


@pytest.mark.parametrize(
    ("book", "message"),
    [
        ([], "the limits must be an object, not a list"),
        ({"tenant": {}}, "unknown key 'tenant'; choose default, tenants"),
        ({"default": 5}, "default must be an object"),
        ({"tenants": {"acme": {"x": 1}}}, r"tenants\.acme: unknown limit 'x'"),
        ({"tenants": {"acme": 5}}, r"tenants\.acme must be an object"),
    ],
)
def test_a_wrong_book_is_named(book: object, message: str) -> None:
    """Down to the tenant."""
    with pytest.raises(InvalidLimits, match=message):
        LimitsBook.parse(book)


def test_what_asks_no_model_has_generous_limits_which_null_takes_away() -> None:
    """So that listings alone cannot keep a server busy."""
    assert LimitsBook().of("acme").reads_per_minute == 6000
    book = LimitsBook.parse({"tenants": {"acme": {"reads_per_minute": None}}})
    assert book.of("acme").given() == {
        "comparisons_per_minute": 300,
        "feedback_per_minute": 100_000,
        "experiments": 1000,
    }
    assert book.of("zeta") == LimitsBook().default
