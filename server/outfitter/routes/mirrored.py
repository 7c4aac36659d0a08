"""The copies of a request that shadow variants get once it is answered; they answer to nobody."""

import asyncio
import random
import time
from dataclasses import dataclass, replace
from functools import partial

from starlette.types import Message

from outfitter.control.experiments.assign import mirrored
from outfitter.control.experiments.choice import Choice
from outfitter.control.outcome import InFlight, Outcome
from outfitter.engine.rewrite import Identity
from outfitter.experiments.shadow import Copy
from outfitter.gateway import Gateway
from outfitter.routes.observed import Observed
from outfitter.routes.question import Question
from outfitter.routes.relayed import RelayedResponse

MAX_ID = 128


@dataclass(frozen=True)
class Mirror:
    """Sends copies of one request: uncharged, and told to `Gateway.shadow_observers` only.

    nbytes: of its body.
    """

    gateway: Gateway
    choice: Choice
    question: Question
    nbytes: int

    def __call__(self, outcome: Outcome) -> None:
        """To be told of the outcome of the request itself."""
        if outcome.status != 200:
            return
        shares = self.choice.shadows
        draws = [random.random() for _ in shares]  # noqa: S311
        for key in mirrored(shares, draws):
            send = partial(self._send, outcome, key)
            self.gateway.shadows.offer(Copy(send, self.nbytes))

    async def _send(self, mirrored_outcome: Outcome, key: str) -> None:
        """Ask the engine, and let its answer go. Raises ApiError, TaskVectorError."""
        gateway = self.gateway
        relay = gateway.ready_relay()
        outcome = _outcome(mirrored_outcome, key)
        observed = Observed(outcome, gateway.shadow_observers, InFlight(), gateway.recorder)
        with observed.refusals():
            pin = await gateway.pin(self.choice.experiment, key)
            request = self.question.named(outcome.request_id).served_by(pin.plan.loadout)
            identity = Identity(outcome.model, pin.plan.label, dialect=self.question.route.dialect)
            response = RelayedResponse(relay, request, identity, observed)
        await response({"type": "http"}, _stay, _discard)


def _outcome(of: Outcome, key: str) -> Outcome:
    """A copy's, which begins now."""
    assert of.exposure is not None
    exposure = replace(of.exposure, variant=key, is_shadow=True)
    return Outcome(
        request_id=f"{of.request_id}:{key}"[-MAX_ID:],
        principal=of.principal,
        route=of.route,
        model=of.model,
        saved_model=None,
        loadout="",
        is_stream=of.is_stream,
        began=time.monotonic(),
        exposure=exposure,
    )


async def _stay() -> Message:
    """Whoever never leaves; until it is cancelled."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


async def _discard(_: Message) -> None:
    """Whoever listens to nothing."""
