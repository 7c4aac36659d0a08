"""The scenarios by name, and what each needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taskvectors.bench.engines import Kind
from taskvectors.bench.lab import Lab
from taskvectors.bench.latencies import activation, server, ttft
from taskvectors.bench.measures import Figure
from taskvectors.bench.settings import Settings
from taskvectors.bench.speeds import decode, flat, prefill

ALL: tuple[Kind, ...] = ("plain", "plugin", "stock")


@dataclass(frozen=True)
class Scenario:
    """Which engines it wants, how many rounds it has, and how it is measured."""

    engines: tuple[Kind, ...]
    rounds: Callable[[Settings], int]
    measure: Callable[[Lab], list[Figure]]


def memory(lab: Lab) -> list[Figure]:
    """Bytes that a resident vector keeps, as a share of its file."""
    has_arrays = all(held > 0 for held, _ in lab.resident.values())
    what = "bytes of its arrays" if has_arrays else "as the pool counts it"
    shares: dict[str, list[float]] = {}
    for digest, (held, counted) in lab.resident.items():
        share = (held if has_arrays else counted) / lab.vectors.nbytes[digest]
        shares.setdefault(lab.vectors.names[digest], []).append(share)
    figures = [
        Figure(f"memory/{name}", f"{name}, {what}", "× its file", tuple(values), {})
        for name, values in shares.items()
    ]
    largest = max(max(values) for values in shares.values())
    lab.tick()
    return [*figures, Figure("memory/largest", f"largest, {what}", "× its file", (largest,), {})]


SCENARIOS: Mapping[str, Scenario] = {
    "memory": Scenario(("plugin",), lambda _: 1, memory),
    "decode": Scenario(ALL, lambda s: s.rounds * _num_variants(s), decode),
    "prefill": Scenario(ALL, lambda s: s.prefill_rounds, prefill),
    "flat": Scenario(("plugin",), lambda s: s.flat_rounds, flat),
    "activation": Scenario(("plugin", "stock"), lambda s: s.activations, activation),
    "ttft": Scenario(("plugin",), lambda s: s.pairs, ttft),
    "server": Scenario(("plugin",), lambda s: s.pairs, server),
}


def _num_variants(settings: Settings) -> int:
    return sum(2 + (batch >= settings.many) for batch in settings.decode_batches)
