"""What clients ask for, drawn by chance: models, mixes, streams, and how they behave meanwhile."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.fire.site import NUM_VECTORS

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """One request to the engine.

    allowed: statuses beyond the usual. leaves_after: seconds until the client goes away. pause: its
    seconds between two reads. codes: of the error in its stream, beyond the usual.
    """

    kind: str
    path: str
    body: dict[str, Any]
    allowed: set[int] = field(default_factory=set)
    leaves_after: float | None = None
    pause: float = 0.0
    codes: tuple[str, ...] = ()

    @property
    def is_stream(self) -> bool:
        """Whether events are asked for."""
        return self.body.get("stream") is True


def draw(dice: random.Random, tenant: str, base: str) -> Ask:
    """A request of a tenant's; the stand-in engine does what its prompt says."""
    [(make, _)] = dice.choices(_KINDS, [weight for _, weight in _KINDS])
    return make(dice, {**_model(dice, tenant, base), "max_tokens": 8})


def quick(dice: random.Random, tenant: str, base: str) -> Ask:
    """One of a flood."""
    return _plain(dice, {**_model(dice, tenant, base), "max_tokens": 4})


def _model(dice: random.Random, tenant: str, base: str) -> dict[str, Any]:
    """The base, a saved loadout, or a mix that nobody asked for before.

    Half of the names say their version, so that they outlast an outage of the catalog.
    """
    chance = dice.random()
    version = dice.choice(("", "@1"))
    if chance < 0.3:
        return {"model": base}
    if chance < 0.65:
        return {"model": f"{tenant}/bot{version}"}
    names = dice.sample(range(NUM_VECTORS), dice.randint(1, 3))
    mix = {f"{tenant}/v{k}{version}": round(dice.uniform(-1, 1), 6) for k in names}
    return {"model": base, "task_vectors": mix}


def _plain(dice: random.Random, body: dict[str, Any]) -> Ask:
    return Ask("plain", COMPLETE, {**body, "prompt": "hi there"})


def _waiting(dice: random.Random, body: dict[str, Any]) -> Ask:
    prompt = f"sleep {dice.uniform(0.1, 0.6):.3f}"
    return Ask("plain that takes a while", COMPLETE, {**body, "prompt": prompt, "max_tokens": 32})


def _stream(dice: random.Random, body: dict[str, Any]) -> Ask:
    told = {"stream": True, "stream_options": {"include_usage": True}}
    return Ask("stream", COMPLETE, {**body, "prompt": "hi there", **told})


def _chat(dice: random.Random, body: dict[str, Any]) -> Ask:
    messages = [{"role": "user", "content": "hi there"}]
    return Ask("chat stream", CHAT, {**body, "messages": messages, "stream": True})


def _slow_stream(dice: random.Random, body: dict[str, Any]) -> Ask:
    """The engine takes a while from event to event."""
    more = {"prompt": "slowly", "stream": True, "max_tokens": 48}
    return Ask("stream that takes a while", COMPLETE, {**body, **more})


def _leaver(dice: random.Random, body: dict[str, Any]) -> Ask:
    after = dice.uniform(0.0, 0.5)
    return Ask("leaves a plain one", COMPLETE, {**body, **_endless("hang")}, leaves_after=after)


def _stream_leaver(dice: random.Random, body: dict[str, Any]) -> Ask:
    fields = {**body, **_endless("hang midway"), "stream": True}
    return Ask("leaves a stream", COMPLETE, fields, leaves_after=dice.uniform(0.0, 1.0))


def _slow_reader(dice: random.Random, body: dict[str, Any]) -> Ask:
    """The engine is as fast as it can; the client is not."""
    fields = {**body, **_endless("flood"), "stream": True}
    after, pause = dice.uniform(1.0, 4.0), dice.uniform(0.02, 0.2)
    return Ask("reads slowly", COMPLETE, fields, leaves_after=after, pause=pause)


def _failing(dice: random.Random, body: dict[str, Any]) -> Ask:
    fields = {**body, "prompt": "fail midway", "stream": True}
    return Ask("fails midway", COMPLETE, fields, codes=("None",))


def _refused(dice: random.Random, body: dict[str, Any]) -> Ask:
    return Ask("refused by the engine", COMPLETE, {**body, "prompt": "vllm error"}, allowed={400})


def _unknown(dice: random.Random, body: dict[str, Any]) -> Ask:
    fields = {**body, "model": f"free/none{dice.randrange(10)}", "prompt": "hi"}
    fields.pop("task_vectors", None)
    return Ask("unknown model", COMPLETE, fields, allowed={404})


def _endless(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 900, "ignore_eos": True}


_KINDS: tuple[tuple[Callable[[random.Random, dict[str, Any]], Ask], float], ...] = (
    (_plain, 30),
    (_stream, 20),
    (_chat, 12),
    (_waiting, 10),
    (_slow_stream, 8),
    (_leaver, 6),
    (_stream_leaver, 6),
    (_slow_reader, 3),
    (_failing, 2),
    (_refused, 2),
    (_unknown, 1),
)
