"""Events for tests, and tests that run in an event loop."""

import asyncio
import functools
from collections.abc import Awaitable, Callable

from outfitter.control.experiments.event import Event

E, T = "acme/tone", "acme"


def looped(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


def event(request_id: str, unit: str = "u", variant: str = "a", at: float = 1.0, **more: object):
    """A request that went well."""
    fields: dict = {
        "experiment": E,
        "request_id": request_id,
        "tenant": T,
        "variant": variant,
        "version": 1,
        "unit": unit,
        "at": at,
        "is_counted": True,
        "is_shadow": False,
        "status": 200,
        "error": 0,
        "latency_s": 0.5,
        "first_token_s": None,
        "inter_token_s": None,
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "cached_tokens": 1,
        "cost": 0.25,
        "finish_reason": "stop",
    }
    return Event(**{**fields, **more})
