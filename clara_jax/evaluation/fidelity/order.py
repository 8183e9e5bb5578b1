"""Whether the memories tell in which order a document tells what it tells.

Two probes. In `shuffled` each document's sentences (and with them its pieces) come in another order
and its questions are asked again: answers should change only where they depend on the order, such
as those to questions with "first", "after" or "last". In `which_first` the answer does depend on it
and is known: of two names of one document, which stands in it first? One prompt holds the document,
another its sentences from the last to the first, which turns the answer round; of the two names the
generator's likelier one counts as its answer. A model that does not read the order gives the same
answer both times and is right in one half.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from clara_jax.data.records import ScpRecord
from clara_jax.evaluation import asking, metrics, results, statistics
from clara_jax.evaluation.fidelity import copies
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Piece
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.text import mentions
from clara_jax.text.normalise import normalise

_ORDER = re.compile(
    r"\b(first|last|before|after|then|next|earlier|later|begin|begins|began|end|ends|ended|"
    r"finally|initially|originally|eventually|followed|precede[sd]?|until|since)\b",
    re.IGNORECASE,
)


def depends_on_order(question: str) -> bool:
    """Whether a question has a word for order in it: a rule, which errs."""
    return bool(_ORDER.search(question))


def shuffled(
    model: Model,
    trees: Trees,
    records: Sequence[ScpRecord],
    pieces: Pieces | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What becomes of the answers when the documents' sentences are shuffled.

    Returns:
        For `order` (questions with a word for order) and `other`, where there are any: `questions`,
        cover exact match of the document `in_order` and `shuffled`, `difference` with its
        `interval` and `p`, and the share of answers that `changed`.
    """
    rng = np.random.default_rng(seed)
    asked = [
        (record.document, copy, record.questions, record.accepted)
        for record in records
        if (copy := copies.reordered(record.document, rng))
    ]
    if not asked:
        return {}
    documents = [each[0] for each in asked for _ in each[2]]  # a question's, drawn together
    questions = [text for each in asked for text in each[2]]
    accepted = [texts for each in asked for texts in each[3]]
    found = (pieces or Pieces()).each("sentences shuffled", asked, partial(_answers, model, trees))
    answers = [[text for piece in found for text in piece["answers"][i]] for i in range(2)]
    right = [metrics.values(texts, accepted)["cover_exact_match"] for texts in answers]
    changed = [float(normalise(a) != normalise(b)) for a, b in zip(*answers, strict=True)]
    out = {}
    for name, wanted in (("order", True), ("other", False)):
        chosen = [i for i, q in enumerate(questions) if depends_on_order(q) == wanted]
        if chosen:
            groups = [documents[i] for i in chosen]
            before, after = ([values[i] for i in chosen] for values in right)
            gap = statistics.paired(after, before, groups)
            share = results.share([changed[i] for i in chosen], groups)
            out[name] = {
                "questions": len(chosen),
                "in_order": float(np.mean(before)),
                "shuffled": float(np.mean(after)),
                "difference": gap.difference,
                "interval": [gap.low, gap.high],
                "p": gap.p,
                "changed": share["mean"],
                "changed_interval": share["interval"],
            }
    return out


def _answers(model: Model, trees: Trees, asked: Sequence[tuple[str, str, Any, Any]]) -> Piece:
    """A piece of `shuffled`: the answers from the documents, and from the copies."""
    questions = [question for each in asked for question in each[2]]
    given = [_read(model, trees, [each[i] for each in asked for _ in each[2]]) for i in range(2)]
    return {"answers": [asking.answer(model, trees, questions, one) for one in given]}


def which_first(
    model: Model, trees: Trees, records: Sequence[ScpRecord], pieces: Pieces | None = None
) -> dict[str, Any]:
    """How often the generator knows which of two names a document has first.

    Returns:
        `documents`; shares, with intervals, that are right `in_order`, right `reversed`, right in
        `both`, and the `same` answer twice; empty if no document has two names in two sentences.
    """
    cases = [case for text in dict.fromkeys(r.document for r in records) if (case := _case(text))]
    if not cases:
        return {}
    asked = []
    for i, case in enumerate(cases):
        # Which name the question has first must not tell the answer.
        names = (case[2], case[3]) if i % 2 else (case[3], case[2])
        text = f"Which of the two does the document mention first, {' or '.join(names)}?"
        asked.append((*case, text))
    found = (pieces or Pieces()).each(
        "which comes first", asked, partial(_says_first, model, trees)
    )
    says_first = [np.concatenate([piece["says_first"][i] for piece in found]) for i in range(2)]
    values = {
        "in_order": says_first[0],
        "reversed": ~says_first[1],
        "both": says_first[0] & ~says_first[1],
        "same": says_first[0] == says_first[1],
    }
    return {
        "documents": len(cases),
        "shares": results.means(values),
        "intervals": results.intervals(values),
    }


def _says_first(
    model: Model, trees: Trees, asked: Sequence[tuple[str, str, str, str, str]]
) -> Piece:
    """A piece of `which_first`: whether the first name is likelier, in order and reversed."""
    questions, says_first = [each[4] for each in asked], []
    for place in range(2):
        given = _read(model, trees, [each[place] for each in asked])
        costs = [
            asking.nats(model, trees, questions, given, [each[name] for each in asked])[0]
            for name in (2, 3)
        ]
        says_first.append((costs[0] < costs[1]).tolist())
    return {"says_first": says_first}


def _read(model: Model, trees: Trees, texts: Sequence[str]) -> list[asking.Read]:
    """Each distinct text is compressed once."""
    distinct = list(dict.fromkeys(texts))
    found = dict(zip(distinct, asking.read(model, trees, distinct)[0], strict=True))
    return [found[text] for text in texts]


def _case(text: str) -> tuple[str, str, str, str] | None:
    """A document, it reversed, and two names that stand in one sentence each, the first first.

    The names are of similar length, as far as there is a choice, for a longer one costs more.
    """
    title, parts = copies.split(text)
    turned = copies.reverse(text)
    if turned is None:
        return None
    place: dict[str, int] = {}
    for name in mentions.entities(" ".join(parts)):
        holds = [i for i, part in enumerate(parts) if name.lower() in part.lower()]
        if len(holds) == 1 and name.lower() not in title.lower():
            place[name] = holds[0]
    pairs = [(abs(len(a) - len(b)), a, b) for a in place for b in place if place[a] < place[b]]
    return (text, turned, *min(pairs)[1:]) if pairs else None
