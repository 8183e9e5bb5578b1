"""How well an answer's text agrees with the accepted ones, each from 0 to 1."""

import collections
from collections.abc import Callable, Sequence

from clara_jax.text.normalise import normalise

_VERDICTS = ("yes", "no", "noanswer")  # answers that another text never partly agrees with


def exact_match(answer: str, accepted: str) -> float:
    """1 if both have the same normal form."""
    return float(normalise(answer) == normalise(accepted))


def f1(answer: str, accepted: str) -> float:
    """Harmonic mean of precision and recall of the normalised words, as multisets.

    As in HotpotQA's and 2Wiki's scripts, yes, no and noanswer agree with themselves alone, which in
    SQuAD's, otherwise the same, "no" in "no idea" would not.
    """
    ours, theirs = normalise(answer), normalise(accepted)
    if ours != theirs and (ours in _VERDICTS or theirs in _VERDICTS):
        return 0.0
    our_words, their_words = ours.split(), theirs.split()
    if not our_words or not their_words:
        return float(our_words == their_words)
    common = sum((collections.Counter(our_words) & collections.Counter(their_words)).values())
    return 2 * common / (len(our_words) + len(their_words))


def cover_exact_match(answer: str, accepted: str) -> float:
    """1 if the normalised answer contains the accepted one, which forgives wordiness."""
    wanted = normalise(accepted)
    return float(wanted in normalise(answer)) if wanted else exact_match(answer, accepted)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_exact_match": cover_exact_match,
}


def values(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Every metric of every question.

    Args:
        answers: one a question.
        accepted: all accepted answers of each question; the best agreement counts.
    """
    pairs = list(zip(answers, accepted, strict=True))
    return {
        name: [max(metric(answer, text) for text in texts) for answer, texts in pairs]
        for name, metric in METRICS.items()
    }


def best_constant(accepted: Sequence[Sequence[str]]) -> str:
    """The answer that most questions accept, in normal form: what can be had without reading."""
    counts = collections.Counter(
        text for texts in accepted for text in sorted({normalise(text) for text in texts})
    )
    return counts.most_common(1)[0][0] if counts else ""


def score(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over questions of `values`."""
    found = values(answers, accepted)
    return {name: sum(each) / max(len(each), 1) for name, each in found.items()}
