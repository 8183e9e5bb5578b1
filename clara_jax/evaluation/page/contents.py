"""What is on the report page: sections of paragraphs, tables, charts and examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clara_jax import config as config_lib
from clara_jax.config import Config
from clara_jax.config_checks import get
from clara_jax.evaluation import efficiency_table, evaluated, predictions
from clara_jax.evaluation.curves import curves
from clara_jax.evaluation.evaluated import Run
from clara_jax.evaluation.page import charts
from clara_jax.evaluation.page.charts import Series
from clara_jax.evaluation.paper import paper
from clara_jax.evaluation.results import COLUMNS
from clara_jax.text.markdown import Table

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


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture; in Markdown a file of this name."""

    name: str
    title: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with what was answered."""

    right: bool  # whether the model's own answer is accepted
    question: str  # its text
    facts: Sequence[tuple[str, str]]  # names and texts, such as the answers under each condition
    # texts of those that were chosen, and whether each is gold
    documents: Sequence[tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Section:
    """Parts under a title; a text is a paragraph."""

    title: str
    parts: Sequence[str | Table | Chart | Example]


def sections(
    runs: Sequence[Run],
    examples: int,
    efficiency: Sequence[efficiency_table.Row] = (),
    draw: bool = True,
) -> list[Section]:
    """The whole report, without sections that have no part.

    Args:
        runs: evaluated ones, the first of which the others are compared with.
        examples: the number of right ones, and of wrong ones, of each run.
        efficiency: rows of benchmarks/efficiency.py, if there are.
        draw: whether there are charts, which need matplotlib.
    """
    warning = evaluated.unlike(runs)
    found = [
        Section("", [f"Runs: {', '.join(run.label for run in runs)}.", *filter(None, [warning])]),
        Section("Answers and retrieval", _answers(runs)),
        _tabled(
            "Differences",
            "Paired on the questions that both runs answered: the first run's mean less the "
            "other's, the 95 % bootstrap interval of the difference, and p of Fisher's "
            "randomisation test, two-sided.",
            evaluated.test_table(runs),
        ),
        _tabled("Over seeds", "Mean ± standard deviation.", evaluated.seed_table(runs)),
        Section("By compression rate", _by_rate(runs) if draw else []),
        _paper(runs),
        Section("Training", _curves(runs) if draw else []),
        *(
            Section("Examples" + f": {run.label}" * (len(runs) > 1), _examples(run, examples))
            for run in (runs if examples else ())
        ),
        Section("Hardware and versions", _environment(runs)),
        _options(runs),
        Section("Time and memory", _efficiency(efficiency, draw) if efficiency else []),
    ]
    return [section for section in found if section.parts]


def _tabled(title: str, text: str, table: Table) -> Section:
    return Section(title, [text, table] if table.rows else [])


def _answers(runs: Sequence[Run]) -> list[str | Table]:
    parts: list[str | Table] = [
        "Each model itself; means over questions, with 95 % intervals (over documents, where these "
        "have several questions).",
        evaluated.interval_table(runs),
    ]
    for run in runs:
        parts += _conditions(run)
    by_file = evaluated.file_table(runs)
    if by_file.rows:
        parts += ["By file of questions, with their number:", by_file]
    return parts


def _conditions(run: Run) -> list[str | Table]:
    """Numbers of one run under every condition, and of every ranking."""
    result, golds = run.result, predictions.with_golds(run.lines)
    rate, setting = result.get("compression_rate"), result.get("settings", {}).get("setting")
    text = f"{run.label}: step {result['step']}, {result['questions']} questions"
    text += f", compressed {rate:.1f}x" if rate else ""
    text += f", candidates: {setting}" if setting else ""
    conditions, intervals = result["conditions"], result.get("intervals", {})
    known = {key for numbers in conditions.values() for key in numbers} - {"seconds"}
    shown = [key for key in COLUMNS if key in known]
    head = ["", *(COLUMNS[key] for key in shown)]
    parts = [f"{text}. Under every condition:", _numbers(head, shown, conditions, intervals)]
    if rankings := result.get("retrieval"):
        if golds < len(run.lines):
            parts.append(f"Rankings, over the {golds} questions that name gold documents:")
        recalls = list(next(iter(rankings.values())))
        ends = {name: intervals.get(f"retrieval {name}", {}) for name in rankings}
        parts.append(_numbers(["ranking", *recalls], recalls, rankings, ends))
    return parts


def _numbers(
    head: Sequence[str],
    keys: Sequence[str],
    numbers: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Sequence[float]]],
) -> Table:
    """A table of means by name and key, with intervals where these are known."""

    def cell(name: str, key: str) -> str:
        if key not in numbers[name]:
            return ""
        ends, mean = intervals.get(name, {}).get(key), numbers[name][key]
        return predictions.with_interval(mean, ends) if ends else f"{mean:.3f}"

    return Table(head, [[_words(name), *(cell(name, key) for key in keys)] for name in numbers])


def _words(condition: str) -> str:
    return condition.replace("_", " ")


def _drawn(name: str, title: str, x_label: str, lines: Sequence[Series], **options: Any) -> Chart:
    name = name.replace("/", "-").replace("@", "-at-")
    return Chart(name, title, charts.svg(charts.chart(title, x_label, lines, **options), title))


def _by_rate(runs: Sequence[Run]) -> list[Chart]:
    """BY_RATE under each condition over the realised rate, where rates differ."""
    order = sorted(runs, key=lambda run: run.result.get("compression_rate", 0))
    rates = [run.result.get("compression_rate", 0) for run in order]
    if len(set(rates)) < 2 or min(rates) <= 0:
        return []
    drawn = []
    for key, title in BY_RATE.items():
        lines = []
        for name in dict.fromkeys(name for run in order for name in run.result["conditions"]):
            means = [
                (rate, _measured(run, name, key)) for rate, run in zip(rates, order, strict=True)
            ]
            has = [(rate, mean) for rate, mean in means if mean]
            if has:
                points, ends = [(rate, mean[0]) for rate, mean in has], [m[1:3] for _, m in has]
                lines.append(Series(_words(name), points, ends if len(has[0][1]) > 1 else (), True))
        if lines:
            x_label = "tokens of text a memory vector, realised"
            drawn.append(_drawn(f"{key}-by-rate", title, x_label, lines, rates=True))
    return drawn


def _measured(run: Run, name: str, key: str) -> tuple[float, ...] | None:
    """Mean of a metric under a condition with its interval, or seconds a question."""
    if key == "seconds":
        seconds = run.result["conditions"].get(name, {}).get(key)
        return None if seconds is None else (seconds / run.result["questions"],)
    return predictions.mean([line for line in run.lines if name in line["values"]], name, key)


def _efficiency(rows: Sequence[efficiency_table.Row], draw: bool) -> list[Table | Chart]:
    """The table of benchmarks/efficiency.py, and the time of an answer by rate."""
    seconds = sorted((int(r.name[:-1]), r.answer) for r in rows if r.name != "full text")
    table = Table(efficiency_table.HEAD, efficiency_table.cells(rows))
    if not seconds or not draw:
        return [table]
    lines = [Series("memories", seconds, marks=True)]
    ends = seconds[0][0], seconds[-1][0]
    lines += [
        Series("full text", [(rate, row.answer) for rate in ends])
        for row in rows
        if row.name == "full text"
    ]
    title = "Seconds of an answer"
    return [table, _drawn("efficiency", title, "compression rate", lines, rates=True)]


def _paper(runs: Sequence[Run]) -> Section:
    """What the paper has at the runs' rates after the first run's stage."""
    configs = [run.config for run in runs if run.config is not None]
    given = runs[0].result.get("settings", {}).get("setting", "given")
    setting = "normal" if given == "normal" else "oracle"  # files' candidates have the gold ones
    stage = configs[0].stage if configs else ""
    head, rows = paper.beside(
        stage, setting, [config.eval.rate or config.rate for config in configs]
    )
    text = (
        f"Not comparable: {paper.NAME}, candidates {setting}, means over NaturalQuestions, "
        "HotpotQA, MuSiQue and 2Wiki. Data are others, and most likely the base model and k."
    )
    table = Table([COLUMNS.get(name, name) for name in head], rows)
    return _tabled("The paper at these rates", text, table)


def _curves(runs: Sequence[Run]) -> list[Chart]:
    drawn, looks = [], {run.label: i for i, run in enumerate(runs)}  # of a run in every chart
    for key, by_run in curves({run.label: run.workdir for run in runs}, CURVES).items():
        title, log = CURVES[key]
        lines = []
        for label, points in by_run.items():
            points = points[:: -(-len(points) // _POINTS)]
            lines.append(Series(label, points, marks=len(points) < 10, look=looks[label]))
        log = log and all(y > 0 for line in lines for _, y in line.points)
        drawn.append(_drawn(key, title, "step", lines, log_y=log))
    return drawn


def _examples(run: Run, count: int) -> list[str | Example]:
    """Some that are wholly right and some that are wholly wrong, from all over the questions."""
    parts: list[str | Example] = []
    for right in (True, False):
        fits = [line for line in run.lines if line["values"][run.own]["f1"] == float(right)]
        word = "right" if right else "wrong"
        parts.append(f"{len(fits)} of {len(run.lines)} answers are wholly {word}.")
        for line in fits[:: max(1, len(fits) // count)][:count]:
            facts = [("accepted", " / ".join(line.get("answers") or [line["answer"]]))]
            facts += [(_words(n), str(line[n])) for n in run.result["conditions"] if n in line]
            gold, chosen = line.get("pos_index", []), line.get("chosen", [])
            documents = [
                (text, number in gold)
                for number, text in zip(chosen, line.get("documents", []), strict=False)
            ]
            parts.append(Example(right, line["question"], facts, documents))
    return parts


def _environment(runs: Sequence[Run]) -> list[str | Table]:
    told = {run.label: run.result.get("environment", {}) for run in runs}
    names = list(dict.fromkeys(name for each in told.values() for name in each))
    unknown = [label for label, each in told.items() if not each]
    parts: list[str | Table] = (
        [f"Not recorded by the evaluation of {', '.join(unknown)}."] if unknown else []
    )
    rows = [[name, *(each.get(name, "") for each in told.values())] for name in names]
    return [*parts, Table(["", *told], rows, words=True)] if rows else parts


def _options(runs: Sequence[Run]) -> Section:
    """Options that the runs, or a single run and the defaults, differ in."""
    configs = {run.label: run.config for run in runs if run.config is not None}
    title = "Options that differ between the runs"
    if len(configs) == 1:
        configs, title = {"defaults": Config(), **configs}, "Options that are not the defaults"
    if not configs:
        return Section(title, [])
    first, *others = configs.values()
    every = tuple(field.name for field in dataclasses.fields(Config))
    names = dict.fromkeys(n for c in others for n in config_lib.differences(first, c, every))
    rows = [[name, *(_value(get(c, name)) for c in configs.values())] for name in names]
    return Section(title, [Table(["", *configs], rows, words=True)] if rows else ["None."])


def _value(value: object) -> str:
    return '""' if value == "" else str(value)
