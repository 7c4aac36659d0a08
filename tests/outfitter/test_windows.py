"""What is counted per minute and day follows the clock, and is told as OpenAI tells it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfitter.control.limits import Limits
from outfitter.control.windows import (
    DAY_S,
    MINUTE_S,
    Standing,
    Window,
    format_duration,
    headers_of,
    refusal,
    windows_of,
)

RPM, TPM, TPD = windows_of(
    Limits(requests_per_minute=60, tokens_per_minute=1000, tokens_per_day=5000)
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (90.5, "1m30.5s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86399.25, "23h59m59.25s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Which is how Go does, rounded up so that nobody comes back too early."""
    assert format_duration(seconds) == text


@given(st.text(), st.floats(0, 4e9), st.sampled_from([RPM, TPM, TPD]))
def test_a_window_ends_when_it_says(tenant: str, now: float, window: Window) -> None:
    """The next one has the next number, and begins at the reset to the microsecond."""
    number, resets_in = window.number(tenant, now), window.resets_in(tenant, now)
    assert 0 < resets_in <= window.seconds
    assert window.number(tenant, now + resets_in + 1e-5) == number + 1
    assert window.number(tenant, max(now, now + resets_in - 1e-5)) == number


def test_days_begin_at_midnight_and_minutes_are_spread() -> None:
    """All tenants would come back in one second else."""
    assert {TPD.resets_in(name, 7 * DAY_S + 10) for name in "abc"} == {DAY_S - 10}
    assert len({RPM.resets_in(f"tenant {i}", 0) for i in range(200)}) > MINUTE_S / 2


def test_headers_tell_the_tighter_of_two_windows() -> None:
    """A day's tokens where fewer of them are left than of the minute's."""
    standings = [Standing(RPM, 1, 12.5), Standing(TPM, 100, 30.0), Standing(TPD, 4500, 7200.0)]
    assert headers_of(standings) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "12.5s",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "2h0m0s",
    }


def test_the_last_request_within_a_limit_is_let_in_and_the_next_is_not() -> None:
    """Requests are counted before, tokens after: all used up is too much."""
    assert refusal("acme", [Standing(RPM, 60, 1.0), Standing(TPM, 999, 1.0)]) is None
    for standing in (Standing(RPM, 61, 1.0), Standing(TPM, 1000, 1.0)):
        assert refusal("acme", [standing]) is not None


def test_a_refusal_names_limit_value_and_when_in_openais_shape() -> None:
    """By the window that takes longest, as nothing helps before."""
    error = refusal("acme", [Standing(RPM, 61, 0.4), Standing(TPM, 1200, 30.2)])
    assert error is not None
    assert error.status == 429
    assert error.body == {
        "error": {
            "message": "Rate limit reached for tenant 'acme' on tokens_per_minute: limit 1000,"
            " used 1200. Please try again in 30.2s.",
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert error.headers["retry-after"] == "31"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-tokens"] == "30.2s"
    over = refusal("acme", [Standing(RPM, 75, 0.4)])
    assert over is not None
    assert "limit 60, used 60. Please try again in 400ms." in over.message
    assert over.headers["retry-after"] == "1"


def test_a_limit_of_zero_lets_nobody_in() -> None:
    """Also of tokens, before any was used."""
    for limits in (Limits(requests_per_minute=0), Limits(tokens_per_day=0)):
        [window] = windows_of(limits)
        used = 1 if window.kind == "requests" else 0
        assert refusal("acme", [Standing(window, used, 9.0)]) is not None
