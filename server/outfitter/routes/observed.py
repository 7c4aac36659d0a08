"""What becomes of a relayed request, written down while it is served and told once."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fastapi import Request

from outfitter.control.outcome import CLIENT_LEFT, InFlight, Outcome
from outfitter.control.principal import Principal
from outfitter.errors import ApiError, from_task_vector_error
from outfitter.experiments.events.recorder import Recorder, Recording
from outfitter.gateway import Gateway
from taskvectors.errors import TaskVectorError

log = logging.getLogger(__name__)

VARIANT_HEADER = "x-outfitter-variant"

Observer = Callable[[Outcome], None]


class Observed:
    """The outcome of one request, and those who are to be told of it."""

    def __init__(
        self,
        outcome: Outcome,
        observers: Sequence[Observer],
        in_flight: InFlight,
        recorder: Recorder,
    ) -> None:
        self.outcome = outcome
        self._recorder = recorder
        self.then: Observer = lambda outcome: None  # noqa: ARG005
        """Told after all others; it is of this request alone."""
        self._observers = observers
        self._in_flight = in_flight
        self._in_flight.requests += 1

    def recording(self) -> Recording | None:
        """What is shown the answer; None where no experiment serves it."""
        return self._recorder.begin(self.outcome)

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say of the variant that serves, an error's, too."""
        exposure = self.outcome.exposure
        return {} if exposure is None else {VARIANT_HEADER: exposure.label}

    def end(self, status: int, code: str | None = None) -> None:
        """Tell every observer that the request has ended; only the first call counts."""
        outcome = self.outcome
        if outcome.ended is not None:
            return
        outcome.ended, outcome.status, outcome.code = time.monotonic(), status, code
        if status == CLIENT_LEFT and not outcome.prompt_tokens:  # the engine tells at the end only
            outcome.prompt_tokens = outcome.estimate
        self._in_flight.requests -= 1
        for observer in (*self._observers, self.then):
            try:
                observer(outcome)
            except Exception:  # an observer harms neither the request nor the others
                log.exception("an observer of requests failed")

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """End with the status of the error that is raised within, if any."""
        try:
            yield
        except ApiError as error:
            has_left = error.code == "incomplete_body"
            self.end(CLIENT_LEFT if has_left else error.status, error.code)
            error.headers = {**self.headers, **error.headers}
            raise
        except TaskVectorError as error:
            told = from_task_vector_error(error)
            self.end(told.status, told.code)
            raise
        except asyncio.CancelledError:  # only the server does this, when draining took too long
            self.end(503, "shutting_down")
            raise
        except BaseException:
            self.end(500, "internal_error")
            raise

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Count one stream that is open."""
        self._in_flight.streams += 1
        try:
            yield
        finally:
            self._in_flight.streams -= 1


def observe(request: Request, gateway: Gateway, principal: Principal, route: str) -> Observed:
    """Begin to observe a request; it must be ended, by `refusals` or by its response."""
    outcome = Outcome(
        request_id=getattr(request.state, "request_id", ""),
        principal=principal,
        route=route,
        model="",
        saved_model=None,
        loadout="",
        is_stream=False,
        began=time.monotonic(),
    )
    request.state.outcome = outcome
    return Observed(outcome, gateway.observers, gateway.in_flight, gateway.recorder)
