"""What is counted per minute and day, when it begins anew, and what a client is told of it. Pure.

Windows are fixed and follow the clock, so that every server knows them without asking: a day
begins at midnight UTC, a minute at a second of its own for each tenant.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outfitter.control.limits import Limits
from outfitter.errors import ApiError

MINUTE_S, DAY_S = 60, 86_400
REQUESTS, TOKENS = "requests", "tokens"
"""What is counted, in OpenAI's words."""


@dataclass(frozen=True)
class Window:
    """A limit on what is counted in a stretch of time. name: the limit's. seconds: how long."""

    name: str
    kind: str
    limit: int
    seconds: int

    def number(self, tenant: str, now: float) -> int:
        """Which window it is at `now`, seconds since 1970."""
        return int((now + self._offset(tenant)) // self.seconds)

    def resets_in(self, tenant: str, now: float) -> float:
        """Seconds until the next one begins."""
        return self.seconds - (now + self._offset(tenant)) % self.seconds

    def _offset(self, tenant: str) -> int:
        """Else all tenants would come back in the same second of a minute."""
        return zlib.crc32(tenant.encode()) % self.seconds if self.seconds < DAY_S else 0


@dataclass(frozen=True)
class Standing:
    """How much of a window is used, this request included if it is counted by it."""

    window: Window
    used: int
    resets_in: float

    @property
    def remaining(self) -> int:
        """What is left."""
        return max(0, self.window.limit - self.used)

    @property
    def is_exceeded(self) -> bool:
        """Whether the request is too much: one beyond the limit, or after all tokens were used."""
        over = self.used - self.window.limit
        return over > 0 if self.window.kind == REQUESTS else over >= 0


def windows_of(limits: Limits) -> tuple[Window, ...]:
    """What is counted for a tenant."""
    wanted = (
        ("requests_per_minute", REQUESTS, limits.requests_per_minute, MINUTE_S),
        ("tokens_per_minute", TOKENS, limits.tokens_per_minute, MINUTE_S),
        ("tokens_per_day", TOKENS, limits.tokens_per_day, DAY_S),
    )
    return tuple(
        Window(name, kind, limit, seconds)
        for name, kind, limit, seconds in wanted
        if limit is not None
    )


def reading_window(name: str, limits: Limits) -> Window | None:
    """That of a limit on what asks no model, `reads_per_minute` for one; None where it is none."""
    limit = getattr(limits, name)
    return None if limit is None else Window(name, REQUESTS, limit, MINUTE_S)


def headers_of(standings: Iterable[Standing]) -> dict[str, str]:
    """OpenAI's headers; where tokens are counted twice, of the window with less left."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        kind = standing.window.kind
        if kind not in tightest or standing.remaining < tightest[kind].remaining:
            tightest[kind] = standing
    headers = {}
    for kind, standing in tightest.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(standing.window.limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{kind}"] = format_duration(standing.resets_in)
    return headers


def refusal(tenant: str, standings: Sequence[Standing]) -> ApiError | None:
    """Why a request is too much, by the window that takes longest; None when it is not."""
    exceeded = [standing for standing in standings if standing.is_exceeded]
    if not exceeded:
        return None
    worst = max(exceeded, key=lambda standing: standing.resets_in)
    window = worst.window
    used = min(worst.used, window.limit) if window.kind == REQUESTS else worst.used
    message = (
        f"Rate limit reached for tenant {tenant!r} on {window.name}: limit {window.limit},"
        f" used {used}. Please try again in {format_duration(worst.resets_in)}."
    )
    headers = {"retry-after": retry_after(worst.resets_in), **headers_of(standings)}
    return ApiError(429, message, "rate_limit_exceeded", None, window.kind, headers)


def retry_after(seconds: float) -> str:
    """Whole seconds after which a wait is surely over."""
    return str(max(1, math.ceil(seconds)))


def format_duration(seconds: float) -> str:
    """As Go and OpenAI write it: `120ms`, `1s`, `8.64s`, `6m0s`, `1h0m30s`; rounded up to ms."""
    millis = math.ceil(max(0.0, seconds) * 1000 - 1e-6)
    if 0 < millis < 1000:
        return f"{millis}ms"
    minutes, millis = divmod(millis, 60_000)
    text = f"{millis / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
