"""Which names, numbers and dates a text has, by a pipeline of spaCy in place of rules.

The pipeline says what is a mention. Whether another text has it too is decided as by the rules:
a number or a date by its value ("in June 1907" has 1907, "twelve" is 12), all else by the words
that carry meaning, so that what the pipeline overlooks in the other text does not count as lost.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from clara_jax.errors import UserError, reason
from clara_jax.text import mentions, wording

# OntoNotes' labels, which English pipelines have, and WikiNER's, of most other languages.
LABELS = {
    "entities": frozenset(
        "PERSON NORP FAC ORG GPE LOC PRODUCT EVENT WORK_OF_ART LAW LANGUAGE PER MISC".split()
    ),
    "numbers": frozenset("CARDINAL ORDINAL QUANTITY MONEY PERCENT".split()),
    "dates": frozenset("DATE TIME".split()),
}
_KEPT = 4096  # texts whose mentions are kept: each is compared both ways


def comparer(name: str) -> Callable[[str, str], wording.Compared]:
    """What `wording.compare` does, by the labels of a pipeline.

    Args:
        name: of an installed pipeline, or the folder of one.

    Raises:
        UserError: spaCy or the pipeline is missing, or it names nothing.
    """
    return functools.partial(_compare, functools.lru_cache(_KEPT)(_finder(_load(name))))


def _load(name: str) -> Any:
    try:
        import spacy
    except ImportError as e:
        raise UserError(
            "--spacy needs spaCy: pip install spacy, or leave it out for the rules"
        ) from e
    try:
        pipeline = spacy.load(name)
    except (OSError, ValueError, ImportError) as e:  # not there, not one, of another version
        raise UserError(
            f"--spacy={name}: no pipeline that spaCy {spacy.__version__} loads ({reason(e)})"
        ) from e
    known = frozenset().union(*LABELS.values())
    if not known & {label for labels in pipeline.pipe_labels.values() for label in labels}:
        raise UserError(
            f"--spacy={name}: has no component that labels names, numbers or dates, only "
            f"{', '.join(pipeline.pipe_names) or 'a tokenizer'}; give one with an ner"
        )
    return pipeline


def _finder(pipeline: Any) -> Callable[[str], dict[str, tuple[str, ...]]]:
    def find(text: str) -> dict[str, tuple[str, ...]]:
        """Mentions of each kind, the same one once."""
        spans = [(span.label_, span.text) for span in pipeline(text).ents]
        return {
            kind: _distinct(words for label, words in spans if label in labels)
            for kind, labels in LABELS.items()
        }

    return find


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    found: dict[tuple[str, ...], str] = {}
    for text in texts:  # "the Danes" and "Danes" are one
        found.setdefault(tuple(wording.stems(text)) or (text,), text)
    return tuple(found.values())


def _compare(
    find: Callable[[str], dict[str, tuple[str, ...]]], text: str, other: str
) -> wording.Compared:
    known, theirs = frozenset(wording.stems(other)), mentions.find(other)
    return {
        kind: (len(ours), tuple(words for words in ours if not _has(kind, words, known, theirs)))
        for kind, ours in find(text).items()
    }


def _has(kind: str, words: str, known: frozenset[str], theirs: mentions.Mentions) -> bool:
    """Whether a text with these stems and mentions has the words of one of LABELS."""
    if kind == "numbers" and (values := mentions.numbers(words)):
        return all(mentions.has_number(value, theirs.numbers) for value in values)
    if kind == "dates" and (dates := mentions.dates(words)):
        return all(mentions.has_date(date, theirs.dates) for date in dates)
    return known >= set(wording.stems(words))
