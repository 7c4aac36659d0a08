"""What an experiment keeps of a request that it served. Pure."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from outfitter.control.outcome import CLIENT_LEFT, Outcome
from outfitter.control.prices import Prices

TOO_MANY = 429
"""The status of a request whose turn never came: no variant has served it."""


class BadEvent(ValueError):
    """What was read is no event."""


@dataclass(frozen=True)
class Event:
    """One request of one variant; names and meanings are those of `RequestRow`.

    The same event may come twice; with grades it replaces itself without them.
    """

    experiment: str
    request_id: str
    tenant: str
    variant: str
    version: int
    unit: str
    at: float
    is_counted: bool
    is_shadow: bool
    status: int
    error: int
    latency_s: float | None
    first_token_s: float | None
    inter_token_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cost: float
    finish_reason: str | None = None
    grades: Mapping[str, float] | None = None

    @classmethod
    def of(
        cls,
        outcome: Outcome,
        status: int,
        prices: Prices,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> Self | None:
        """That of a request that ends with `status`; None where it is not to be kept.

        It is kept if it counts, or tells the past of a unit that may be exposed later. One that
        failed, or whose client left, has no latency.
        """
        exposure = outcome.exposure
        if exposure is None or exposure.unit is None or status == TOO_MANY:
            return None
        if not (exposure.is_counted or exposure.is_before):
            return None
        is_error = status >= 400 and status != CLIENT_LEFT
        ended = now() if outcome.ended is None else outcome.ended
        has_tokens = not is_error or outcome.completion_tokens > 0
        return cls(
            experiment=exposure.experiment,
            request_id=outcome.request_id,
            tenant=outcome.principal.tenant,
            variant=exposure.variant,
            version=exposure.version,
            unit=exposure.unit,
            at=clock(),
            is_counted=exposure.is_counted,
            is_shadow=exposure.is_shadow,
            status=status,
            error=int(is_error),
            latency_s=ended - outcome.began if status < 400 else None,
            first_token_s=outcome.first_token_seconds,
            inter_token_s=outcome.inter_token_seconds,
            prompt_tokens=outcome.prompt_tokens if has_tokens else None,
            completion_tokens=outcome.completion_tokens if has_tokens else None,
            cached_tokens=outcome.cached_tokens if has_tokens else None,
            cost=prices.cost(
                outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens
            ),
            finish_reason=outcome.finish_reason,
        )

    def dump(self) -> bytes:
        """One line of JSON, without its end."""
        return json.dumps(vars(self), separators=(",", ":")).encode()

    @classmethod
    def load(cls, line: bytes) -> Self:
        """What `dump` wrote; raises BadEvent. Fields of a newer Outfitter are left out."""
        try:
            given = json.loads(line)
            return cls(**{name: given[name] for name in _NAMES if name in given})
        except (ValueError, TypeError, RecursionError) as error:
            raise BadEvent(f"no event: {line[:80]!r} ({error})") from error

    def row(self) -> dict[str, Any]:
        """As the table has it."""
        return dict(vars(self))


_NAMES = tuple(item.name for item in fields(Event))
