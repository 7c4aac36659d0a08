"""Pictures of negation, analogy and predicted conflict."""

from typing import Any

import numpy as np
from skills import SKILLS

from science.canvas import COLORS, GREY, MARKERS, canvas, errors, percent

Facts = dict[str, Any]
LABELS = {
    "cosine": "cosine",
    "conflict": "sign conflict, weighted",
    "norm over own": "norm of the partner over own norm",
}
PREDICTORS = tuple(LABELS)


def draw_negation(matrix: Facts, negation: Facts) -> Any:
    """By weight: likelihood of the skill's answers, of plain ones, of a document; the control."""
    figure, axes = canvas(1, 4, (11, 3.6), sharex=True)
    base = next(r for r in matrix["rows"] if r["cell"] == "base")
    for number, skill in enumerate(SKILLS):
        alone = next(r for r in matrix["rows"] if r.get("skills") == [skill])
        negated = [r for r in negation["rows"] if r["skill"] == skill]
        points = sorted([(r["weight"], r) for r in negated] + [(0, base), (1, alone)], key=_weight)
        x = [weight for weight, _ in points]
        for axis, kind in zip(axes, (skill, "plain", "license"), strict=False):
            change = [row["nll"][kind] - base["nll"][kind] for _, row in points]
            axis.plot(x, change, marker=MARKERS[number], color=COLORS[number], label=skill)
        rates = [row["rates"]["control"] for _, row in points]
        axes[3].errorbar(
            np.array(x) + (number - 2) * 0.035,
            [r["rate"] for r in rates],
            yerr=errors(rates),
            marker=MARKERS[number],
            color=COLORS[number],
            capsize=2,
            elinewidth=0.7,
        )
    titles = ("The skill's own answers", "The base's answers", "A plain document", "Known facts")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("weight")
        axis.set_xticks([-1, -0.5, 0, 1])
    axes[0].set_ylabel("change of loss, nats a token")
    axes[3].set_ylabel("share right", labelpad=1)
    percent(axes[3])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(SKILLS))
    return figure


def _weight(point: tuple[float, Facts]) -> float:
    return point[0]


def draw_analogy(result: Facts) -> Any:
    """A group an analogy: with B − A, without − A, C alone, and random vectors."""
    kinds = ("analogy", "without A", "C alone", "random 0", "random 1", "random 2")
    names = ("C + (B − A)", "C + B", "C", "C + random, 3 seeds")
    figure, axis = canvas(1, 1, (9, 4))
    groups = list(dict.fromkeys(r["analogy"] for r in result["rows"]))
    for number, kind in enumerate(kinds):
        rows = [r for r in result["rows"] if r["kind"] == kind]
        rates = [r["rates"][r["wanted"]] for r in rows]
        color = min(number, 3)
        axis.bar(
            [groups.index(r["analogy"]) + (number - 2.5) * 0.14 for r in rows],
            [r["rate"] for r in rates],
            0.13,
            yerr=errors(rates),
            color=(*COLORS[:2], COLORS[2], GREY)[color],
            label=names[number] if number < len(names) else None,
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
    axis.set_xticks(range(len(groups)), [g.replace(" :: ", "\n:: ") for g in groups], fontsize=8.5)
    percent(axis)
    axis.set_ylabel("answers as the analogy wants")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    return figure


def draw_conflict(result: Facts) -> Any:
    """What a skill loses to its partner against three figures known before."""
    figure, axes = canvas(1, len(PREDICTORS), (10.5, 4), sharey=True)
    for axis, predictor in zip(axes, PREDICTORS, strict=True):
        for number, skill in enumerate(SKILLS):
            mine = [p for p in result["directed"] if p["pair"][0] == skill]
            drops = [{"rate": p["drop"], "interval": p["interval"]} for p in mine]
            axis.errorbar(
                [p["figures"][predictor] for p in mine],
                [p["drop"] for p in mine],
                yerr=errors(drops),
                fmt=MARKERS[number],
                color=COLORS[number],
                label=skill,
                elinewidth=0.7,
                capsize=2,
            )
        found = result["directed_correlations"][predictor]
        low, high = found["interval"]
        axis.set_title(f"ρ = {found['rho']:.2f} [{low:.2f}, {high:.2f}]", fontsize=10)
        axis.set_xlabel(LABELS[predictor])
    axes[-1].set_xscale("log")
    axes[-1].minorticks_off()
    axes[-1].set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes[0].set_ylabel("rate that the skill loses in the pair")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(SKILLS), title="what loses")
    return figure
