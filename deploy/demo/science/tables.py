"""The result files as Markdown tables, for docs/science.md."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def all_tables(results: Path) -> str:
    """Every table, under its heading."""
    load = {name: json.loads((results / f"science_{name}.json").read_text()) for name in TABLES}
    return "\n\n".join(f"### {name}\n\n{TABLES[name](load[name])}" for name in TABLES)


def shown(rate: Facts) -> str:
    """`92 % [74, 98] of 24`."""
    low, high = (round(100 * v) for v in rate["interval"])
    return f"{rate['rate']:.0%} [{low}, {high}] of {rate['asked']}".replace("%", " %", 1)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The first column on the left, the others on the right."""
    rows = [head, ["---", *("--:" for _ in head[1:])], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def gains(result: Facts) -> str:
    """Methods against linear."""
    lines = []
    for row in result["against_linear"]:
        low, high = row["interval"]
        gain = f"{100 * row['gain']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
        lines.append([row["loadouts"], row["method"], gain, str(row["prompts"])])
    return table(["loadouts", "method", "points over linear", "prompts"], lines)


def densities(result: Facts) -> str:
    """A line an amount, a column a cut and skill."""
    rows = result["rows"]
    columns = list(dict.fromkeys((r["skill"], r["cut"], r["encoding"]) for r in rows))
    amounts = sorted({(r["cut"] == "svd", -r["amount"]) for r in rows})
    lines = []
    for is_svd, amount in amounts:
        line = [f"rank {-amount:g}" if is_svd else f"{-100 * amount:g} %"]
        for skill, cut, encoding in columns:
            wanted = [
                r for r in rows if (r["skill"], r["cut"], r["encoding"]) == (skill, cut, encoding)
            ]
            cells = [r for r in wanted if r["amount"] == -amount and (cut == "svd") == is_svd]
            text = (
                f"{shown(cells[0]['rates'][skill])}, {cells[0]['bytes'] / 1e6:.1f} MB"
                if cells
                else ""
            )
            line.append(text)
        lines.append(line)
    return table(["kept", *(" ".join(column) for column in columns)], lines)


def negations(result: Facts) -> str:
    """Loss by kind of text, and the control."""
    lines = []
    for r in result["rows"]:
        losses = (f"{r['nll'][kind]:.2f}" for kind in (r["skill"], "plain", "license"))
        control = shown(r["rates"]["control"])
        lines.append([r["skill"], f"{r['weight']:g}", *losses, control])
    return table(["skill", "weight", "own answers", "plain", "document", "control"], lines)


def analogies(result: Facts) -> str:
    """A line an analogy, a column a kind."""
    kinds = list(dict.fromkeys(r["kind"] for r in result["rows"]))
    names = list(dict.fromkeys(r["analogy"] for r in result["rows"]))
    cells = {(r["analogy"], r["kind"]): shown(r["rates"][r["wanted"]]) for r in result["rows"]}
    lines = [[name, *(cells.get((name, kind), "") for kind in kinds)] for name in names]
    return table(["analogy", *kinds], lines)


def bounds(result: Facts) -> str:
    """Both skills at once, each alone, and the control."""
    columns = ("json+uppercase", "json", "uppercase", "control")
    lines = [[r["cell"], *(shown(r["rates"][c]) for c in columns)] for r in result["rows"]]
    return table(["loadout", *columns], lines)


def correlations(result: Facts) -> str:
    """ρ with its interval, for pairs and for ordered pairs."""
    lines = []
    for kind in ("pair_correlations", "directed_correlations"):
        for name, found in result[kind].items():
            low, high = found["interval"]
            rho = f"{found['rho']:+.2f} [{low:+.2f}, {high:+.2f}]"
            lines.append([name, str(found["points"]), rho, f"{found['p']:.2f}"])
    return table(["figure", "points", "Spearman's ρ", "p"], lines)


TABLES = {
    "matrix": gains,
    "density": densities,
    "negation": negations,
    "analogy": analogies,
    "bound": bounds,
    "conflict": correlations,
}
