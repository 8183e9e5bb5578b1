"""Words that carry meaning, and what one text mentions that another does not."""

import re

from clara_jax.text import mentions, sentences

QUESTION = frozenset(
    "who whom whose what which when where why how many much long far old often".split()
)
_STOP = frozenset(
    "a an the of and or to in on at by for from with as is are was were be been being it its this "
    "that these those there he she they his her their them him i we you do does did done "
    "has have had "
    "not no can could will would may might should than then so such into about after before "
    "during between also one ones name named called known located document according passage text "
    "mentioned s t".split()
)
Compared = dict[str, tuple[int, tuple[str, ...]]]  # by kind: how many, and those that are missing

_SUFFIX = re.compile(r"(?:ing|ed|es|s|e|ly|y|ies|ied)$")


def compare(text: str, other: str) -> Compared:
    """For each kind how much of it a text mentions, and what of that another does not."""
    ours, theirs = mentions.find(text), mentions.find(other)
    known = frozenset(stems(other))
    years = {float(date[0]) for date in ours.dates if date[0]}
    lost = {
        "entities": [name for name in ours.entities if not known >= set(stems(name))],
        "numbers": [f"{n:g}" for n in sorted(ours.numbers - years)
                    if not mentions.has_number(n, theirs.numbers)],
        "dates": [_written(date) for date in sorted(ours.dates, key=str)
                  if not mentions.has_date(date, theirs.dates)],
    }  # fmt: skip
    totals = (len(ours.entities), len(ours.numbers - years), len(ours.dates))
    return {
        kind: (total, tuple(texts))
        for (kind, texts), total in zip(lost.items(), totals, strict=True)
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
