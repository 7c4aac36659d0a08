"""The scenarios: how each figure is measured. Engines take turns, step by step.

Within a round every engine, or every way of one engine, has one turn, in random order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np

from taskvectors.bench.engines import Adapter, Engine, EngineFailed, Kind
from taskvectors.bench.measures import Figure, differences, error_of_median, ratios
from taskvectors.bench.settings import Settings
from taskvectors.bench.vectors import Vectors

ALL: tuple[Kind, ...] = ("plain", "plugin", "stock")
DECODE_PROMPT, FIRST_PROMPT, FLAT_PROMPT = 32, 8, 1
FLAT_COUNTS = (1, 16, 64, 256)
FLAT_STEPS = 3
OF_PLAIN = "× plain's speed"

Name = TypeVar("Name", bound=str)
Turn = Callable[[], float]


@dataclass(frozen=True)
class Lab:
    """What scenarios work with.

    resident: of each vector, bytes of its arrays and bytes as the pool counts it. tick: called
    after each round.
    """

    settings: Settings
    engines: Mapping[Kind, Engine]
    vectors: Vectors
    resident: Mapping[str, tuple[int, int]]
    generator: np.random.Generator
    tick: Callable[[], None]


@dataclass(frozen=True)
class Scenario:
    """Which engines it wants, how many rounds it has, and how it is measured."""

    engines: tuple[Kind, ...]
    rounds: Callable[[Settings], int]
    measure: Callable[[Lab], list[Figure]]


def decode(lab: Lab) -> list[Figure]:
    """A step of a running batch: base only, one loadout, many loadouts."""
    return [figure for batch in lab.settings.decode_batches for figure in _batch(lab, batch)]


def _batch(lab: Lab, batch: int) -> Iterator[Figure]:
    plain = []
    for variant, (label, plugin, stock) in _variants(lab, batch).items():
        ways: dict[Kind, Sequence[Adapter]] = {"plain": [None], "plugin": plugin, "stock": stock}
        times = _steps(lab, batch, ways)
        plain += times["plain"]
        seconds = _medians(times)
        for kind in ("plugin", "stock"):
            yield Figure(
                f"decode/{batch}/{kind}/{variant}",
                f"batch {batch}: {kind}, {label[kind]}",
                OF_PLAIN,
                ratios(times["plain"], times[kind]),
                seconds,
            )
        yield Figure(
            f"decode/{batch}/stock-over-plugin/{variant}",
            f"batch {batch}: plugin over stock, {label['plugin']}",
            "× stock's speed",
            ratios(times["stock"], times["plugin"]),
            seconds,
        )
    yield Figure(f"decode/{batch}/plain", f"batch {batch}: plain", "s a step", tuple(plain), {})


def _variants(
    lab: Lab, batch: int
) -> dict[str, tuple[Mapping[str, str], Sequence[Adapter], Sequence[Adapter]]]:
    """By name: labels, the plugin's loadouts and stock's adapters."""
    many, adapters = lab.settings.many, lab.vectors.adapters
    mixes = lab.vectors.mixes(many, lab.generator)
    found: dict[str, tuple[Mapping[str, str], Sequence[Adapter], Sequence[Adapter]]] = {
        "base": ({"plugin": "base only", "stock": "base only"}, [None], [None]),
        "one": ({"plugin": "one loadout", "stock": "one adapter r8"}, mixes[:1], adapters[:1]),
    }
    if batch >= many:
        label = {"plugin": f"{many} loadouts", "stock": f"{many} adapters r8"}
        found["many"] = (label, mixes, adapters)
    return found


def _steps(lab: Lab, batch: int, ways: Mapping[Kind, Sequence[Adapter]]) -> dict[Kind, list[float]]:
    for kind, adapters in ways.items():
        running = lab.engines[kind].start(_cycled(adapters, batch), DECODE_PROMPT)
        if running < batch:
            raise EngineFailed(
                f"the {kind} engine runs {running} of {batch} requests side by side; give it more"
                " memory (VLLM_CPU_KVCACHE_SPACE, --memory) or name smaller --batches"
            )
    times = _rounds(lab, lab.settings.rounds, {k: lab.engines[k].step for k in ways})
    for kind in ways:
        lab.engines[kind].drain()
    return times


def prefill(lab: Lab) -> list[Figure]:
    """A long prompt, alone, with one loadout of two vectors or one adapter."""
    length = lab.settings.prefill_tokens
    [mix] = lab.vectors.mixes(1, lab.generator)
    ways: dict[Kind, Adapter] = {"plain": None, "plugin": mix, "stock": lab.vectors.adapters[0]}
    turns = {
        kind: partial(lab.engines[kind].first_token, adapter, length)
        for kind, adapter in ways.items()
    }
    for turn in turns.values():
        turn()
    times = _rounds(lab, lab.settings.prefill_rounds, turns)
    seconds = _medians(times)
    labels: dict[Kind, str] = {
        "plugin": "one loadout of two vectors",
        "stock": "one adapter r8",
    }
    return [
        Figure(
            f"prefill/{kind}",
            f"prefill of {length}: {kind}, {label}",
            OF_PLAIN,
            ratios(times["plain"], times[kind]),
            seconds,
        )
        for kind, label in labels.items()
    ]


def flat(lab: Lab) -> list[Figure]:
    """One large batch with ever more distinct loadouts of the same two vectors."""
    engine, vectors = lab.engines["plugin"], lab.vectors
    batch = engine.start([None] * lab.settings.flat_batch, FLAT_PROMPT)
    engine.drain()
    counts = [count for count in FLAT_COUNTS if count <= batch]
    mixes = {str(n): vectors.mixes(n, lab.generator, over_all=False) for n in counts}
    mixes["all"] = vectors.mixes(counts[-1], lab.generator)

    def turn(name: str) -> float:
        engine.start(_cycled(mixes[name], batch), FLAT_PROMPT)
        seconds = median(engine.step() for _ in range(FLAT_STEPS))
        engine.drain()
        return seconds

    turns = {name: partial(turn, name) for name in mixes}
    return _flat_figures(_rounds(lab, lab.settings.flat_rounds, turns), batch)


def _flat_figures(times: Mapping[str, list[float]], batch: int) -> list[Figure]:
    one = times["1"]
    figures = []
    for name, values in times.items():
        what = (
            "as many, of all eight vectors" if name == "all" else f"{name} loadouts of two vectors"
        )
        seconds = {"one loadout": median(one), "this": median(values)}
        label, unit = f"batch {batch}: {what}", "× one loadout's speed"
        figures.append(Figure(f"flat/{name}", label, unit, ratios(one, values), seconds))
    farthest = max(figures[1:-1] or figures[:1], key=lambda f: abs(f.spread.median - 1))
    sign = 1 if farthest.spread.median > 1 else -1
    change = tuple(sign * (sample - 1) for sample in farthest.samples)
    label = f"batch {batch}: largest change, 1 to {list(times)[-2]} loadouts"
    return [*figures[1:], Figure("flat/change", label, "of the speed", change, farthest.seconds)]


def activation(lab: Lab) -> list[Figure]:
    """A loadout over resident vectors made ready, and an adapter of vLLM's own LoRA."""
    adapters = iter(_cycled(lab.vectors.adapters, lab.settings.activations + 1))
    plugin, stock = lab.engines["plugin"], lab.engines["stock"]

    def new_loadout() -> float:
        return plugin.activate(lab.vectors.mixes(1, lab.generator)[0])

    turns: dict[str, Turn] = {
        "plugin": new_loadout,
        "stock": lambda: stock.activate(next(adapters)),
    }
    for turn in turns.values():
        turn()
    times = _rounds(lab, lab.settings.activations, turns)
    seconds = _medians(times)
    micro = {name: tuple(1e6 * value for value in values) for name, values in times.items()}
    ratio = ratios(times["stock"], times["plugin"])
    return [
        Figure("activation/plugin", "a new loadout: plugin", "µs", micro["plugin"], seconds),
        Figure("activation/stock", "a new adapter r8: stock", "µs", micro["stock"], seconds),
        Figure("activation/ratio", "activation: plugin over stock", "× faster", ratio, seconds),
    ]


