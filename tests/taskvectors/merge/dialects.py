"""How much implementations of one method differ, measured, and the tables of docs/dialects.md.

    python -m tests.taskvectors.merge.dialects

writes the tables anew.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft.utils.merge_utils as peft
import torch

from taskvectors.delta import DenseDelta
from taskvectors.method import Method, Parameter
from taskvectors.methods import METHODS
from tests.taskvectors.making import save_checkpoint
from tests.taskvectors.merge.drawing import Dense, Drawn, values_of, vector_of
from tests.taskvectors.merge.oracles import (
    by_peft,
    mergekit,
    one_by_mergekit,
    ties_of_the_authors,
    with_our_draws,
)

PAGE = Path(__file__).parents[3] / "docs" / "dialects.md"
SEED = 20
SHAPES = {"layers.0.up.weight": (64, 96), "layers.0.down.weight": (96, 64), "norm.weight": (256,)}
SPREADS = {"layers.0.up.weight": 1.0, "layers.0.down.weight": 0.5, "norm.weight": 0.1}
WEIGHTS = ((1.0, 1.0, 1.0), (1.0, 0.5, 0.25), (1.0, 1.0, -0.5))
SAME = 1e-5
"""Of the largest magnitude: entries nearer than this are the same."""


@dataclass(frozen=True)
class Comparison:
    """Two merges of the same vectors. is_weighted: False where one of them takes equal weights."""

    left: str
    right: str
    merge_left: Callable[[Drawn], Dense]
    merge_right: Callable[[Drawn], Dense]
    is_weighted: bool = True


def comparisons(base: Path) -> Sequence[Comparison]:
    """What the page compares. base: a checkpoint of SHAPES."""

    def ours(method: str, **parameters: Any) -> Callable[[Drawn], Dense]:
        return lambda case: case.merged(method, base=base, **parameters)

    numel = sum(int(np.prod(shape)) for shape in SHAPES.values())
    ties = {"density": 0.2, "normalize": True}
    dare = {"density": 0.3}
    della = {"density": 0.5, "epsilon": 0.15, "normalize": True}
    ties_original = ours("ties_original", density=0.2)

    def drawn_by_mergekit(method: str, **parameters: Any) -> Callable[[Drawn], Dense]:
        return lambda case: with_our_draws(
            case, 0, lambda name: one_by_mergekit(case, name, method, **parameters)
        )

    def drawn_by_peft(method: str) -> Callable[[Drawn], Dense]:
        return lambda case: with_our_draws(
            case,
            0,
            lambda name: getattr(peft, method)(
                case.tensors(name, torch.float32), torch.tensor(case.weights), dare["density"]
            ).numpy(),
        )

    def of_the_authors(case: Drawn) -> Dense:
        return ties_of_the_authors(case, 0.2, "mean", 1.0, numel)

    rows: list[tuple[Any, ...]] = [
        (
            "`linear`",
            "mergekit `task_arithmetic`",
            ours("linear"),
            lambda c: mergekit(c, "task_arithmetic"),
        ),
        (
            "`linear`",
            "PEFT `task_arithmetic`",
            ours("linear"),
            lambda c: by_peft(c, "task_arithmetic"),
        ),
        ("`ties`", "mergekit `ties`", ours("ties", **ties), lambda c: mergekit(c, "ties", **ties)),
        ("`ties_peft`", "PEFT `ties`", ours("ties_peft"), lambda c: by_peft(c, "ties", 0.2)),
        ("`ties_original`", "the authors' algorithm", ties_original, of_the_authors, False),
        ("`ties`", "`ties_peft`", ours("ties", **ties), ours("ties_peft")),
        ("`ties`", "`ties_original`", ours("ties", **ties), ties_original, False),
        (
            "`ties`",
            "`ties` with `normalize: false`",
            ours("ties", **ties),
            ours("ties", normalize=False),
        ),
        (
            "`ties_peft`",
            "`ties_peft` with `majority_sign: frequency`",
            ours("ties_peft"),
            ours("ties_peft", majority_sign="frequency"),
        ),
        (
            "`dare_linear`",
            "PEFT `dare_linear`",
            ours("dare_linear", **dare),
            drawn_by_peft("dare_linear"),
        ),
        (
            "`dare_linear`",
            "mergekit `dare_linear`",
            ours("dare_linear", **dare),
            drawn_by_mergekit("dare_linear", rescale=True, **dare),
        ),
        (
            "`dare_linear` with `rescale: l1`",
            "mergekit `dare_linear`",
            ours("dare_linear", rescale="l1", **dare),
            drawn_by_mergekit("dare_linear", rescale=True, **dare),
        ),
        ("`dare_ties`", "PEFT `dare_ties`", ours("dare_ties", **dare), drawn_by_peft("dare_ties")),
        (
            "`dare_ties` with `rescale: l1`",
            "mergekit `dare_ties`",
            ours("dare_ties", rescale="l1", **dare),
            drawn_by_mergekit("dare_ties", rescale=True, **dare),
        ),
        (
            "`della`",
            "mergekit `della`",
            ours("della"),
            drawn_by_mergekit("della", rescale=True, **della),
        ),
        (
            "`della` with `rescale: l1`",
            "mergekit `della`",
            ours("della", rescale="l1"),
            drawn_by_mergekit("della", rescale=True, **della),
        ),
        (
            "`breadcrumbs`",
            "mergekit `breadcrumbs`",
            ours("breadcrumbs"),
            lambda c: mergekit(c, "breadcrumbs", density=0.1),
        ),
        (
            "`sce`",
            "mergekit `sce`",
            ours("sce", select_topk=0.5),
            lambda c: mergekit(c, "sce", select_topk=0.5),
            False,
        ),
    ]
    return [Comparison(*row) for row in rows]


def example(weights: Sequence[float]) -> Drawn:
    """Three dense vectors of normal values, whose parameters differ in scale."""
    rng = np.random.default_rng(SEED)
    vectors = [
        vector_of(
            {
                name: DenseDelta(values_of(rng, shape, False) * np.float32(SPREADS[name]))
                for name, shape in SHAPES.items()
            }
        )
        for _ in weights
    ]
    return Drawn(vectors, list(weights), dict(SHAPES))


def share_that_differs(left: Dense, right: Dense) -> float:
    """Of the entries that one of the merges changes."""
    ours, theirs = (np.concatenate([d[name].ravel() for name in SHAPES]) for d in (left, right))
    changed = (ours != 0) | (theirs != 0)
    largest = max(np.abs(ours).max(), np.abs(theirs).max())
    differ = np.abs(ours - theirs) > SAME * largest
    return float(np.count_nonzero(differ) / np.count_nonzero(changed))


def compared(base: Path) -> str:
    """The table of shares."""
    lines = [
        "| here | there | equal weights | 1, ½, ¼ | 1, 1, −½ |",
        "|---|---|---|---|---|",
    ]
    for comparison in comparisons(base):
        cells = [comparison.left, comparison.right]
        for weights in WEIGHTS:
            if not comparison.is_weighted and weights != WEIGHTS[0]:
                cells.append("takes no weights")
                continue
            case = example(weights)
            share = share_that_differs(comparison.merge_left(case), comparison.merge_right(case))
            cells.append("**0**" if share == 0 else f"{100 * share:.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def methods() -> str:
    """The table of methods."""
    lines = [
        "| method | what it does | paper | dialect | weights | vectors | per request |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS.values():
        cells = (
            f"`{method.name}`",
            method.summary,
            method.paper,
            method.dialect,
            "yes" if method.is_weighted else "no",
            _count(method),
            "yes" if method.at_request else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parameters() -> str:
    """The table of parameters."""
    lines = ["| method | parameter | default | values | meaning |", "|---|---|---|---|---|"]
    for method in METHODS.values():
        for number, parameter in enumerate(method.parameters):
            cells = (
                "" if number else f"`{method.name}`",
                f"`{parameter.name}`",
                f"`{_written(parameter.default)}`",
                _values(parameter),
                parameter.description.replace("|", r"\|"),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rendered(page: str, base: Path) -> str:
    """`page` with its tables computed anew."""
    for title, table in (
        ("shares", compared(base)),
        ("methods", methods()),
        ("parameters", parameters()),
    ):
        begin, end = f"<!-- {title}: generated -->\n", f"\n<!-- end of {title} -->"
        head, rest = page.split(begin)
        page = head + begin + table + end + rest.split(end)[1]
    return page


def make_base(folder: Path) -> Path:
    """The checkpoint that `ties_original` counts the elements of."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return save_checkpoint(folder, tensors)


def _count(method: Method) -> str:
    if method.min_vectors == method.max_vectors:
        return str(method.min_vectors)
    return f"{method.min_vectors} or more"


def _written(value: object) -> str:
    """As in a request's JSON, texts without their quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _values(parameter: Parameter) -> str:
    if parameter.is_vector:
        return "one of the vectors"
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if isinstance(parameter.default, bool):
        return "`true`, `false`"
    high = "2⁵³" if parameter.high == 2**53 else f"{parameter.high:g}"
    return f"{'above ' if parameter.above else ''}{parameter.low:g} to {high}".replace("-", "−")


def main() -> None:
    """Write the page's tables."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(rendered(PAGE.read_text("utf-8"), make_base(Path(folder))), "utf-8")


if __name__ == "__main__":
    main()
