"""The result files as Markdown tables, for docs/science.md."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def all_tables(results: Path) -> str:
    """Every table, under its heading."""
    load = {name: json.loads((results / f"science_{name}.json").read_text()) for name in TABLES}
    return "\n\n".join(f"### {name}\n\n{TABLES[name](load[name])}" for name in TABLES)


def shown(rate: Facts) -> str:
    """`92 [74, 98] of 24`, in per cent."""
    low, high = (round(100 * v) for v in rate["interval"])
    return f"{100 * rate['rate']:.0f} [{low}, {high}] of {rate['asked']}"


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
    """For each skill a line an amount, a column a cut; then the bytes of the files."""
    rows = result["rows"]
    parts = [_curve(rows, skill, _rate) for skill in dict.fromkeys(r["skill"] for r in rows)]
    return "\n\n".join([*parts, _curve(rows, rows[0]["skill"], _megabytes)])


def _curve(rows: list[Facts], skill: str, cell: Callable[[Facts], str]) -> str:
    mine = [r for r in rows if r["skill"] == skill]
    columns = list(dict.fromkeys((r["cut"], r["encoding"]) for r in mine))
    amounts = dict.fromkeys(sorted((r["cut"] == "svd", -r["amount"]) for r in mine))
    found = {(r["cut"], r["encoding"], r["amount"]): cell(r) for r in mine}
    lines = [
        [
            f"rank {-amount:g}" if is_svd else f"{-100 * amount:g} %",
            *(
                found.get((*column, -amount), "") if (column[0] == "svd") == is_svd else ""
                for column in columns
            ),
        ]
        for is_svd, amount in amounts
    ]
    return table([f"{skill}: kept", *(" ".join(column) for column in columns)], lines)


def _rate(row: Facts) -> str:
    return shown(row["rates"][row["skill"]])


def _megabytes(row: Facts) -> str:
    return f"{row['bytes'] / 1e6:.1f} MB"


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