def ttft(lab: Lab) -> list[Figure]:
    """Time to first token, alone: a loadout that was never seen and one that was."""
    engine = lab.engines["plugin"]
    seen, *fresh = lab.vectors.mixes(lab.settings.pairs + 2, lab.generator, over_all=False)
    new = iter(fresh)
    turns: dict[str, Turn] = {
        "new": lambda: engine.first_token(next(new), FIRST_PROMPT),
        "seen": lambda: engine.first_token(seen, FIRST_PROMPT),
    }
    for turn in turns.values():
        turn()
    times = _rounds(lab, lab.settings.pairs, turns)
    seconds = _medians(times)
    added = tuple(1e3 * value for value in differences(times["new"], times["seen"]))
    error = error_of_median(added, lab.settings.seed)
    label = "a never-seen loadout adds to the first token"
    return [Figure("ttft/added", label, "ms", added, seconds, error)]


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
}


def _num_variants(settings: Settings) -> int:
    return sum(2 + (batch >= settings.many) for batch in settings.decode_batches)


def _rounds(lab: Lab, count: int, turns: Mapping[Name, Turn]) -> dict[Name, list[float]]:
    """Seconds of `count` rounds; nobody has the same predecessor always."""
    times: dict[Name, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for _ in range(count):
        for i in lab.generator.permutation(len(names)):
            times[names[i]].append(turns[names[i]]())
        lab.tick()
    return times


def _medians(times: Mapping[Name, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in times.items()}


def _cycled(adapters: Sequence[Adapter], count: int) -> list[Adapter]:
    return [adapters[i % len(adapters)] for i in range(count)]
