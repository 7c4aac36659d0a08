"""How long it takes to make a loadout ready, and until the first token comes."""

from collections.abc import Callable

from taskvectors.bench.lab import Lab, Turn, cycled, medians
from taskvectors.bench.measures import Figure, differences, error_of_median, ratios
from taskvectors.bench.server import Server
from taskvectors.spec import Loadout

FIRST_PROMPT = 8


def activation(lab: Lab) -> list[Figure]:
    """A loadout over resident vectors made ready, and an adapter of vLLM's own LoRA."""
    adapters = iter(cycled(lab.vectors.adapters, lab.settings.activations + 1))
    plugin, stock = lab.engines["plugin"], lab.engines["stock"]

    def new_loadout() -> float:
        return plugin.activate(lab.vectors.mixes(1, lab.generator)[0])

    turns: dict[str, Turn] = {
        "plugin": new_loadout,
        "stock": lambda: stock.activate(next(adapters)),
    }
    for turn in turns.values():
        turn()
    times = lab.rounds(lab.settings.activations, turns)
    seconds = medians(times)
    micro = {name: tuple(1e6 * value for value in values) for name, values in times.items()}
    ratio = ratios(times["stock"], times["plugin"])
    return [
        Figure("activation/plugin", "a new loadout: plugin", "µs", micro["plugin"], seconds),
        Figure("activation/stock", "a new adapter r8: stock", "µs", micro["stock"], seconds),
        Figure("activation/ratio", "activation: plugin over stock", "× faster", ratio, seconds),
    ]


def ttft(lab: Lab) -> list[Figure]:
    """Time to first token, alone, in the engine: a loadout never seen, and one seen before."""
    label = "in the engine: a new loadout adds to the first token"
    return [_added(lab, "ttft/added", label, lab.engines["plugin"].first_token)]


def server(lab: Lab) -> list[Figure]:
    """The same for a client of the API server."""
    label = "through the API server: a new loadout adds to the first token"
    with Server(lab.spec) as api:
        return [_added(lab, "server/added", label, api.first_token)]


def _added(lab: Lab, key: str, label: str, ask: Callable[[Loadout, int], float]) -> Figure:
    seen, *fresh = lab.vectors.mixes(lab.settings.pairs + 2, lab.generator, over_all=False)
    new = iter(fresh)
    turns: dict[str, Turn] = {
        "new": lambda: ask(next(new), FIRST_PROMPT),
        "seen": lambda: ask(seen, FIRST_PROMPT),
    }
    for turn in turns.values():
        turn()
    times = lab.rounds(lab.settings.pairs, turns)
    added = tuple(1e3 * value for value in differences(times["new"], times["seen"]))
    error = error_of_median(added, lab.settings.seed)
    return Figure(key, label, "ms", added, medians(times), error)
