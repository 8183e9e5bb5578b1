"""Fidelity's numbers as Markdown tables, each with its 95 % interval over documents."""

from collections.abc import Mapping, Sequence
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

Runs = Mapping[str, Mapping[str, Any]]


def markdown(runs: Runs) -> str:
    """All tables that the runs have numbers for."""
    parts = [_facts(runs), _places(runs), _order(runs), _text(runs), _similarity(runs)]
    return "\n\n".join(["# Fidelity of the memories", *filter(None, parts)])


def _facts(runs: Runs) -> str:
    rows = [
        [name, f"{run['rate']:.3g}", side, f"{found['facts']}",
         *(_cell(found, state) for state in STATES), _cell(found, "precision"),
         f"{found['constant']:.3f}"]
        for name, run in sorted(runs.items(), key=lambda item: item[1]["rate"])
        for side, found in run.get("facts", {}).items()
    ]  # fmt: skip
    if not rows:
        return ""
    head = [
        "run",
        "rate",
        "documents",
        "facts",
        *STATES,
        "right among the sure",
        "constant answers",
    ]
    points = [(run["rate"], run["facts"]["unseen"]["kept"]) for run in runs.values()]
    knee = facts.knee(*zip(*points, strict=True))
    text = "" if knee is None else (
        f"\n\nFacts are lost fastest between the rates {knee[0]:.3g} and {knee[1]:.3g}."
    )  # fmt: skip
    return "## Facts\n\n" + table(head, rows) + text


def _places(runs: Runs) -> str:
    rows = [
        [name, kind, group, f"{values['facts']}", _mean(values["kept"], values["interval"])]
        for name, run in runs.items()
        for kind in ("place", "piece")
        for group, values in run.get("facts", {}).get("unseen", {}).get(f"by_{kind}", {}).items()
    ]
    if not rows:
        return ""
    note = "Place: which fifth of the document holds the answer. Piece: of a document too long."
    head = ["run", "by", "number", "facts", "kept"]
    return f"## By the place of the fact\n\n{note}\n\n{table(head, rows)}"


def _order(runs: Runs) -> str:
    rows = [
        [name, kind, f"{n['questions']}", f"{n['in_order']:.3f}", f"{n['shuffled']:.3f}",
         _mean(n["difference"], n["interval"]), f"{n['p']:.4f}",
         _mean(n["changed"], n["changed_interval"])]
        for name, run in runs.items()
        for kind, n in run.get("order", {}).items()
    ]  # fmt: skip
    parts = []
    if rows:
        head = ["run", "questions about", "questions", "cover EM", "shuffled", "difference", "p",
                "answers changed"]  # fmt: skip
        parts.append("## Sentences shuffled\n\n" + table(head, rows))
    kinds = ("in_order", "reversed", "both", "same")
    rows = [
        [name, f"{found['documents']}",
         *(_mean(found["shares"][kind], found["intervals"][kind]) for kind in kinds)]
        for name, run in runs.items()
        if (found := run.get("which_first"))
    ]  # fmt: skip
    if rows:
        head = ["run", "documents", "right in order", "right reversed", "right in both",
                "same answer twice"]  # fmt: skip
        note = "Which of two names stands first; reading no order gives 0.5, 0.5, 0 and 1."
        parts.append(f"## Which comes first\n\n{note}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _text(runs: Runs) -> str:
    sides = [
        (name, side, found)
        for name, run in runs.items()
        for side, found in run.get("text", {}).items()
    ]
    if not sides:
        return ""
    keys = [key for key in _TEXT if any(key in found["means"] for _, _, found in sides)]
    rows = [
        [name, side, f"{found['documents']}",
         *(_mean(found["means"][key], found["intervals"][key]) if key in found["means"] else ""
           for key in keys)]
        for name, side, found in sides
    ]  # fmt: skip
    head = ["run", "documents", "number", *(_TEXT[key] for key in keys)]
    by = ", ".join(dict.fromkeys(found.get("mentions", "rules") for *_, found in sides))
    shown = [
        f"> {' '.join(sample['reference'].split())[:300]}\n>\n"
        f"> **{name}:** {' '.join(sample['read back'].split())[:300]}"
        for name, side, found in sides if side == "unseen"
        for sample in found["samples"][:_SAMPLES]
    ]  # fmt: skip
    note = f"Names, numbers and dates are found by {by}."
    theirs = table(*paper.fidelity([run["rate"] for run in runs.values()]))
    told = f"Not comparable, of other documents: {paper.NAME}, Table 16, at the nearest rates."
    parts = ["## Paraphrases read back", note, table(head, rows), *shown, told, theirs]
    return "\n\n".join(parts)


def _similarity(runs: Runs) -> str:
    parts, rows = [], []
    for name, run in runs.items():
        found = run.get("similarity")
        for scorer, copies in found["scores"].items() if found else ():
            told = found["told_apart"][scorer]
            means = [
                sum(copies[c]) / len(copies[c]) if c in copies else None for c in _copies(runs)
            ]
            rows.append([name, scorer, f"{found['documents']}",
                         *("" if mean is None else f"{mean:.3f}" for mean in means),
                         _mean(told["mean"], told["interval"])])  # fmt: skip
    if rows:
        head = ["run", "score", "documents", *_copies(runs), "same facts nearer"]
        parts.append("## Closeness to changed copies\n\n" + table(head, rows))
    rows = [
        [name, f"{found['pairs']}",
         *(_mean(found["spearman"][key], found["intervals"][key]) for key in found["spearman"])]
        for name, run in runs.items()
        if (found := run.get("human_scores"))
    ]  # fmt: skip
    if rows:
        scorers = next(run["human_scores"]["spearman"] for run in runs.values())
        parts.append(
            "## Spearman's correlation with people's scores\n\n"
            + table(["run", "pairs", *scorers], rows)
        )
    return "\n\n".join(parts)


def _copies(runs: Runs) -> list[str]:
    found = [run["similarity"]["scores"]["memory"] for run in runs.values() if "similarity" in run]
    return list(dict.fromkeys(copy for copies in found for copy in copies))


def _cell(found: Mapping[str, Any], key: str) -> str:
    return _mean(found[key], found["intervals"][key]) if key in found else ""


def _mean(mean: float, interval: Sequence[float]) -> str:
    return f"{mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
