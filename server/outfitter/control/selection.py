"""Does a selection of layers and modules name anything of the base? Pure."""

import difflib
import functools
from collections.abc import Iterable

from outfitter.waiting import check_may_wait
from taskvectors.selection import EVERYWHERE, Selection, layer_of

MAX_REMEMBERED = 1024
MAX_HINTS = 16


class Modules:
    """The modules of a base. A parameter's module is its name without the last component."""

    def __init__(self, parameters: Iterable[str]) -> None:
        self._names = sorted({name.rpartition(".")[0] for name in parameters})
        self._layers = sorted({n for name in self._names if (n := layer_of(name)) is not None})
        self._problem = functools.lru_cache(MAX_REMEMBERED)(self._find_problem)

    def problem(self, selection: Selection) -> str | None:
        """What of `selection` matches nothing, with a hint; None when every entry matches.

        The factors do not count: an entry with factor 0 excludes what it matches.
        """
        return None if selection == EVERYWHERE else self._problem(selection)

    def _find_problem(self, selection: Selection) -> str | None:
        check_may_wait()  # every module is looked at, and a hint looks at them again
        layers = tuple((first, last, 1.0) for first, last, _ in selection.layers)
        modules = tuple((glob, 1.0) for glob, _ in selection.modules)
        for first, last, _ in layers:
            if not any(first <= layer <= last for layer in self._layers):
                wanted = f"{first}-{last}" if first != last else str(first)
                return f"layers {wanted!r} match nothing of the base; {self._layers_hint()}"
        for entry in modules:
            if not self._match(Selection(modules=(entry,))):
                return f"modules {entry[0]!r} match nothing of the base; {self._hint(entry[0])}"
        if not self._match(Selection(layers, modules)):
            return "layers and modules have no parameter of the base in common"
        return None

    def _match(self, selection: Selection) -> bool:
        return any(selection.factor(name) for name in self._names)

    def _layers_hint(self) -> str:
        if not self._layers:
            return "it has no numbered layers"
        return f"it has layers {self._layers[0]} to {self._layers[-1]}"

    def _hint(self, glob: str) -> str:
        suggestion = ".".join(self._closest(part) for part in glob.split("."))
        if self._match(Selection(modules=((suggestion, 1.0),))):
            return f"did you mean {suggestion!r}?"
        more = ", …" if len(self._leaves) > MAX_HINTS else ""
        return f"its modules are called {', '.join(self._leaves[:MAX_HINTS])}{more}"

    def _closest(self, part: str) -> str:
        near = difflib.get_close_matches(part, self._components, n=1)
        return near[0] if near else part

    @functools.cached_property
    def _components(self) -> list[str]:
        parts = {part for name in self._names for part in name.split(".")}
        return sorted(part for part in parts if not part.isdecimal())

    @functools.cached_property
    def _leaves(self) -> list[str]:
        return sorted({name.rpartition(".")[2] for name in self._names})
