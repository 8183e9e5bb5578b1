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
from clara_jax.config_checks import METHOD, SCHEDULE, get
from clara_jax.errors import UserError
from clara_jax.evaluation import predictions, statistics
from clara_jax.runs.workdir import labels, newest_path, read_evaluation
from clara_jax.text.markdown import Table

# What is tested, where the questions of both runs have it; and how it is called in tables.
TESTED = {
    "f1": "F1",
    "exact_match": "EM",
    "recall@1": "recall@1",
    "recall@3": "recall@3",
    "recall@5": "recall@5",
}

Values = dict[str, list[float]]  # of questions, by metric


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with its newest evaluation."""

    label: str  # what tells it from the others
    workdir: str  # its folder
    result: dict[str, Any]  # of the evaluation
    lines: list[predictions.Line]  # its predictions with their values
    config: Config | None  # None where the folder holds none

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
    runs = []
    for workdir, label in zip(workdirs, labels(workdirs), strict=True):
        path = newest_path(workdir)
        if path is None:
            raise UserError(f"{workdir}: no evaluation; run --mode=evaluate on it")
        runs.append(read(workdir, path, label))
    return runs


def read(workdir: str, path: str, label: str) -> Run:
    """Reads a run with the evaluation of a file; errors as in `load`."""
    result = read_evaluation(path)
    config_path = os.path.join(workdir, "config.json")
    config = config_lib.load(config_path) if files.path(config_path).exists() else None
    return Run(label, workdir, result, predictions.of(path, result), config)


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
    results, first = [], runs[0]
    for run in runs[1:]:
        if not shared(first, run)[0]:
            raise UserError(
                f"{first.workdir} and {run.workdir} share no question; evaluate both on the same "
                "config.eval.sources"
            )
        for metric, (test, questions) in paired(first, run).items():
            results.append(Test(run.label, metric, questions, test))
    return results


def shared(first: Run, second: Run) -> tuple[list[predictions.Line], list[predictions.Line]]:
    """The lines of both runs of the questions that both answered, in one order."""
    ours, theirs = predictions.by_question(first.lines), predictions.by_question(second.lines)
    keys = [key for key in ours if key in theirs]
    return [ours[key] for key in keys], [theirs[key] for key in keys]


def paired(
    first: Run, second: Run, metrics: Sequence[str] = tuple(TESTED)
) -> dict[str, tuple[statistics.Paired, int]]:
    """Tests of metrics, each with the number of the shared questions that have it."""
    ours, theirs = shared(first, second)
    rows = predictions.rows(ours, first.own), predictions.rows(theirs, second.own)
    groups, tested = predictions.groups(ours), {}
    for name in metrics:
        has = [
            (one[name], other[name], group)
            for one, other, group in zip(*rows, groups, strict=True)
            if name in one and name in other
        ]
        if has:
            one, other, group = zip(*has, strict=True)
            tested[name] = statistics.paired(one, other, group), len(has)
    return tested


def settings(run: Run) -> dict[str, str]:
    """Of its evaluation, what decides on what is measured, by the names of config.eval."""
    options = dataclasses.asdict(config_lib.Eval()) | run.result.get("settings", {})
    values = {"condition": run.own, "max_new_tokens": str(options["max_new_tokens"])}
    if "retrieval" in run.result:  # there are candidates
        trained = run.config.select.k if run.config else "as trained"
        values |= {"setting": str(options["setting"]), "k": str(options["k"] or trained)}
    values["param_dtype"] = str(options.get("param_dtype", "as trained"))
    return values | {"store": "yes" if options["store"] else "no"}  # each run has its own


def unlike(runs: Sequence[Run]) -> str:
    """A line that names settings or questions that runs were not all evaluated with, or none."""
    each_run = [settings(run) for run in runs]
    parts = []
    for name in dict.fromkeys(name for each in each_run for name in each):
        of: dict[str, list[str]] = {}
        for run, each in zip(runs, each_run, strict=True):
            of.setdefault(each.get(name, "none"), []).append(run.label)
        if len(of) > 1:
            parts.append(f"{name} " + ", ".join(f"{v} ({', '.join(n)})" for v, n in of.items()))
    questions = [predictions.by_question(run.lines).keys() for run in runs]
    if any(each != questions[0] for each in questions):
        common = len(set(questions[0]).intersection(*questions))
        counts = zip(questions, runs, strict=True)
        of_each = ", ".join(f"{len(each)} ({run.label})" for each, run in counts)
        parts.append(f"questions {of_each}, of which {common} are the same in all")
    return f"Not evaluated alike, means do not compare: {'; '.join(parts)}." if parts else ""


def interval_table(runs: Sequence[Run]) -> Table:
    """Means of the tested metrics of each run, with 95 % intervals."""
    return _means([""], [([run.label], run.lines, run.own) for run in runs])


def file_table(runs: Sequence[Run]) -> Table:
    """As `interval_table` for each file of questions, which is a data set mostly.

    No row where all questions of a run come from one file.
    """
    parts = []
    for run in runs:
        files_of: dict[str, list[predictions.Line]] = {}
        for line in run.lines:
            files_of.setdefault(str(line.get("origin", "")).rpartition(":")[0], []).append(line)
        if len(files_of) > 1:
            parts += [
                ([run.label, f"{name} ({len(lines)})"], lines, run.own)
                for name, lines in zip(labels(list(files_of)), files_of.values(), strict=True)
            ]
    return _means(["", "questions of"], parts)


def _means(
    head: list[str], parts: Sequence[tuple[list[str], Sequence[predictions.Line], str]]
) -> Table:
    """Means over parts of predictions: first cells, lines, and the condition."""
    known = [predictions.values(lines, own) for _, lines, own in parts]
    shown = [metric for metric in TESTED if any(metric in values for values in known)]
    rows = [[*first, *(_mean(lines, own, m) for m in shown)] for first, lines, own in parts]
    return Table([*head, *(TESTED[metric] for metric in shown)], rows)


def _mean(lines: Sequence[predictions.Line], condition: str, metric: str) -> str:
    """A mean with its interval, and the number of questions where not all lines have it."""
    mean = predictions.mean(lines, condition, metric)
    if mean is None:
        return ""
    return str(mean) + f" of {mean.lines} questions" * (mean.lines < len(lines))


def test_table(runs: Sequence[Run]) -> Table:
    """The results of `tests`; no row where there is one run."""
    rows = [
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
    return Table([f"{runs[0].label} less", "", "questions", "difference", "95 %", "p"], rows)


def p_value(p: float) -> str:
    """For tables."""
    return f"{p:.4f}" if p >= 0.001 else "< 0.001"


def seed_table(runs: Sequence[Run]) -> Table:
    """Mean ± standard deviation of runs that differ in seed alone; no row where none do.

    They were evaluated alike, on the same questions. Of runs of one seed the first counts.
    """
    groups: dict[Any, dict[int, list[Run]]] = {}  # by seed
    for run in runs:
        if run.config is not None:
            questions = frozenset(predictions.by_question(run.lines))
            key = method(run.config), json.dumps(settings(run)), questions
            groups.setdefault(key, {}).setdefault(run.config.seed, []).append(run)
    several = [list(group.values()) for group in groups.values() if len(group) > 1]
    counted = [[first.values for first, *_ in group] for group in several]
    shown = [m for m in TESTED if any(all(m in v for v in values) for values in counted)]
    rows = []
    for group, values in zip(several, counted, strict=True):
        names = [
            first.label + "".join(f" (not {run.label}, of the same seed)" for run in others)
            for first, *others in group
        ]
        rows.append([", ".join(names), str(len(group)), *(_over_seeds(values, m) for m in shown)])
    return Table(["runs that differ in seed alone", "seeds", *(TESTED[m] for m in shown)], rows)


def _over_seeds(values: Sequence[Values], metric: str) -> str:
    """Empty where not all have it, or of other numbers of questions, which do not compare."""
    if len({len(each.get(metric, ())) for each in values}) > 1 or metric not in values[0]:
        return ""
    means = [float(np.mean(each[metric])) for each in values]
    return "{:.3f} ± {:.3f}".format(*statistics.over_seeds(means))


def method(config: Config) -> str:
    """All options that decide on what is measured but the seed, also of the runs started from."""
    tree = {name: get(config, name) for name in config_lib.tied(METHOD, SCHEDULE)}
    earlier = config.init_from
    path = os.path.join(earlier, "config.json") if earlier else ""
    if path and files.path(path).exists():
        tree["from"] = method(config_lib.load(path))
    elif earlier:
        tree["from"] = earlier
    return json.dumps(tree, sort_keys=True)
