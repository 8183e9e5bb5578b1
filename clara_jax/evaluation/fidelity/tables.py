"""Fidelity's numbers as Markdown tables, each with its 95 % interval over documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clara_jax.evaluation.fidelity import facts
from clara_jax.evaluation.fidelity.facts import STATES
from clara_jax.evaluation.paper import paper
from clara_jax.text.markdown import table

_SAMPLES = 3  # paraphrases that are shown
_TEXT = {
    "rouge_1": "ROUGE-1",
    "rouge_l": "ROUGE-L",
    "bert_score": "BERTScore",
    "entities_kept": "names kept",
    "numbers_kept": "numbers kept",
    "dates_kept": "dates kept",
    "entities_own": "names not in the document",
    "numbers_own": "numbers not in it",
}
_FIRST = {
    "in_order": "right in order",
    "reversed": "right reversed",
    "both": "right in both",
    "same": "same answer twice",
}

Runs = Mapping[str, Mapping[str, Any]]


def markdown(runs: Runs) -> str:
    """All tables that the runs have numbers for."""
    sections = (_facts, _places, _shuffled, _which_first, _text, _copies, _human_scores)
    parts = [section(runs) for section in sections]
    return "\n\n".join(["# Fidelity of the memories", *filter(None, parts)])


def _section(heading: str, head: Sequence[str], rows: list[list[str]], note: str = "") -> str:
    """A table under its heading; nothing without rows."""
    parts = [f"## {heading}", note, table(["run", *head], rows)]
    return "\n\n".join(filter(None, parts)) if rows else ""


def _facts(runs: Runs) -> str:
    rows = [
        [
            name,
            f"{run['rate']:.3g}",
            side,
            str(found["facts"]),
            *_cells(found, found["intervals"], (*STATES, "precision")),
            f"{found['constant']:.3f}",
        ]
        for name, run in sorted(runs.items(), key=lambda item: item[1]["rate"])
        for side, found in run.get("facts", {}).items()
    ]
    last = ["right among the sure", "constant answers"]
    text = _section("Facts", ["rate", "documents", "facts", *STATES, *last], rows)
    if text:
        points = [(run["rate"], run["facts"]["unseen"]["kept"]) for run in runs.values()]
        if knee := facts.knee(*zip(*points, strict=True)):
            text += "\n\nFacts are lost fastest between the rates {:.3g} and {:.3g}.".format(*knee)
    return text


def _places(runs: Runs) -> str:
    rows = [
        [name, kind, group, str(values["facts"]), _mean(values["kept"], values["interval"])]
        for name, run in runs.items()
        for kind in ("place", "piece")
        for group, values in run.get("facts", {}).get("unseen", {}).get(f"by_{kind}", {}).items()
    ]
    note = "Place: which fifth of the document holds the answer. Piece: of a document too long."
    return _section("By the place of the fact", ["by", "number", "facts", "kept"], rows, note)


def _shuffled(runs: Runs) -> str:
    rows = [
        [
            name,
            kind,
            str(found["questions"]),
            f"{found['in_order']:.3f}",
            f"{found['shuffled']:.3f}",
            _mean(found["difference"], found["interval"]),
            f"{found['p']:.4f}",
            _mean(found["changed"], found["changed_interval"]),
        ]
        for name, run in runs.items()
        for kind, found in run.get("order", {}).items()
    ]
    head = "questions about,questions,cover EM,shuffled,difference,p,answers changed".split(",")
    return _section("Sentences shuffled", head, rows)


def _which_first(runs: Runs) -> str:
    rows = [
        [name, str(found["documents"]), *_cells(found["shares"], found["intervals"], _FIRST)]
        for name, run in runs.items()
        if (found := run.get("which_first"))
    ]
    note = "Which of two names stands first; reading no order gives 0.5, 0.5, 0 and 1."
    return _section("Which comes first", ["documents", *_FIRST.values()], rows, note)


def _text(runs: Runs) -> str:
    sides = [
        (name, side, found)
        for name, run in runs.items()
        for side, found in run.get("text", {}).items()
    ]
    if not sides:
        return ""
    keys = [key for key in _TEXT if any(key in found["means"] for *_, found in sides)]
    rows = [
        [name, side, str(found["documents"]), *_cells(found["means"], found["intervals"], keys)]
        for name, side, found in sides
    ]
    by = ", ".join(dict.fromkeys(found.get("mentions", "rules") for *_, found in sides))
    note = f"Names, numbers and dates are found by {by}."
    head = ["documents", "number", *(_TEXT[key] for key in keys)]
    shown = [
        f"> {' '.join(sample['reference'].split())[:300]}\n>\n"
        f"> **{name}:** {' '.join(sample['read back'].split())[:300]}"
        for name, side, found in sides
        if side == "unseen"
        for sample in found["samples"][:_SAMPLES]
    ]
    told = f"Not comparable, of other documents: {paper.NAME}, Table 16, at the nearest rates."
    theirs = table(*paper.fidelity([run["rate"] for run in runs.values()]))
    return "\n\n".join([_section("Paraphrases read back", head, rows, note), *shown, told, theirs])


def _copies(runs: Runs) -> str:
    measured = {name: run["similarity"] for name, run in runs.items() if "similarity" in run}
    scores = [found["scores"]["memory"] for found in measured.values()]
    copies = list(dict.fromkeys(copy for each in scores for copy in each))
    rows = []
    for name, found in measured.items():
        for scorer, closeness in found["scores"].items():
            told = found["told_apart"][scorer]
            means = [sum(x) / len(x) if x else None for x in map(closeness.get, copies)]
            cells = ["" if mean is None else f"{mean:.3f}" for mean in means]
            apart = _mean(told["mean"], told["interval"])
            rows.append([name, scorer, str(found["documents"]), *cells, apart])
    head = ["score", "documents", *copies, "same facts nearer"]
    return _section("Closeness to changed copies", head, rows)


def _human_scores(runs: Runs) -> str:
    measured = {name: run["human_scores"] for name, run in runs.items() if run.get("human_scores")}
    scorers = list(next(iter(measured.values()))["spearman"]) if measured else []
    rows = [
        [name, str(found["pairs"]), *_cells(found["spearman"], found["intervals"], scorers)]
        for name, found in measured.items()
    ]
    return _section("Spearman's correlation with people's scores", ["pairs", *scorers], rows)


def _cells(
    means: Mapping[str, float], intervals: Mapping[str, Sequence[float]], keys: Iterable[str]
) -> list[str]:
    return [_mean(means[key], intervals[key]) if key in means else "" for key in keys]


def _mean(mean: float, interval: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(mean, *interval)
