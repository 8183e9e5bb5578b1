"""Pictures of a sweep: curves over axes of numbers, bars of all other runs beside the base's."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.evaluation.evaluated import p_value
from clara_jax.plotting import COLOURS, pyplot, save, tidy

Record = Mapping[str, Any]
# Panels of an axis's picture, each with the metrics of its lines.
PANELS = {
    "answers": {"f1": "F1", "exact_match": "EM"},
    "ranking of the candidates": {
        "recall@1": "recall@1", "recall@3": "recall@3", "recall@5": "recall@5",
    },
}  # fmt: skip
# What the axes of configs/sweep.py are of; others go by their own names.
AXES = {
    "rate": "rate: tokens a memory vector, of a document of full length",
    "k": "number of selected documents, k",
    "document": "most tokens of a document",
}
_MARKERS = "os^Dv"
_TICKS = 12  # of more points matplotlib chooses them
_FAR = 16  # from the first point to the last, so that the axis is logarithmic
_ASIDE = 0.012  # of the width: lines stand beside each other, or their intervals would hide


def draw(records: Sequence[Record], folder: str) -> list[str]:
    """Draws `sweep_<axis>.png` for axes with two points or more, and `sweep_others.png`.

    Args:
        records: of sweep.json, the base first. Runs of a grid are left to the table.
        folder: that the pictures are written to.

    Returns:
        Names of the files; none where no run is done.

    Raises:
        UserError: matplotlib is missing, or a picture cannot be written.
    """
    done = [record for record in records if record.get("metrics")]
    axes: dict[str, dict[float, Record]] = {}
    for record in done:
        if record is records[0] or len(record["at"]) == 1:
            for axis, place in record["at"].items():
                if not isinstance(place, str):
                    # A point that is the base under another name takes its place.
                    axes.setdefault(axis, {})[place] = record
    curves = {axis: points for axis, points in axes.items() if len(points) > 1}
    written = []
    for axis, points in curves.items():
        written.append(f"sweep_{axis.replace('/', '_')}.png")
        own = records[0].get("at", {}).get(axis) if records[0] in done else None
        save(_curves(axis, points, own), os.path.join(folder, written[-1]))
    others = [
        record for record in done
        if len(record["at"]) == 1 and record is not records[0] and not {*record["at"]} & {*curves}
    ]  # fmt: skip
    if others:
        written.append("sweep_others.png")
        base = records[0] if records[0] in done else None
        save(_bars(others, base), os.path.join(folder, written[-1]))
    return written


def less_base(record: Record) -> str:
    """F1 less the base's with its p, for tables and pictures; empty where there is no test."""
    test = record.get("less_base")
    return f"{test['difference']:+.3f} ({p_value(test['p'])})" if test else ""


def _curves(axis: str, points: Mapping[float, Record], base: float | None) -> Any:
    """Each metric against an axis, with intervals; `base` is where on it the base is."""
    x = sorted(points)
    has = {
        title: [m for m in lines if any(m in points[at]["metrics"] for at in x)]
        for title, lines in PANELS.items()
    }
    has = {title: lines for title, lines in has.items() if lines}
    figure, axes = pyplot().subplots(
        1, len(has), figsize=(1.2 + 5.4 * len(has), 4.6), layout="constrained", squeeze=False
    )
    powers = all(at > 0 and math.log2(at).is_integer() for at in x)
    log = powers or (x[0] > 0 and x[-1] >= _FAR * x[0])
    for ax, (title, lines) in zip(axes[0], has.items(), strict=True):
        if log:
            ax.set_xscale("log", base=2)
        if len(x) <= _TICKS:
            ax.set_xticks(x, [f"{at:g}" for at in x])
            ax.minorticks_off()
        for number, metric in enumerate(lines):
            shown = [at for at in x if metric in points[at]["metrics"]]
            y = np.array([points[at]["metrics"][metric] for at in shown])
            ends = np.array([points[at]["intervals"][metric] for at in shown])
            ax.errorbar(
                [_aside(at, x, number - (len(lines) - 1) / 2, log) for at in shown], y,
                yerr=np.maximum(np.abs(ends.T - y), 0), capsize=3, lw=1.6, elinewidth=1,
                color=COLOURS[number], marker=_MARKERS[number], label=PANELS[title][metric],
            )  # fmt: skip
        if base is not None:
            ax.axvline(base, color="grey", ls=":", lw=1.2, zorder=0, label="the base")
        ax.set(xlabel=AXES.get(axis, axis), title=title)
        ax.set_ylim(bottom=0)
        tidy(ax)
        ax.legend(
            fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False
        )
    return figure


def _aside(at: float, x: Sequence[float], steps: float, log: bool) -> float:
    if log:
        return at * (x[-1] / x[0]) ** (_ASIDE * steps)
    return at + (x[-1] - x[0]) * _ASIDE * steps


def _bars(records: Sequence[Record], base: Record | None) -> Any:
    """F1 of runs, those of an axis together; the base's is a line through all of them."""
    rows = [base, *records] if base else records
    of = [None if record is base else next(iter(record["at"])) for record in rows]
    axes = [axis for axis in dict.fromkeys(of) if axis]
    figure, ax = pyplot().subplots(
        figsize=(9, 1.6 + 0.36 * (len(rows) + 0.5 * len(axes))), layout="constrained"
    )
    y, before, places = 0.0, None, []
    for record, axis in zip(rows, of, strict=True):
        y += 1 + 0.5 * (axis != before)  # axes stand apart
        before = axis
        places.append(y)
        colour = "#4D4D4D" if axis is None else COLOURS[axes.index(axis) % len(COLOURS)]
        mean, (low, high) = record["metrics"]["f1"], record["intervals"]["f1"]
        other = record.get("same_questions") is False
        ax.barh(
            y, mean, height=0.75, color=colour, alpha=0.45 if other else 0.85,
            hatch="///" if other else None, edgecolor="white",
        )  # fmt: skip
        ax.errorbar(
            mean, y, xerr=[[max(mean - low, 0)], [max(high - mean, 0)]], color="black", capsize=3,
            elinewidth=1,
        )  # fmt: skip
        # Beyond the plot, where no bar or interval is.
        note = "other questions" if other else less_base(record)
        ax.annotate(note, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ax.set_yticks(places, [record["name"] for record in rows])
    ax.set_ylim(y + 0.8, 0.2)
    ax.set_xlim(left=0)
    if base:
        ax.axvline(base["metrics"]["f1"], color="#4D4D4D", ls="--", lw=1.2, label="F1 of the base")
        if any("less_base" in record for record in rows):
            head = (1.01, places[0])  # beside the base itself, which has no difference
            ax.annotate("F1 − base (p)", head, xycoords=("axes fraction", "data"), va="center")
        figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    ax.set(xlabel="F1, with 95 % intervals")
    tidy(ax)
    ax.grid(axis="y", visible=False)
    return figure
