"""Evaluated runs beside each other: intervals, paired tests, and runs that differ in seed alone."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config
from clara_jax.errors import UserError
from clara_jax.evaluation import predictions, statistics
from clara_jax.evaluation.report import newest_path, read_evaluation

# What is tested, where the questions of both runs have it; and how it is called in tables.
TESTED = {
    "f1": "F1",
    "exact_match": "EM",
    "recall@1": "recall@1",
    "recall@3": "recall@3",
    "recall@5": "recall@5",
}
# Options that runs of one method may differ in: where they lie, and how they were computed.
_FREE = (
    "seed", "init_from", "data.memories", "data.shards", "eval", "mesh", "serve", "store", "search",
    "synthesis", "profile", "model.remat", "model.attention",
)  # fmt: skip


Values = dict[str, list[float]]  # of questions, by metric


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with its newest evaluation.

    Attributes:
        label: what tells it from the others.
        workdir: its folder.
        result: of the evaluation.
        lines: its predictions with their values.
        config: None where the folder holds none.
    """

    label: str
    workdir: str
    result: dict[str, Any]
    lines: list[predictions.Line]
    config: Config | None

    @property
    def own(self) -> str:
        """The condition that is the model itself."""
        return predictions.own(self.result)

    @property
    def values(self) -> Values:
        """Every metric of the questions under it."""
        return predictions.values(self.lines, self.own)


def load(workdirs: Sequence[str]) -> list[Run]:
    """Reads runs.

    Raises:
        UserError: one has not been evaluated, or its files are damaged.
    """
    found = []
    for workdir, label in zip(workdirs, labels(workdirs), strict=True):
        path = newest_path(workdir)
        if path is None:
            raise UserError(f"{workdir}: no evaluation; run --mode=evaluate on it")
        found.append(read(workdir, path, label))
    return found


def read(workdir: str, path: str, label: str) -> Run:
    """Reads a run with the evaluation of a file; errors as in `load`."""
    result = read_evaluation(path)
    config_path = os.path.join(workdir, "config.json")
    config = config_lib.load(config_path) if files.path(config_path).exists() else None
    return Run(label, workdir, result, predictions.of(path, result), config)


def labels(workdirs: Sequence[str]) -> list[str]:
    """Names that tell runs apart: as many of the last parts of their paths as this takes."""
    parts = [files.normal(workdir).split("/") for workdir in workdirs]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({*names, "BM25"}) == len(names) + 1:
            return names
    return list(workdirs)


@dataclasses.dataclass(frozen=True)
class Test:
    """A paired test of one metric: the first run's values less those of another."""

    other: str
    metric: str
    questions: int
    paired: statistics.Paired


def tests(runs: Sequence[Run]) -> list[Test]:
    """Paired tests between the first run and each other, on the questions that both answered.

    Raises:
        UserError: two runs share no question.
    """
    found, first = [], runs[0]
    for run in runs[1:]:
        one, other, questions = shared(first, run)
        if not questions:
            raise UserError(
                f"{first.workdir} and {run.workdir} share no question; evaluate both on the same "
                "config.eval.sources"
            )
        for metric in TESTED:
            if metric in one and metric in other:
                paired = statistics.paired(one[metric], other[metric])
                found.append(Test(run.label, metric, questions, paired))
    return found


def shared(first: Run, second: Run) -> tuple[Values, Values, int]:
    """Values of the questions that both answered, in one order, and how many these are."""
    ours, theirs = predictions.by_question(first.lines), predictions.by_question(second.lines)
    keys = [key for key in ours if key in theirs]
    one = predictions.values([ours[key] for key in keys], first.own)
    return one, predictions.values([theirs[key] for key in keys], second.own), len(keys)


def interval_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and cells: means of the tested metrics of each run, with 95 % intervals."""
    found = [run.values for run in runs]
    shown = [metric for metric in TESTED if any(metric in values for values in found)]
    cells = [
        [run.label, *(_with_interval(values[m]) if m in values else "" for m in shown)]
        for run, values in zip(runs, found, strict=True)
    ]
    return ["", *(TESTED[metric] for metric in shown)], cells


def file_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and cells: as `interval_table` for each file of questions, which is a data set mostly.

    No cell where all questions of a run come from one file.
    """
    parts: list[tuple[str, str, dict[str, list[float]]]] = []
    for run in runs:
        groups: dict[str, list[predictions.Line]] = {}
        for line in run.lines:
            groups.setdefault(str(line.get("origin", "")).rpartition(":")[0], []).append(line)
        if len(groups) > 1:
            names = labels(list(groups))
            parts += [
                (run.label, f"{name} ({len(lines)})", predictions.values(lines, run.own))
                for name, lines in zip(names, groups.values(), strict=True)
            ]
    shown = [metric for metric in TESTED if any(metric in values for _, _, values in parts)]
    cells = [
        [label, name, *(_with_interval(values[m]) if m in values else "" for m in shown)]
        for label, name, values in parts
    ]
    return ["", "questions of", *(TESTED[metric] for metric in shown)], cells


def test_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of `tests`; no cell where there is one run."""
    head = [f"{runs[0].label} less", "", "questions", "difference", "95 %", "p"]
    cells = [
        [
            test.other,
            TESTED[test.metric],
            str(test.questions),
            f"{test.paired.difference:+.3f}",
            f"{test.paired.low:+.3f} to {test.paired.high:+.3f}",
            p_value(test.paired.p),
        ]
        for test in tests(runs)
    ]
    return head, cells


def p_value(p: float) -> str:
    """For tables."""
    return f"{p:.4f}" if p >= 0.001 else "< 0.001"


def seed_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and cells: mean ± sd of runs that differ in seed alone; no cell where none do."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config is not None:
            groups.setdefault(method(run.config), []).append(run)
    several = [group for group in groups.values() if len({run.config.seed for run in group}) > 1]
    shown = [m for m in TESTED if any(m in run.values for group in several for run in group)]
    cells = []
    for group in several:
        row = [", ".join(run.label for run in group), str(len(group))]
        for metric in shown:
            means = [np.mean(run.values[metric]) for run in group if metric in run.values]
            row.append("{:.3f} ± {:.3f}".format(*statistics.over_seeds(means)) if means else "")
        cells.append(row)
    return ["runs that differ in seed alone", "seeds", *(TESTED[m] for m in shown)], cells


def method(config: Config) -> str:
    """All options that decide on what is measured but the seed, also of the runs started from."""
    tree = dataclasses.asdict(config)
    for name in _FREE:
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place[group]
        place.pop(last)
    earlier = config.init_from
    path = os.path.join(earlier, "config.json") if earlier else ""
    if path and files.path(path).exists():
        tree["from"] = method(config_lib.load(path))
    elif earlier:
        tree["from"] = earlier
    return json.dumps(tree, sort_keys=True)


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; its first column is of words."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_interval(values: Sequence[float]) -> str:
    low, high = statistics.interval(values)
    return f"{np.mean(values):.3f} ({low:.3f}-{high:.3f})"
