"""Does the answer follow the document? One fact of it is changed, and the question asked again.

A model that answers from what it learnt, and not from the memory, gives the old answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax import api
from clara_jax.errors import UserError
from clara_jax.evaluation import metrics
from clara_jax.evaluation.asking import prompt
from clara_jax.evaluation.inside import data
from clara_jax.evaluation.inside.data import Given
from clara_jax.evaluation.results import share
from clara_jax.inference import answers as answers_lib
from clara_jax.models.clara import Trees
from clara_jax.plotting import FONT, pyplot
from clara_jax.runs.setup import Model

KINDS = ("new", "old", "other")  # follows the changed document, the old one, neither
_COLOURS = {"new": "#0072b2", "old": "#e69f00", "other": "#bbbbbb"}
_EXAMPLES = 5


def measure(model: Model, trees: Trees, given: Given, seed: int = 0) -> dict[str, Any]:
    """Answers from memories and from texts of documents as they were and with a fact changed.

    Args:
        model: the model.
        trees: its weights.
        given: documents and facts.
        seed: of what facts are changed to.

    Raises:
        UserError: no answer stands in its document.
    """
    changes = data.changed(given, seed)
    if not changes:
        raise UserError(
            "no answer stands word for word in its document, so that no fact can be changed; give "
            "other records, or leave counterfactual out of --only"
        )
    facts = [fact for fact, _, _ in changes]
    old = [given.documents[fact.row] for fact in facts]
    texts = {"as it was": old, "one fact changed": [text for _, _, text in changes]}
    shares: dict[str, Any] = {}
    kept: dict[str, list[str]] = {}
    for what, documents in texts.items():
        for form in ("memory", "text"):
            answers = _answers(model, trees, [fact.question for fact in facts], documents, form)
            said = [
                follows(answer, new, fact.answer)
                for answer, (fact, new, _) in zip(answers, changes, strict=True)
            ]
            shares[f"{form}, {what}"] = {kind: share([s == kind for s in said]) for kind in KINDS}
            kept[f"{form}, {what}"] = answers
    return {
        "changed": len(changes),
        "passed_over": len(given.facts) - len(changes),
        "shares": shares,
        "answers": [
            {
                "question": fact.question, "old": fact.answer, "new": new,
                **{name: answers[i] for name, answers in kept.items()},
            }
            for i, (fact, new, _) in enumerate(changes)
        ],
    }  # fmt: skip


def follows(answer: str, new: str, old: str) -> str:
    """Which of KINDS an answer is; one that names both facts, or none, is `other`."""
    is_new, is_old = (bool(metrics.cover_exact_match(answer, fact)) for fact in (new, old))
    if is_new == is_old:
        return "other"
    return "new" if is_new else "old"


def _answers(
    model: Model, trees: Trees, questions: Sequence[str], documents: Sequence[str], form: str
) -> list[str]:
    batch = model.config.eval.batch
    if form == "memory":
        distinct = list(dict.fromkeys(documents))
        memories = api.compress(model, trees, distinct, batch).memories
        row = {text: i for i, text in enumerate(distinct)}
        given = [memories[[row[text]]] for text in documents]
    else:
        given = [model.layout.head(text) for text in documents]
    asked = [prompt(model, *pair)[0] for pair in zip(questions, given, strict=True)]
    return answers_lib.answers(model, trees, asked, model.config.eval.max_new_tokens, batch=batch)


def draw(found: dict[str, Any]) -> Any:
    """Bars of what answers follow."""
    figure, axes = pyplot().subplots(figsize=(9, 3.4), layout="constrained")
    names = list(found["shares"])
    left = np.zeros(len(names))
    for kind, label in zip(KINDS, ("new fact", "old fact", "neither"), strict=True):
        widths = np.array([found["shares"][name][kind]["mean"] for name in names])
        axes.barh(names, widths, left=left, color=_COLOURS[kind], label=label)
        for y, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.05:
                colour = "white" if kind == "new" else "black"
                x, number = start + width / 2, f"{width:.0%}"
                axes.text(x, y, number, ha="center", va="center", color=colour, fontsize=FONT + 1)
        left += widths
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of answers")
    axes.set_title(f"What answers follow when a fact changes ({found['changed']} facts)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def text(found: dict[str, Any]) -> list[str]:
    """Shares with intervals, and a few answers, as lines of Markdown."""
    lines = ["| document | new fact | old fact | neither |", "|---|---:|---:|---:|"]
    for name, kinds in found["shares"].items():
        cells = (
            "{:.3f} ({:.3f}-{:.3f})".format(kinds[k]["mean"], *kinds[k]["interval"]) for k in KINDS
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"{found['changed']} facts changed; {found['passed_over']} do not stand in their "
              "document, or have no other answer of their kind.", ""]  # fmt: skip
    for a in found["answers"][:_EXAMPLES]:
        said = a["memory, one fact changed"]
        lines.append(f"- {a['question']} {a['old']} → {a['new']}; from the memory: {said}")
    return lines
