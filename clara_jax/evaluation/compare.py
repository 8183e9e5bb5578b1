"""Runs beside each other: how well each ranks and answers, and how it learnt to.

    python -m clara_jax.evaluation.compare runs/instruct runs/e2e runs/contrastive

prints where runs were not evaluated alike, a table of each run's newest evaluation and of BM25,
intervals, paired tests of the first run against each other on the same questions, and mean ± sd
over runs that differ in seed alone (--output writes them too), and draws recall and losses over the
steps into one picture.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from clara_jax import files
from clara_jax.errors import UserError, command
from clara_jax.evaluation import evaluated, predictions
from clara_jax.evaluation.curves import curves
from clara_jax.evaluation.evaluated import Run
from clara_jax.plotting import COLOURS, pyplot, save
from clara_jax.runs.workdir import labels
from clara_jax.text import markdown

COLUMNS = {
    "questions": "questions",
    "recall@1": "recall@1",
    "recall@3": "recall@3",
    "recall@5": "recall@5",
    "mrr": "MRR",
    "exact_match": "EM",
    "f1": "F1",
    "cover_exact_match": "cover EM",
    "setting": "candidates",
    "k": "k",
}
_RANKING = ("recall@1", "recall@3", "recall@5", "mrr")  # of questions that name gold documents
# What is drawn over the steps, the second of stages that rank.
CURVES = {"loss": "loss", "recall@1": "recall@1 in training"}


def rows(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Cells of each run, by its label, and of BM25 with the last run's generator.

    Raises:
        UserError: a result is damaged.
    """
    cells: dict[str, dict[str, str]] = {}
    for run in runs:
        cells[run.label] = _row(run, run.own)
        if "bm25" in run.result["conditions"]:
            cells["BM25"] = _row(run, "bm25")
    return dict(sorted(cells.items(), key=lambda item: item[0] == "BM25"))


def _row(run: Run, name: str) -> dict[str, str]:
    """Cells of one ranking and of the answers from it."""
    result, golds = run.result, predictions.with_golds(run.lines)
    some = f" of {golds}" if golds < len(run.lines) else ""
    try:
        rankings = result.get("retrieval", {})  # scp has none
        numbers = {**rankings.get(name, {}), **result["conditions"][name]}
        cells = {
            key: f"{float(numbers[key]):.3f}" + some * (key in _RANKING)
            for key in COLUMNS
            if key in numbers
        }
        return {**cells, "questions": f"{int(result['questions'])}", **evaluated.settings(run)}
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise UserError(f"{run.workdir}: damaged result ({e!r}); run --mode=evaluate again") from e


def table(rows_of: dict[str, dict[str, str]]) -> str:
    """The cells as a Markdown table."""
    rows = [[name, *(cells.get(key, "") for key in COLUMNS)] for name, cells in rows_of.items()]
    return markdown.table(["", *COLUMNS.values()], rows)


def plot(workdirs: Sequence[str], path: str) -> bool:
    """Draws CURVES of all runs into a picture.

    Returns:
        Whether there is one: not where no run has any of them, as imported models have none.

    Raises:
        UserError: matplotlib is missing, a run's metrics.jsonl is damaged, or the picture cannot be
            written.
    """
    by_label = dict(zip(labels(workdirs), workdirs, strict=True))
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(by_label)}
    shown = curves(by_label, CURVES)
    if not shown:
        return False
    figure, axes = pyplot().subplots(
        1, len(shown), figsize=(5.5 * len(shown), 4), layout="constrained", squeeze=False
    )
    for ax, (key, by_run) in zip(axes[0], shown.items(), strict=True):
        for label, points in by_run.items():
            ax.plot(*zip(*points, strict=True), label=label, color=colours[label])
        ax.set(xlabel="step", title=CURVES[key], yscale="log" if key == "loss" else "linear")
        ax.grid(alpha=0.3)
        ax.legend()
    save(figure, path)
    return True


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("workdirs", nargs="+", help="of runs that were evaluated")
    parser.add_argument(
        "--output", default="comparison", help="path of the table (.md) and the picture (.png)"
    )
    args = parser.parse_args(argv)
    workdirs = [files.normal(workdir) for workdir in args.workdirs]
    runs = evaluated.load(workdirs)
    tables = (
        evaluated.interval_table(runs),
        evaluated.file_table(runs),
        evaluated.test_table(runs),
        evaluated.seed_table(runs),
    )
    parts = [*filter(None, [evaluated.unlike(runs)]), table(rows(runs))]
    parts += [markdown.table(*each) for each in tables if each.rows]
    text = "\n\n".join(parts)
    print(text)
    files.make_folder(os.path.dirname(args.output) or ".")
    files.write(f"{args.output}.md", text + "\n")
    try:
        drawn = plot(workdirs, f"{args.output}.png")
    except UserError as e:
        print(f"table: {args.output}.md")
        print(f"no picture: {e}", file=sys.stderr)
        return 0
    if drawn:
        print(f"table and curves: {args.output}.md, {args.output}.png")
    else:
        print(f"table: {args.output}.md; no metrics.jsonl has curves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
