"""How fast tokens come: decode steps, prefill, and many distinct loadouts in one batch."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median

from taskvectors.bench.engines import Adapter, EngineFailed, Kind
from taskvectors.bench.lab import Lab, cycled, medians
from taskvectors.bench.measures import Figure, ratios

DECODE_PROMPT, FLAT_PROMPT = 32, 1
FLAT_COUNTS = (1, 16, 64, 256)
FLAT_STEPS = 3
OF_PLAIN = "× plain's speed"


def decode(lab: Lab) -> list[Figure]:
    """A step of a running batch: base only, one loadout, many loadouts."""
    return [figure for batch in lab.settings.decode_batches for figure in _batch(lab, batch)]


def _batch(lab: Lab, batch: int) -> Iterator[Figure]:
    plain = []
    for variant, (label, plugin, stock) in _variants(lab, batch).items():
        ways: dict[Kind, Sequence[Adapter]] = {"plain": [None], "plugin": plugin, "stock": stock}
        times = _steps(lab, batch, ways)
        plain += times["plain"]
        seconds = medians(times)
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
        running = lab.engines[kind].start(cycled(adapters, batch), DECODE_PROMPT)
        if running < batch:
            raise EngineFailed(
                f"the {kind} engine runs {running} of {batch} requests side by side; give it more"
                " memory (VLLM_CPU_KVCACHE_SPACE, --memory) or name smaller --batches"
            )
    times = lab.rounds(lab.settings.rounds, {k: lab.engines[k].step for k in ways})
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
    times = lab.rounds(lab.settings.prefill_rounds, turns)
    seconds = medians(times)
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
        engine.start(cycled(mixes[name], batch), FLAT_PROMPT)
        seconds = median(engine.step() for _ in range(FLAT_STEPS))
        engine.drain()
        return seconds

    turns = {name: partial(turn, name) for name in mixes}
    return _flat_figures(lab.rounds(lab.settings.flat_rounds, turns), batch)


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
