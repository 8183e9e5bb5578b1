"""Line charts as SVG text, whose colours follow the page's: dark, light or paper."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 540, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 34, 52
_ROW = 18  # of the legend
_LEGEND = 20  # of more series only those are named
# Their numbers have no common factor, so that the same line comes again only after 63 of them.
_DASHES = ("", "8 4", "2 3", "9 3 2 3", "14 4", "5 2", "9 3 2 3 2 3")
# Strokes and areas of points, around 0, 0.
_MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4h8v8h-8z", "M0,-5L5,4H-5z",
    "M0,-5.5L5,0L0,5.5L-5,0z", "M0,5L5,-4H-5z", "M-4,-4L4,4M-4,4L4,-4", "M-5,0H5M0,-5V5",
    "M-6,-2.5H6V2.5H-6z",
)  # fmt: skip

# Told apart by the colour-blind (after Okabe and Ito, darker on white and lighter on black).
_LIGHT = ("#0072b2", "#c44e00", "#00805d", "#a8528a", "#7a5c00", "#4d4d4d", "#6a3fb5", "#c00020",
          "#1f93ad")  # fmt: skip
_DARK = ("#5cb8ff", "#ff9a57", "#3fd6aa", "#f2a7d3", "#e8c547", "#c4c4c4", "#b79cff", "#ff6b6b",
         "#9af0ff")  # fmt: skip


def _named(colours: Sequence[str]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours))


STYLE = f"""
svg.chart {{ color: #1c1c1c; font: 12px system-ui, sans-serif; max-width: 100%; height: auto;
  {_named(_LIGHT)} }}
svg.chart text {{ fill: currentColor; }}
svg.chart .grid {{ stroke: currentColor; stroke-opacity: 0.15; }}
svg.chart .axis {{ stroke: currentColor; stroke-opacity: 0.6; }}
@media (prefers-color-scheme: dark) {{ svg.chart {{ color: #e8e6e3; {_named(_DARK)} }} }}
@media print {{ svg.chart {{ color: #000; {_named(_LIGHT)} }} }}
"""
# A chart in a file of its own has no page around it.
ALONE = """svg.chart { background: #fff; }
@media (prefers-color-scheme: dark) { svg.chart { background: #16181b; } }"""


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: in the legend.
        points: (x, y), in the order in which they are joined.
        intervals: (low, high) of each point, or empty.
        marks: whether points are marked.
    """

    label: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    marks: bool = False


def chart(
    title: str,
    x_label: str,
    series: Sequence[Series],
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
) -> str:
    """An SVG element.

    Args:
        title: above it, which says what the y axis is.
        x_label: below it.
        series: at least one, of one point or more.
        log_x: whether the x axis is logarithmic; all x must be positive then.
        log_y: the same of y.
        zero: whether y starts at 0.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [
        y for s in series for p in s.intervals for y in p
    ]
    ys += [0.0] * zero
    across = _Axis(xs, log_x, _LEFT + 10, WIDTH - _RIGHT - 10)
    bottom = HEIGHT - _BOTTOM
    height = HEIGHT + _ROW * ((min(len(series), _LEGEND) + 1) // 2 - 1)
    up = _Axis(ys, log_y, bottom, _TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" aria-label="{html.escape(title)}">',
        f'<text x="{_LEFT}" y="18" font-weight="600">{html.escape(title)}</text>',
    ]
    for value in up.ticks:
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(value)}</text>')
    for value in across.ticks:
        x = across.at(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{_number(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{(_LEFT + WIDTH) / 2}" y="{bottom + 30}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    for number, one in enumerate(series):
        # Beside each other, or intervals of one x would cover each other.
        aside = (number - (len(series) - 1) / 2) * min(3.2, 32 / len(series))
        parts += _line(one, number, across, up, aside)
    for number, one in enumerate(series[:_LEGEND]):
        x, y = _LEFT + (number % 2) * 235, bottom + 45 + _ROW * (number // 2)
        parts.append(f'<line x1="{x}" x2="{x + 44}" y1="{y}" y2="{y}" {_stroke(number)}/>')
        parts += [_mark(number, x + 22, y)] * one.marks
        parts.append(f'<text x="{x + 50}" y="{y + 4}">{html.escape(one.label)}</text>')
    return "\n".join([*parts, "</svg>"])


def alone(svg: str) -> str:
    """The chart as a file."""
    head, body = svg.split(">", 1)
    return f"{head}><style>{STYLE}{ALONE}</style>{body}\n"


class _Axis:
    """From values to places on the picture."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float):
        self._log, self._start, self._end = log, start, end
        low, high = min(values), max(values)
        if log:
            low, high = (low / 1.3, high * 1.3) if low == high else (low, high)
        elif low == high:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        self._low, self._high = low, high
        self.ticks = [t for t in (_decades if log else _steps)(low, high)]

    def at(self, value: float) -> float:
        low, high = self._low, self._high
        if self._log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self._start + (value - low) / (high - low) * (self._end - self._start), 1)


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, and what lies between where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for between in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [m * 10.0**p for p in powers for m in between if low <= m * 10.0**p <= high]
        if len(found) >= 3:
            return found
    return _steps(low, high)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"


def _colour(number: int) -> str:
    return f"var(--c{number % len(_LIGHT)})"


def _stroke(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return (
        f'stroke="{_colour(number)}" stroke-width="2" fill="none"'
        + f' stroke-dasharray="{dash}"' * bool(dash)
    )


def _mark(number: int, x: float, y: float) -> str:
    colour = _colour(number)
    return (
        f'<path class="mark" d="{_MARKS[number % len(_MARKS)]}" transform="translate({x},{y})" '
        f'fill="{colour}" stroke="{colour}" stroke-width="1.6"/>'
    )


def _line(series: Series, number: int, across: _Axis, up: _Axis, aside: float) -> list[str]:
    places = [(across.at(x), up.at(y)) for x, y in series.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{path}" {_stroke(number)}/>']
    for (x, _), (low, high) in zip(places, series.intervals, strict=False):
        x = round(x + aside, 1)
        parts.append(
            f'<line class="interval" x1="{x}" x2="{x}" y1="{up.at(low)}" y2="{up.at(high)}" '
            f'stroke="{_colour(number)}" stroke-width="2.2" stroke-opacity="0.7"/>'
        )
    if series.marks:
        parts += [_mark(number, x, y) for x, y in places]
    return parts
