"""Which facts the memories hold: kept, altered or lost, by the rate and by the fact's place.

A fact is a question about a document and its accepted answers. What the generator answers from the
memories alone says what became of it:

    kept     the answer is an accepted one, or holds one
    altered  it is another, and the generator is sure of it: a reader would believe it
    lost     it is another, and the generator itself doubts it

It is sure where the answer's tokens have a probability of one half or more, in the geometric mean
so that long answers compare with short ones; after scp an answer's end counts as one of them.
`precision` is the share of kept among the answers that it is sure of. A memory that drops a fact
and says so is better than one that alters it, which accuracy alone does not tell.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_jax.data.records import ScpRecord, digest
from clara_jax.evaluation import asking, metrics, results
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Piece
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model

STATES = ("kept", "altered", "lost")
SURE = 0.5  # the probability of an answer's tokens from which on it counts as sure
PLACES = 5  # equal parts of a document
_OFTEN = 5  # a question asked of as many documents has a constant answer of its own


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact and what became of it."""

    question: str  # it asks for the fact
    accepted: tuple[str, ...]  # its answers
    answer: str  # the one that was given
    probability: float  # of the answer's tokens, their geometric mean
    state: str  # of STATES
    # where in the document an accepted answer stands, from 0 to below 1; None: nowhere
    place: float | None
    piece: int | None  # number of the document's piece with that place; None: as there
    pieces: int  # of the document
    document: str  # tells documents apart


def judge(answer: str, accepted: Sequence[str], probability: float) -> str:
    """What became of a fact (module docstring)."""
    if any(metrics.cover_exact_match(answer, text) for text in accepted):
        return "kept"
    return "altered" if probability >= SURE and answer.strip() else "lost"


def locate(text: str, accepted: Sequence[str]) -> float | None:
    """Where the first accepted answer found in a text begins, as a share of it; None: nowhere."""
    wanted = filter(None, map(str.strip, accepted))
    places = (asking.place(text, answer, re.IGNORECASE) for answer in wanted)
    return next((place for place in places if place is not None), None)


def ask(
    model: Model,
    trees: Trees,
    records: Sequence[ScpRecord],
    pieces: Pieces | None = None,
    part: str = "facts",
) -> tuple[list[Fact], float]:
    """All facts of qa records, and the realised rate of their documents.

    Args:
        model: the model.
        trees: its weights.
        records: with the questions.
        pieces: keep what is finished.
        part: their name.
    """
    found = (pieces or Pieces()).each(part, records, functools.partial(_ask, model, trees))
    facts = [
        Fact(**(fact | {"accepted": tuple(fact["accepted"])}))
        for piece in found
        for fact in piece["facts"]
    ]
    memories = [piece["memories"] for piece in found]
    return facts, float(np.average([piece["rate"] for piece in found], weights=memories))


def _ask(model: Model, trees: Trees, records: Sequence[ScpRecord]) -> Piece:
    """A piece of `ask`: the facts, and the rate with the number of memories that it is over."""
    given, rate = asking.read(model, trees, [record.document for record in records])
    asked = [
        (question, accepted, record.document, one)
        for record, one in zip(records, given, strict=True)
        for question, accepted in zip(record.questions, record.accepted, strict=True)
    ]
    questions, reads = [each[0] for each in asked], [each[3] for each in asked]
    answers = asking.answer(model, trees, questions, reads)
    costs, tokens = asking.nats(model, trees, questions, reads, answers)
    sure = np.exp(-costs / np.maximum(tokens, 1))
    facts = []
    for (question, accepted, text, one), answer, p in zip(
        asked, answers, sure.tolist(), strict=True
    ):
        inside = [locate(part, accepted) is not None for part in one.texts]
        piece = inside.index(True) if any(inside) else None
        state, place = judge(answer, accepted, p), locate(text, accepted)
        document = digest(text).hex()[:12]
        fact = Fact(question, accepted, answer, p, state, place, piece, len(one.texts), document)
        facts.append(dataclasses.asdict(fact))
    return {
        "facts": facts,
        "rate": rate,
        "memories": sum(len(one.texts) for one in given),
    }


def summary(facts: Sequence[Fact]) -> dict[str, Any]:
    """Shares of STATES, `precision`, 95 % intervals of each, and what constant answers would keep.

    Args:
        facts: at least one.
    """
    states = {state: [float(fact.state == state) for fact in facts] for state in STATES}
    means, intervals = results.means(states), results.intervals(states, _documents(facts))
    if certain := [fact for fact in facts if fact.probability >= SURE]:
        kept = {"precision": [float(fact.state == "kept") for fact in certain]}
        means |= results.means(kept)
        intervals |= results.intervals(kept, _documents(certain))
    return {
        "facts": len(facts),
        "sure": len(certain),
        **means,
        "intervals": intervals,
        "constant": constant(facts),
        "by_question": _by_question(facts),
        "by_place": _grouped(facts, lambda f: f.place, lambda p: f"{int(p * PLACES) + 1}"),
        "by_piece": _grouped(
            [fact for fact in facts if fact.pieces > 1], lambda f: f.piece, lambda p: f"{p + 1}"
        ),
    }


def _documents(facts: Sequence[Fact]) -> list[str]:
    """Facts of one document are drawn together: what became of one tells of the others."""
    return [fact.document for fact in facts]


def constant(facts: Sequence[Fact]) -> float:
    """Share kept by the best constant answer to each question that is asked often."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.question, []).append(fact)
    right = 0.0
    for group in groups.values():
        if len(group) >= _OFTEN:
            accepted = [fact.accepted for fact in group]
            best = metrics.best_constant(accepted)
            right += sum(any(metrics.exact_match(best, a) for a in each) for each in accepted)
    return right / len(facts)


def knee(rates: Sequence[float], kept: Sequence[float]) -> tuple[float, float] | None:
    """The two neighbouring rates between which most is lost for each doubling.

    None where nothing is lost, or there are but two rates.

    Args:
        rates: of runs, in any order.
        kept: the share of facts each keeps.
    """
    points = sorted(zip(rates, kept, strict=True))
    falls = [
        ((a - b) / np.log2(high / low), low, high)
        for (low, a), (high, b) in itertools.pairwise(points)
        if high > low
    ]
    fall, low, high = max(falls, default=(0.0, 0.0, 0.0))
    return (low, high) if fall > 0 and len(falls) > 1 else None


def _by_question(facts: Sequence[Fact]) -> dict[str, dict[str, float]]:
    """By the question where few are asked again and again, else by its first word, if often so."""
    if len({fact.question for fact in facts}) * _OFTEN <= len(facts):
        return _grouped(facts, lambda f: f.question, str)
    firsts = collections.Counter(_first(fact.question) for fact in facts)
    return _grouped(
        facts,
        lambda f: _first(f.question),
        lambda word: word if firsts[word] >= _OFTEN else "other",
    )


def _first(question: str) -> str:
    return (question.lower().split() or [""])[0]


def _grouped(
    facts: Sequence[Fact], value: Callable[[Fact], Any], name: Callable[[Any], str]
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        if (at := value(fact)) is not None:
            groups.setdefault(name(at), []).append(fact)
    out = {}
    for text in sorted(groups, key=lambda text: (len(text), text)):
        kept = [float(fact.state == "kept") for fact in groups[text]]
        share = results.share(kept, _documents(groups[text]))
        out[text] = {"facts": len(kept), "kept": share["mean"], "interval": share["interval"]}
    return out
