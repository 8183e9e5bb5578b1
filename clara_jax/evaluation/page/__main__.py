"""A report of evaluated runs: one HTML page that needs no other file, and Markdown beside it.

    python -m clara_jax.evaluation.page report.html runs/4x runs/16x

Tables with 95 % intervals and paired tests, quality and seconds by compression rate, training
curves, examples right and wrong with the chosen documents, hardware, versions, and the options that
the runs differ in. The Markdown's charts are in a folder beside it.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

import numpy as np

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config
from clara_jax.config_checks import get
from clara_jax.errors import UserError, command
from clara_jax.evaluation import efficiency_table, evaluated, predictions
from clara_jax.evaluation.evaluated import Run
from clara_jax.evaluation.page import blocks as blocks_lib
from clara_jax.evaluation.page import chart, paper_block
from clara_jax.evaluation.page.blocks import Block, Chart, Example, Heading, Table, Text
from clara_jax.evaluation.page.chart import Series
from clara_jax.evaluation.results import COLUMNS
from clara_jax.runs.workdir import read_metrics

# What is drawn over the steps, with its title, and whether logarithmically.
CURVES = {
    "loss": ("Training loss, nats a token", True),
    "eval/ce_loss": ("Held-out cross-entropy, nats a token", True),
    "mse_loss": ("Alignment loss (MSE)", True),
    "recall@1": ("Recall@1 in training", False),
    "eval/recall@5": ("Held-out recall@5", False),
}
# The same over the compression rate.
BY_RATE = {
    "f1": "F1, with 95 % intervals",
    "recall@5": "Recall@5, with 95 % intervals",
    "seconds": "Seconds a question, losses included",
}
_POINTS = 300  # of a curve; more would only make the page heavy


def blocks(found: Sequence[Run], examples: int) -> list[Block]:
    """The whole report.

    Args:
        found: runs, the first of which the others are compared with.
        examples: right ones, and as many wrong ones, of each run.
    """
    made = [Text(f"Runs: {', '.join(run.label for run in found)}.")]
    if warning := evaluated.unlike(found):
        made.append(Text(warning))
    made += [Heading("Answers and retrieval"), *_answers(found)]
    if tests := evaluated.test_table(found)[1]:
        made += [Heading("Differences"), Text(
            "Paired on the questions that both runs answered: the first run's mean less the "
            "other's, the 95 % bootstrap interval of the difference, and p of Fisher's "
            "randomisation test, two-sided."
        ), Table(evaluated.test_table(found)[0], tests)]  # fmt: skip
    head, seeds = evaluated.seed_table(found)
    if seeds:
        made += [Heading("Over seeds"), Text("Mean ± standard deviation."), Table(head, seeds)]
    made += _by_rate(found)
    made += paper_block.blocks(found) + _curves(found)
    if examples:
        for run in found:
            made += _examples(run, examples, len(found) > 1)
    return made + _environment(found) + _options(found)


def _answers(found: Sequence[Run]) -> list[Block]:
    head, cells = evaluated.interval_table(found)
    told = (
        "Each model itself; means over questions, with 95 % intervals (over documents, where these "
    )
    made = [Text(f"{told}have several questions)."), Table(head, cells)]
    shown = [key for key in COLUMNS if key != "seconds"]
    for run in found:
        result = run.result
        rankings, intervals = result.get("retrieval", {}), result.get("intervals", {})
        columns = [k for k in shown if any(k in c for c in result["conditions"].values())]
        rows = [
            [_name(name), *(_cell(numbers, intervals.get(name, {}), key) for key in columns)]
            for name, numbers in result["conditions"].items()
        ]
        rate = result.get("compression_rate")
        told = f"{run.label}: step {result['step']}, {result['questions']} questions"
        told += f", compressed {rate:.1f}x" if rate else ""
        if setting := result.get("settings", {}).get("setting"):
            told += f", candidates: {setting}"
        made += [Text(f"{told}. Under every condition:"),
                 Table(["", *(COLUMNS[key] for key in columns)], rows)]  # fmt: skip
        if rankings:
            recalls = list(next(iter(rankings.values())))
            golds = predictions.with_golds(run.lines)
            if golds < len(run.lines):
                made.append(Text(f"Rankings, over the {golds} questions that name gold documents:"))
            made.append(Table(["ranking", *recalls], [
                [_name(name), *(_cell(n, intervals.get(f"retrieval {name}", {}), key)
                                for key in recalls)]
                for name, n in rankings.items()
            ]))  # fmt: skip
    head, cells = evaluated.file_table(found)
    if cells:
        made += [Text("By file of questions, with their number:"), Table(head, cells)]
    return made


def _name(condition: str) -> str:
    return condition.replace("_", " ")


def _cell(numbers: dict[str, float], intervals: dict[str, Sequence[float]], key: str) -> str:
    if key not in numbers:
        return ""
    known = " ({:.3f}-{:.3f})".format(*intervals[key]) if key in intervals else ""
    return f"{numbers[key]:.3f}{known}"


def _by_rate(found: Sequence[Run]) -> list[Block]:
    """BY_RATE under each condition over the realised rate, where rates differ."""
    order = sorted(found, key=lambda run: run.result.get("compression_rate", 0))
    rates = [run.result.get("compression_rate", 0) for run in order]
    if len(set(rates)) < 2 or min(rates) <= 0:
        return []

    made: list[Block] = [Heading("By compression rate")]
    for key, title in BY_RATE.items():
        lines = []
        for name in dict.fromkeys(n for run in order for n in run.result["conditions"]):
            points, intervals = [], []
            for run, rate in zip(order, rates, strict=True):
                mean, interval = _measured(run, name, key)
                if mean is not None:
                    points.append((rate, mean))
                    intervals.append(interval)
            if points:
                lines.append(Series(_name(name), points, intervals, marks=True))
        if lines:
            x = "tokens of text a memory vector, realised"
            svg = chart.chart(title, x, lines, log_x=True, zero=True)
            made.append(Chart(f"{key.replace('@', '-at-')}-by-rate", title, svg))
    return made


def _measured(run: Run, name: str, key: str) -> tuple[float | None, tuple[float, float]]:
    """Mean of a metric under a condition with its interval, or seconds a question."""
    if key == "seconds":
        seconds = run.result["conditions"].get(name, {}).get(key)
        each = seconds and seconds / run.result["questions"]
        return each, (each, each)
    lines = [line for line in run.lines if name in line["values"]]
    values = predictions.values(lines, name).get(key)
    if not values:
        return None, (0, 0)
    return float(np.mean(values)), predictions.interval(lines, name, key)


def efficiency_blocks(rows: Sequence[efficiency_table.Row]) -> list[Block]:
    """The table of benchmarks/efficiency.py, and the time of an answer by rate."""
    made: list[Block] = [
        Heading("Time and memory"),
        Table(efficiency_table.HEAD, efficiency_table.cells(rows)),
    ]
    compressed = [(int(row.name[:-1]), row) for row in rows if row.name != "full text"]
    if not compressed:
        return made
    rates = sorted(rate for rate, _ in compressed)
    lines = [Series("memories", sorted((rate, row.answer) for rate, row in compressed), (), True)]
    texts = [row.answer for row in rows if row.name == "full text"]
    lines += [Series("full text", [(rates[0], s), (rates[-1], s)]) for s in texts]
    title = "Seconds of an answer"
    svg = chart.chart(title, "compression rate", lines, log_x=True, zero=True)
    return [*made, Chart("efficiency", title, svg)]


def _curves(found: Sequence[Run]) -> list[Block]:
    logs = {
        run.label: read_metrics(run.workdir)
        for run in found
        if files.path(os.path.join(run.workdir, "metrics.jsonl")).exists()
    }
    made: list[Block] = []
    for key, (title, log) in CURVES.items():
        lines = []
        for label, rows in logs.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            points = points[:: -(-len(points) // _POINTS) or 1]
            log = log and all(y > 0 for _, y in points)
            if points:
                lines.append(Series(label, points, marks=len(points) < 10))
        if lines:
            name = key.replace("/", "-").replace("@", "-at-")
            made.append(Chart(name, title, chart.chart(title, "step", lines, log_y=log)))
    return [Heading("Training"), *made] if made else []


def _examples(run: Run, count: int, labelled: bool) -> list[Block]:
    """Some that are wholly right and some that are wholly wrong, from all over the questions."""
    own, conditions = run.own, list(run.result["conditions"])
    made: list[Block] = [Heading("Examples" + f": {run.label}" * labelled)]
    for right in (True, False):
        fits = [n for n in run.lines if n["values"][own]["f1"] == float(right)]
        made.append(Text(
            f"{len(fits)} of {len(run.lines)} answers are wholly {'right' if right else 'wrong'}."
        ))  # fmt: skip
        for line in fits[:: max(1, len(fits) // count)][:count]:
            accepted = line.get("answers") or [line["answer"]]
            facts = [("accepted", " / ".join(accepted))]
            facts += [(_name(n), str(line[n])) for n in conditions if n in line]
            gold = line.get("pos_index", [])
            documents = [
                (text, number in gold)
                for number, text in zip(line.get("chosen", []), line.get("documents", []),
                                        strict=False)
            ]  # fmt: skip
            made.append(Example(right, line["question"], facts, documents))
    return made


def _environment(found: Sequence[Run]) -> list[Block]:
    told = {run.label: run.result.get("environment", {}) for run in found}
    names = list(dict.fromkeys(name for each in told.values() for name in each))
    made: list[Block] = [Heading("Hardware and versions")]
    if unknown := [label for label, each in told.items() if not each]:
        made.append(Text(f"Not recorded by the evaluation of {', '.join(unknown)}."))
    cells = [[name, *(each.get(name, "") for each in told.values())] for name in names]
    return [*made, Table(["", *told], cells, words=True)] if cells else made


def _options(found: Sequence[Run]) -> list[Block]:
    """Options that the runs, or a single run and the defaults, differ in."""
    configs = {run.label: run.config for run in found if run.config is not None}
    if not configs:
        return []
    if len(configs) == 1:
        configs = {"defaults": Config(), **configs}
        title = "Options that are not the defaults"
    else:
        title = "Options that differ between the runs"
    first, *others = configs.values()
    every = tuple(field.name for field in dataclasses.fields(Config))
    names = dict.fromkeys(n for c in others for n in config_lib.differences(first, c, every))
    cells = [[name, *(_value(get(c, name)) for c in configs.values())] for name in names]
    if not cells:
        return [Heading(title), Text("None.")]
    return [Heading(title), Table(["", *configs], cells, words=True)]


def _value(value: object) -> str:
    return value or '""' if isinstance(value, str) else str(value)


def write(output: str, title: str, made: Sequence[Block]) -> list[str]:
    """Writes page, Markdown and charts; returns the paths of the first two.

    Raises:
        UserError: they cannot be written.
    """
    stem = output[: -len(".html")]
    charts = [block for block in made if isinstance(block, Chart)]
    folder = f"{stem}_charts"
    try:
        if charts:
            files.make_folder(folder)
        for block in charts:
            files.write(os.path.join(folder, f"{block.name}.svg"), chart.alone(block.svg))
        files.write(output, blocks_lib.to_html(title, made))
        text = blocks_lib.to_markdown(title, made, os.path.basename(folder))
        files.write(f"{stem}.md", text)
    except OSError as e:
        raise UserError(f"{output}: cannot be written ({e.strerror})") from e
    return [output, f"{stem}.md"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.page", description=__doc__.splitlines()[0]
    )
    parser.add_argument("output", help="the page, NAME.html; NAME.md is written beside it")
    parser.add_argument("workdirs", nargs="+", help="of evaluated runs; the first is the reference")
    parser.add_argument("--title", default="CLaRa: evaluation")
    parser.add_argument("--efficiency", default="", help="NAME.json of evaluation.efficiency")
    parser.add_argument("--examples", type=int, default=3, help="right and wrong ones of each run")
    args = parser.parse_args(argv)
    if not args.output.endswith(".html"):
        parser.error("OUTPUT must end with .html")
    if args.examples < 0:
        parser.error("--examples must not be negative")
    found = evaluated.load([files.normal(workdir) for workdir in args.workdirs])
    made = blocks(found, args.examples)
    if args.efficiency:
        made += efficiency_blocks(efficiency_table.read(args.efficiency))
    for path in write(args.output, args.title, made):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
