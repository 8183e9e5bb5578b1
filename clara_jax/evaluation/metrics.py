"""How well an answer's text agrees with the accepted ones, each from 0 to 1."""

import collections
import re
import string
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, without punctuation and articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, accepted: str) -> float:
    """1 if both have the same normal form."""
    return float(normalise(answer) == normalise(accepted))


def f1(answer: str, accepted: str) -> float:
    """Harmonic mean of precision and recall of the normalised words, as multisets."""
    ours, theirs = normalise(answer).split(), normalise(accepted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def cover_exact_match(answer: str, accepted: str) -> float:
    """1 if the normalised answer contains the accepted one, which forgives wordiness."""
    wanted = normalise(accepted)
    return float(wanted in normalise(answer)) if wanted else exact_match(answer, accepted)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_exact_match": cover_exact_match,
}


def score(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over questions of every metric.

    Args:
        answers: one a question.
        accepted: all accepted answers of each question; the best agreement counts.
    """
    pairs = list(zip(answers, accepted, strict=True))
    return {
        name: sum(max(metric(answer, text) for text in texts) for answer, texts in pairs)
        / max(len(pairs), 1)
        for name, metric in METRICS.items()
    }
