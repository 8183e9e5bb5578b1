"""Pictures of a sweep: curves over axes of numbers, bars of all other runs beside the base's."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clara_jax.evaluation.evaluated import p_value
from clara_jax.plotting import COLOURS, intervals, pyplot, save, ticks_at, tidy

Record = Mapping[str, Any]
# Panels of an axis's picture, each with the metrics of its lines.
PANELS = {
    "answers": {"f1": "F1", "exact_match": "EM"},
    "ranking of the candidates": {
        "recall@1": "recall@1",
        "recall@3": "recall@3",
        "recall@5": "recall@5",
    },
}
# What the axes of configs/sweep.py are of; others go by their own names.
AXES = {
    "rate": "rate: tokens a memory vector, of a document of full length",
    "k": "number of selected documents, k",
    "document": "most tokens of a document",
}
_MARKERS = "os^Dv"
_FAR = 16  # from the first point to the last, so that the axis is logarithmic
_ASIDE = 4  # points: intervals of lines are beside each other, or some would be hidden


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
    single = [r for r in done if len(r["at"]) == 1 and r is not records[0]]
    others = [record for record in single if not {*record["at"]} & {*curves}]
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
        ticks_at(ax, x, log)
        for number, metric in enumerate(lines):
            has_it = [at for at in x if metric in points[at]["metrics"]]
            shown: list[Record] = [{**points[at], "x": at} for at in has_it]
            line = [(record["x"], record["metrics"][metric]) for record in shown]
            ends = [record["intervals"][metric] for record in shown]
            style = {"color": COLOURS[number], "marker": _MARKERS[number]}
            ax.plot(*zip(*line, strict=True), lw=1.6, label=PANELS[title][metric], **style)
            aside = _ASIDE * (number - (len(lines) - 1) / 2)
            intervals(ax, line, ends, aside=aside, capsize=3, elinewidth=1, color=COLOURS[number])
        if base is not None:
            ax.axvline(base, color="grey", ls=":", lw=1.2, zorder=0, label="the base")
        ax.set(xlabel=AXES.get(axis, axis), title=title)
        ax.set_ylim(bottom=0)
        tidy(ax)
        ax.legend(
            fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False
        )
    return figure


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
        style = {"alpha": 0.45, "hatch": "///"} if other else {"alpha": 0.85}
        ax.barh(y, mean, height=0.75, color=colour, edgecolor="white", **style)
        errors = [[max(mean - low, 0)], [max(high - mean, 0)]]
        ax.errorbar(mean, y, xerr=errors, color="black", capsize=3, elinewidth=1)
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
