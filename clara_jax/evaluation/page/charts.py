"""Line charts for the report page, as SVG with text whose colours follow the page's."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from clara_jax.plotting import intervals, pyplot, ticks_at, tidy

STYLE = pathlib.Path(__file__).with_name("chart.css").read_text(encoding="utf-8")
# Told apart by the colour-blind (after Okabe and Ito, darker); chart.css has them for the dark.
COLOURS = (
    "#0072b2",
    "#c44e00",
    "#00805d",
    "#a8528a",
    "#7a5c00",
    "#4d4d4d",
    "#6a3fb5",
    "#c00020",
    "#1f93ad",
)
_INK = "#1c1c1c"
# Their numbers have no common factor, so that the same line comes again only after 504 of them.
_DASHES = (
    "-",
    (0, (4, 2)),
    (0, (1, 1.5)),
    (0, (5, 2, 1, 2)),
    (0, (7, 2)),
    (0, (3, 1)),
    (0, (5, 2, 1, 2, 1, 2)),
)
_MARKS = "os^Dvxp+"
_LEGEND = 20  # of more series only those are named
_FEW_DECADES = 1e4  # a logarithmic axis has ticks between powers of ten
_WIDTH, _HEIGHT, _ROW = 5.6, 3.0, 0.19  # inches; a row of the legend


@dataclasses.dataclass(frozen=True)
class Series:
    """One line."""

    label: str  # in the legend
    points: Sequence[tuple[float, float]]  # (x, y), in the order in which they are joined
    ends: Sequence[Sequence[float]] = ()  # (low, high) of the interval of each point, or empty
    marks: bool = False  # whether points are marked
    look: int | None = None  # number of its colour, dashes and marks; None: its place in the chart


def chart(
    title: str, x_label: str, series: Sequence[Series], *, log_y: bool = False, rates: bool = False
) -> Any:
    """A figure.

    Args:
        title: above it, which says what the y axis is.
        x_label: below it.
        series: at least one, of one point or more.
        log_y: whether the y axis is logarithmic; all y must be positive then.
        rates: x are compression rates, on a logarithmic axis, and y starts at 0.

    Raises:
        UserError: matplotlib is missing.
    """
    plots, rows = pyplot(), (min(len(series), _LEGEND) + 1) // 2
    with plots.rc_context(_RC):
        size = (_WIDTH, _HEIGHT + _ROW * rows)
        figure, ax = plots.subplots(figsize=size, layout="constrained")
        for number, one in enumerate(series):
            look = number if one.look is None else one.look
            style = {"color": COLOURS[look % len(COLOURS)]}
            marker = _MARKS[look % len(_MARKS)] if one.marks else ""
            dashes = _DASHES[look % len(_DASHES)]
            ax.plot(*zip(*one.points, strict=True), ls=dashes, marker=marker, ms=5, **style)
            # Beside each other, or intervals of one x would cover each other.
            aside = (number - (len(series) - 1) / 2) * min(2.4, 24 / len(series))
            intervals(ax, one.points, one.ends, aside=aside, alpha=0.7, **style)
        if rates:
            ticks_at(ax, sorted({x for one in series for x, _ in one.points}), log=True)
            ax.set_ylim(bottom=0)
        elif log_y:
            ax.set_yscale("log")
            low, high = ax.get_ylim()
            between = (1, 2, 5) if high < _FEW_DECADES * low else (1,)
            ax.yaxis.set_major_locator(plots.matplotlib.ticker.LogLocator(subs=between))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
        ax.set_title(title, loc="left", weight="bold")
        ax.set_xlabel(x_label)
        tidy(ax)
        labels = [one.label for one in series[:_LEGEND]]
        figure.legend(ax.get_lines(), labels, loc="outside lower left", ncols=2)
    return figure


def svg(figure: Any, title: str) -> str:
    """The figure as an SVG element; closes it.

    Its colours are those of the page around it (chart.css), and its names are of this chart alone.
    """
    buffer, plots = io.StringIO(), pyplot()
    with plots.rc_context(_RC | {"svg.hashsalt": title}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    plots.close(figure)
    text = buffer.getvalue().partition("<svg ")[2]
    text = re.sub(r' id="([^"]*)"', lambda name: name[0] * (f"#{name[1]}" in text), text)
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--c{number}, {colour})")
    return '<svg class="chart" role="img" ' + text.replace(_INK, "currentColor").strip()


def alone(element: str) -> str:
    """The element as a file."""
    head, body = element.split(">", 1)
    return f"{head}><style>{STYLE}\nsvg.chart {{ background: Canvas; }}</style>{body}\n"


_RC = {
    "svg.fonttype": "none",  # text can be selected
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.handlelength": 4,
}
