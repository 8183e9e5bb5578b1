"""Words that carry meaning, and what one text mentions that another does not."""

import re

from clara_jax.text import mentions, sentences
from clara_jax.text.words import WORDS

QUESTION = frozenset(WORDS["question"])
_STOP = frozenset(WORDS["stop"])
Compared = dict[str, tuple[int, tuple[str, ...]]]  # by kind: how many, and those that are missing

_SUFFIX = re.compile(r"(?:ing|ed|es|s|e|ly|y|ies|ied)$")


def compare(text: str, other: str) -> Compared:
    """For each kind how much of it a text mentions, and what of that another does not."""
    ours, theirs = mentions.find(text), mentions.find(other)
    known = frozenset(stems(other))
    years = {float(date[0]) for date in ours.dates if date[0]}
    names = [name for name in ours.entities if not known >= set(stems(name))]
    numbers = sorted(ours.numbers - years)
    lost = [f"{n:g}" for n in numbers if not mentions.has_number(n, theirs.numbers)]
    dates = [date for date in ours.dates if not mentions.has_date(date, theirs.dates)]
    return {
        "entities": (len(ours.entities), tuple(names)),
        "numbers": (len(numbers), tuple(lost)),
        "dates": (len(ours.dates), tuple(map(_written, sorted(dates, key=str)))),
    }


def _written(date: mentions.Date) -> str:
    text = "-".join("?" if part is None else f"{part:02d}" for part in date)
    return re.sub(r"(-\?)+$", "", text)


def stems(text: str) -> list[str]:
    """Words that carry meaning, without endings; numbers by their value."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return [
        _stem(word) for word in sentences.words(text) if word not in _STOP and word not in QUESTION
    ]


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word)
    if word in mentions.SMALL:
        return str(mentions.SMALL[word])
    if not word.isalpha():
        return word
    short = _SUFFIX.sub("", word)
    return short[:7] if len(short) > 2 else word
