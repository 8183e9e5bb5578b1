"""Heat maps that a person can read: labels at both sides, numbers in the cells where they fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax import files
from clara_jax.errors import UserError

Points = Sequence[tuple[float, float]]
FONT = 9  # points, of the smallest writing
_MOST_NUMBERS = 120  # cells; in more of them there is no room for numbers


def heat_map(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    most: float | None = None,
    least_most: float = 1e-9,
    numbers: str = ".1f",
) -> Any:
    """Draws a matrix, light where it is 0 and dark where it is large.

    Args:
        axes: to draw on.
        values: [rows, columns]; NaN is left white.
        rows: labels.
        columns: labels; empty where another picture below has them.
        title: of the picture.
        most: the darkest value; None: the largest one there is.
        least_most: the darkest value is no smaller, so that what is nothing does not look large.
        numbers: their format; empty: none in the cells.

    Returns:
        The image, for a colour bar.
    """
    most = max(most or float(np.nanmax(values)), least_most)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    axes.set_title(title, fontsize=FONT + 2)
    names = columns or [""] * values.shape[1]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=FONT)
    axes.set_yticks(range(len(rows)), rows, fontsize=FONT)  # none: the picture beside has them
    axes.tick_params(length=0)
    if numbers and values.size <= _MOST_NUMBERS:
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > 0.6 * most else "black"
                text = f"{value:{numbers}}".replace("-0.0", "0.0")
                axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=FONT)
    return image


def slot_labels(count: int) -> list[str]:
    """Names of memory slots; of many only every fourth."""
    return [f"slot {i}" if count <= 20 or i % 4 == 0 else "" for i in range(count)]


def shortened(text: str, most: int = 24) -> str:
    """A text for a label."""
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= most else text[: most - 1] + "…"


_MOST_TICKS = 12
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def tidy(ax: Any) -> None:
    """A light grid, no frame above and on the right, small numbers."""
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def intervals(
    ax: Any, points: Points, ends: Sequence[Sequence[float]], *, aside: float = 0, **style: Any
) -> None:
    """Draws 95 % intervals of points, `aside` points beside them; none where `ends` is empty.

    Args:
        ax: to draw on.
        points: (x, y).
        ends: (low, high) of each point.
        aside: so that intervals of several lines do not cover each other.
        **style: of the bars.
    """
    if len(ends):
        from matplotlib import transforms

        shift = transforms.ScaledTranslation(aside / 72, 0, ax.figure.dpi_scale_trans)
        x, y = np.transpose(points)
        errors = np.abs(np.transpose(ends) - y)
        ax.errorbar(x, y, errors, fmt="none", transform=ax.transData + shift, **style)
        ax.update_datalim([(at, end) for at, both in zip(x, ends, strict=True) for end in both])
        ax.autoscale_view()


def ticks_at(ax: Any, x: Sequence[float], log: bool) -> None:
    """Ticks where points are, unless these are too many, on an axis that may be logarithmic."""
    if log:
        ax.set_xscale("log", base=2)
    if len(x) <= _MOST_TICKS:
        ax.set_xticks(x, [f"{at:.3g}" for at in x])
        ax.minorticks_off()


def pyplot() -> Any:
    """Matplotlib's pyplot, which draws into files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise UserError("plots need matplotlib: pip install 'clara-jax[plot]'") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: str) -> None:
    """Writes a picture.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with files.path(path).open("wb") as f:
            figure.savefig(f, dpi=120)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    pyplot().close(figure)
