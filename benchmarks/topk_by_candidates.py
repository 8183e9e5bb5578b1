"""How far the soft top-k is off the discrete one, by the number of candidates.

    python -m benchmarks.topk_by_candidates --k=2 --temperature=0.1 --spread=0.3

The longer the documents, the more pieces there are to choose from. The problems, estimators and
quantities are those of `topk.py`, which has all k and temperatures at one number of candidates;
here stand one k and one temperature, for several numbers. Writes OUTPUT.md and OUTPUT.png.
"""

import argparse
import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import topk
from clara_jax import files
from clara_jax.errors import UserError, command
from clara_jax.evaluation.fidelity.tables import table
from clara_jax.plotting import COLOURS, pyplot, save

Table = dict[str, dict[str, list[float]]]  # quantity, estimator, one for each number of candidates


def by_candidates(
    candidates: Sequence[int], k: int, temperature: float, spread: float, problems: int, noise: int
) -> Table:
    """Every quantity of every estimator, see `topk.py`.

    Args:
        candidates: numbers of them, each at least k; where there are more than topk.MOST
            ordered selections, cosine and error are NaN.
        k: slots.
        temperature: tau.
        spread: standard deviation of the scores.
        problems: random ones.
        noise: draws of gumbel.
    """
    keys_S = jax.random.split(jax.random.key(0), noise)
    tables: Table = {quantity: {} for quantity in topk.QUANTITIES}
    for N in candidates:
        made = topk.make_problems(problems, N, 3.0, 0)
        made = made._replace(
            scores_RN=made.scores_RN * np.float32(spread), parts_RKND=made.parts_RKND[:, :k]
        )
        for quantity, rows in topk.measure(made, temperature, keys_S).items():
            for name, values in rows.items():
                tables[quantity].setdefault(name, []).append(float(values[k - 1]))
    return tables


def markdown(tables: Table, candidates: Sequence[int]) -> str:
    """A table for each quantity."""
    parts = []
    for quantity, rows in tables.items():
        cells = [
            [name, *("" if math.isnan(x) else f"{x:.2f}" for x in row)]
            for name, row in rows.items()
        ]
        head = ["estimator", *(f"N={N}" for N in candidates)]
        parts.append(f"### {topk.QUANTITIES[quantity]}\n\n{table(head, cells)}")
    return "\n\n".join(parts)


def draw(tables: Table, candidates: Sequence[int], title: str, path: str) -> None:
    """Cosine and error over the number of candidates, and the soft mass on the hard selection."""
    figure, axes = pyplot().subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
    for ax, quantity in zip(axes, ("error", "cosine", "mass"), strict=True):
        for i, (name, values) in enumerate(tables[quantity].items()):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv<"[i % 6]}
            dashes = "--" if i % 2 else "-"
            ax.plot(candidates, values, label=name, ls=dashes, lw=1.6, ms=5, **style)
        ax.set(xscale="log", xlabel="candidates", ylim=(min(0.0, *ax.get_ylim()), None))
        ax.set_title(topk.QUANTITIES[quantity], fontsize=10)
        ax.set_xticks(candidates, [str(N) for N in candidates])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.topk_by_candidates", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--candidates", type=int, nargs="+", default=[4, 8, 16, 32, 60], metavar="N")
    add("--k", type=int, default=2, help="documents chosen (default %(default)s)")
    add("--temperature", type=float, default=0.1, help="tau (default %(default)s)")
    add("--spread", type=float, default=0.3, help="deviation of the scores (default %(default)s)")
    add("--problems", type=int, default=16, help="random problems (default %(default)s)")
    add("--noise", type=int, default=200, help="noise draws of gumbel (default %(default)s)")
    add("--output", default="topk", help="start of the files' names (default %(default)s)")
    args = parser.parse_args(argv)
    candidates = sorted(set(args.candidates))
    if not (1 <= args.k <= topk.SLOTS and args.k <= candidates[0] and candidates[-1] <= 62):
        parser.error("--k must be from 1 to 10 and --candidates from k to 62")
    if candidates[0] < 2 or min(args.problems, args.noise) < 1:
        parser.error("--candidates must be at least 2, --problems and --noise at least 1")
    if not all(1e-6 <= x <= 1e6 for x in (args.temperature, args.spread)):
        parser.error("--temperature and --spread must be from 1e-6 to 1e6")
    tables = by_candidates(
        candidates, args.k, args.temperature, args.spread, args.problems, args.noise
    )
    text = markdown(tables, candidates)
    print(text)
    title = f"Soft top-{args.k}, tau {args.temperature:g}, spread of the scores {args.spread:g}"
    try:
        files.write(f"{args.output}.md", f"## {title}\n\n{text}\n")
    except OSError as e:
        raise UserError(f"{args.output}.md: cannot be written ({e.strerror})") from e
    draw(tables, candidates, title, f"{args.output}.png")
    print(f"written: {args.output}.md, {args.output}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
