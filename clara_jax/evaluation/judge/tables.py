"""What a judge said, as shares with 95 % intervals, and as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.evaluation import statistics
from clara_jax.evaluation.judge.cases import Case
from clara_jax.text.markdown import table

_ANSWERS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "equivalent": "equivalent",
    "exact_match": "exact match",
    "agreement": "judge agrees with exact match",
    "exact_equivalent": "exact matches judged equivalent",
}
_ANSWERS_NOTE = (
    "Supported by the documents that the answer was read from, equivalent to an accepted answer. "
    "The judge read the documents whole, the model up to its limit. Shares are of what was judged; "
    "empty answers count as neither."
)
_PARAPHRASES = {
    "faithful": "faithful",
    "complete": "complete",
    "wrong": "things added or changed",
    "left_out": "things left out",
}
_PARAPHRASES_NOTE = (
    "Faithful: nothing added or changed. Complete: nothing left out. Shares, and things in a text, "
    "are of what was judged; empty texts count as neither faithful nor complete."
)
_COUNTS = ("wrong", "left_out")  # things in a text; all else are shares
Replies = Mapping[str, Mapping[str, Any]]  # by prompt; one that failed has only `error`


def of_answers(cases: Sequence[Case], replies: Sequence[Replies]) -> dict[str, Any]:
    """Numbers of a run's answers.

    `agreement` is how often the judge calls an answer equivalent where exact match does and only
    there, `exact_equivalent` the share of exact matches that it calls so: a judge that can be
    trusted gives nearly 1.

    Returns:
        `answers`, `not_judged` (a verdict or both missing), shares of those that have the verdict,
        with `intervals`, and `judged`: each answer with its verdicts.
    """
    support, same = (_verdicts(replies, name) for name in ("support", "equivalence"))
    exact = [case.told["exact_match"] for case in cases]
    pairs = [(e, s == "equivalent") for e, s in zip(exact, same, strict=True) if s]
    values = {
        "supported": [float(word == "supported") for word in support if word],
        "contradicted": [float(word == "contradicted") for word in support if word],
        "equivalent": [float(equal) for _, equal in pairs],
        "exact_match": exact,
        "agreement": [float(bool(e) == equal) for e, equal in pairs],
        "exact_equivalent": [float(equal) for e, equal in pairs if e],
    }
    missing = sum(not (a and b) for a, b in zip(support, same, strict=True))
    return {"answers": len(cases)} | _summary(cases, replies, values, missing)


def of_paraphrases(cases: Sequence[Case], replies: Sequence[Replies]) -> dict[str, Any]:
    """Numbers of the paraphrases of one side, as in `of_answers`.

    `wrong` and `left_out` are how many things a text adds or changes, and leaves out, in the mean.
    """
    verdicts = [r["faithfulness"] for r in replies if "error" not in r["faithfulness"]]
    values = {
        "faithful": [float(each["faithfulness"] == "faithful") for each in verdicts],
        "complete": [float(each["completeness"] == "complete") for each in verdicts],
        **{name: [float(len(each[name])) for each in verdicts] for name in _COUNTS},
    }
    missing = len(cases) - len(verdicts)
    return {"paraphrases": len(cases)} | _summary(cases, replies, values, missing)


def markdown(result: Mapping[str, Any]) -> str:
    """All of a result for people."""
    judge = result["judge"]
    parts = [
        "# Judged by a model",
        f"Judge: {judge['model']} at {judge['endpoint']}, prompts {judge['prompts']['version']}.",
    ]
    if answers := result["answers"]:
        rows = [
            [run, numbers["condition"], numbers["answers"], *_cells(numbers, _ANSWERS)]
            for run, numbers in answers.items()
        ]
        head = ["run", "condition", "answers", *_ANSWERS.values(), "not judged"]
        parts += ["## Answers", _ANSWERS_NOTE, table(head, rows)]
    if paraphrases := result["paraphrases"]:
        rows = [
            [run, side, numbers["paraphrases"], *_cells(numbers, _PARAPHRASES)]
            for run, sides in paraphrases.items()
            for side, numbers in sides.items()
        ]
        head = ["run", "documents", "number", *_PARAPHRASES.values(), "not judged"]
        parts += ["## Paraphrases read back", _PARAPHRASES_NOTE, table(head, rows)]
    return "\n\n".join(parts)


def _verdicts(replies: Sequence[Replies], name: str) -> list[str | None]:
    return [reply[name].get(name) for reply in replies]


def _summary(
    cases: Sequence[Case],
    replies: Sequence[Replies],
    values: Mapping[str, Sequence[float]],
    missing: int,
) -> dict[str, Any]:
    has = {name: each for name, each in values.items() if each}
    return {
        "not_judged": missing,
        **{name: float(np.mean(each)) for name, each in has.items()},
        "intervals": {
            name: list(statistics.interval(each, shares=name not in _COUNTS))
            for name, each in has.items()
        },
        "judged": [
            case.told | {"verdicts": reply} for case, reply in zip(cases, replies, strict=True)
        ],
    }


def _cells(numbers: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    cells = []
    for name in columns:
        ends = numbers["intervals"].get(name)
        cells.append("{:.3f} [{:.3f}, {:.3f}]".format(numbers[name], *ends) if ends else "")
    return [*cells, str(numbers["not_judged"])]
