"""Changed copies of documents: their sentences in another order, and one fact exchanged.

A document of made-up facts (data/facts.py) has its own full stops and values; others are split by
rules, and what is exchanged is a name or a number that the other document has.
"""

import re

import numpy as np

from clara_jax.data import documents, facts
from clara_jax.data.records import ScpRecord
from clara_jax.evaluation.asking import occurrence
from clara_jax.text import mentions, sentences

_MADE_UP = re.compile(r"this is \w+ \w+( \. the \w+ is \w+)+ \.")
_VALUES = {value: values for values in facts.ATTRIBUTES.values() for value in values}


def split(text: str) -> tuple[str, list[str]]:
    """What stays in front, the title line or the made-up subject's sentence, and the sentences."""
    if _MADE_UP.fullmatch(text):
        first, *parts = (f"{part} ." for part in text.removesuffix(" .").split(" . "))
        return f"{first} ", parts
    document = next(documents.of_values([{"docs": [text]}]))
    return f"{document.title}\n" if document.title else "", sentences.split(document.text)


def reordered(text: str, rng: np.random.Generator) -> str | None:
    """The same sentences in another order; None of a single sentence."""
    head, parts = split(text)
    if len(parts) < 2:
        return None
    order = rng.permutation(len(parts))
    if (order == np.arange(len(parts))).all():
        order = np.roll(order, 1)
    return head + " ".join(parts[i] for i in order)


def reverse(text: str) -> str | None:
    """The sentences from the last to the first; None of a single sentence."""
    head, parts = split(text)
    return head + " ".join(parts[::-1]) if len(parts) > 1 else None


def swapped(text: str, other: str, rng: np.random.Generator) -> str | None:
    """A copy in which one name or number is that of another document; None where none fits.

    Of a document of made-up facts one attribute gets another value.
    """
    if _MADE_UP.fullmatch(text):
        place = rng.choice([m.start(1) for m in re.finditer(r" is (\w+) \.", text)])
        value = re.findall(r"\w+", text[place:])[0]
        new = str(rng.choice([v for v in _VALUES.get(value, ()) if v != value] or [""]))
        # Where the place was the subject's, which has two words, no value stood there.
        return text[:place] + new + text[place + len(value) :] if new else None
    head, parts = split(text)
    body = " ".join(parts)
    ours, theirs = mentions.find(body), mentions.find(other)
    names = [name for name in ours.entities if name in body]
    others = [name for name in theirs.entities if name.lower() not in text.lower()]
    if names and others:
        old, new = str(rng.choice(names)), str(rng.choice(others))
    else:
        numbers = re.findall(r"(?<![\w.,])\d+(?![\w.,]*\d)", body)
        strange = [n for n in re.findall(r"(?<![\w.,])\d+(?![\w.,]*\d)", other) if n not in numbers]
        if not numbers or not strange:
            return None
        old, new = str(rng.choice(numbers)), str(rng.choice(strange))
    return head + occurrence(old).sub(lambda _: new, body)


def copies(
    records: list[ScpRecord], rng: np.random.Generator
) -> list[tuple[str, str, str, str, str]]:
    """Document, its paraphrase, reordered copy, swapped copy and another document, as texts.

    The paraphrase is empty where the record has none. Documents of which there is no copy, and
    those that occur again, are left out.
    """
    distinct = list({record.document: record for record in records}.values())
    found = []
    for i, record in enumerate(distinct):
        other = distinct[(i + 1) % len(distinct)].document
        same, exchanged = reordered(record.document, rng), swapped(record.document, other, rng)
        if same and exchanged and other != record.document:
            paraphrase = record.answers[0] if record.data_type == "paraphrase" else ""
            found.append((record.document, paraphrase, same, exchanged, other))
    return found
