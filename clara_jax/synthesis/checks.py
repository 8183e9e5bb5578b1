"""What is wrong with questions, answers and paraphrases, by rules: no model is asked.

The rules were tuned on one half of the documents that `planted` draws from and are measured on the
other half. They let much through that is wrong; what they flag seldom is right.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from clara_jax.data.documents import Document
from clara_jax.synthesis import languages
from clara_jax.text import mentions, sentences, wording
from clara_jax.text.normalise import normalise

ANSWER = "answer not in the document"
NUMBER = "number not in the document"
DATE = "date not in the document"
ENTITY = "entity not in the document"
ELSEWHERE = "answer does not belong to the question's sentence"
KIND = "answer is not of the kind that the question asks for"
REPEAT = "question repeats another"
LENGTH = "empty or too long"
LANGUAGE = "wrong language"
ITSELF = "question answers itself"

LOST, ADDED = "lost", "added"
SHORT, LONG = "much shorter than the document", "much longer than the document"
COPIED = "copied from the document"

_MOST_WORDS = 60  # of a question or an answer
_MISSING = 0.34  # share of an answer's words that may be in neither document nor question
_TOGETHER = 0.6  # share of them that must be in two sentences one after the other
_BELONGS = 0.2  # of the best sentence's agreement with the question that the answer's must have
_NEIGHBOUR = 0.5  # what a word of the question in the sentence before or after counts
_SAME = 0.8  # Jaccard similarity of questions with one answer
_RATIO = (0.5, 1.8)  # of a paraphrase's words to the document's
_COPIED = 0.6  # share of a paraphrase's runs of eight words that are the document's
_RUN = 8

_MAY_REPEAT = re.compile(r" (or|name|names|named|known|called) ")  # "which is older, A or B"
_JUDGEMENT = re.compile(
    r"^(yes|no|maybe|true|false|ja|nein|oui|non|sí|sì|sim|não)\b[,.;:!\s]*", re.I
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question with its answer."""

    question: str  # the question
    answer: str  # as short as possible, from the document alone
    kind: str = "simple"  # `simple`, of one fact, or `complex`, of several from different places
    round: int = 0  # in which it was asked for, from 0


@dataclasses.dataclass(frozen=True)
class Checks:
    """What was found about the questions of one document."""

    # for each pair the reasons against it; empty where there are none
    flags: tuple[tuple[str, ...], ...]
    # share of the document's entities, numbers and dates that any pair mentions
    coverage: dict[str, float]
    uncovered: dict[str, tuple[str, ...]]  # those that none does

    def as_json(self) -> dict[str, Any]:
        """What goes into a record's report."""
        return {
            "flags": [list(reasons) for reasons in self.flags],
            "coverage": {kind: round(share, 4) for kind, share in self.coverage.items()},
            "uncovered": {kind: list(texts) for kind, texts in self.uncovered.items()},
        }


@dataclasses.dataclass(frozen=True)
class Paraphrase:
    """What was found about a paraphrase."""

    flags: tuple[str, ...]  # the reasons against it
    # entities, numbers and dates of the document that it does not mention
    lost: dict[str, tuple[str, ...]]
    added: dict[str, tuple[str, ...]]  # those that are its own
    length_ratio: float  # its words, of the document's
    copied: float  # share of its runs of words that are the document's

    def as_json(self) -> dict[str, Any]:
        """What goes into a record's report."""
        return dataclasses.asdict(self)


def check(document: Document, pairs: Sequence[Pair], language: str = "English") -> Checks:
    """Judges the questions and answers of a document.

    Args:
        document: what they are about.
        pairs: of a question and its answer; a question counts as a repetition of earlier ones.
        language: in which they should be; of a language without rules nothing is flagged for it.
    """
    page, by_case = _Page(document), languages.has_names_by_case(language)
    flags = []
    for i, pair in enumerate(pairs):
        reasons = [*_form(pair, language), *_repeats(pair, pairs[:i])]
        if pair.answer.strip():
            reasons += page.against(pair, by_case)
        flags.append(tuple(dict.fromkeys(reasons)))
    said = " ; ".join(f"{pair.question} ; {pair.answer}" for pair in pairs)
    parts = wording.compare(document.whole, said)
    return Checks(
        tuple(flags),
        {kind: 1 - len(lost) / max(total, 1) for kind, (total, lost) in parts.items()},
        {kind: lost for kind, (_, lost) in parts.items() if lost},
    )


def check_paraphrase(document: Document, text: str, language: str = "English") -> Paraphrase:
    """Judges a paraphrase of a document."""
    lost, added = (
        {kind: names for kind, (_, names) in wording.compare(*texts).items() if names}
        for texts in ((document.whole, text), (text, document.whole))
    )
    theirs, ours = sentences.words(document.text), sentences.words(text)
    ratio = len(ours) / max(len(theirs), 1)
    runs, known = _runs(ours), set(_runs(theirs))
    copied = sum(run in known for run in runs) / max(len(runs), 1)
    flags = [f"{kind} {LOST}" for kind in lost] + [f"{kind} {ADDED}" for kind in added]
    for reason, holds in (
        (LENGTH, not text.strip()),
        (SHORT, ratio < _RATIO[0]),
        (LONG, ratio > _RATIO[1]),
        (COPIED, copied > _COPIED),
        (LANGUAGE, languages.is_other(text, language)),
    ):
        flags += [reason] * holds
    return Paraphrase(tuple(flags), lost, added, round(ratio, 4), round(copied, 4))


class _Page:
    """A document's sentences and words, made once for all its pairs."""

    def __init__(self, document: Document):
        self._mentions = mentions.find(document.whole)
        self._plain = f" {normalise(document.whole)} "
        self._all = frozenset(wording.stems(document.whole))
        self._title = frozenset(wording.stems(document.title))
        self._sentences = sentences.split(document.text)
        self._stems = [frozenset(wording.stems(sentence)) for sentence in self._sentences]
        self._plains = [f" {normalise(sentence)} " for sentence in self._sentences]
        counts = collections.Counter(stem for stems in self._stems for stem in stems)
        self._weight = {
            stem: math.log(1 + len(self._stems) / count) for stem, count in counts.items()
        }

    def against(self, pair: Pair, names: bool) -> Iterable[str]:
        """Reasons against an answer, given the document."""
        answer = pair.answer
        if self._is_judgement(pair):
            answer = _JUDGEMENT.sub("", answer).strip()
        if not answer:
            return
        own, asked = mentions.find(answer), mentions.find(pair.question)
        dates, numbers = self._mentions.dates | asked.dates, self._mentions.numbers | asked.numbers
        if any(
            not mentions.has_date(date, dates)
            for date in own.dates
            if date[1]
            or date[0] is None
            or not mentions.has_number(date[0], self._mentions.numbers)
        ):
            yield DATE
        if any(not mentions.has_number(number, numbers) for number in own.numbers):
            yield NUMBER
        plain = normalise(answer)
        if f" {plain} " in self._plain:
            yield from self._elsewhere(pair, [i for i, s in enumerate(self._plains) if plain in s])
        else:
            yield from self._unsupported(pair, answer, names)
        if not _fits(pair.question, answer, own):
            yield KIND
        question = f" {normalise(pair.question)} "
        repeats = f" {plain} " in question and not _MAY_REPEAT.search(question)
        if repeats and wording.stems(answer):
            yield ITSELF

    def _is_judgement(self, pair: Pair) -> bool:
        first = sentences.words(pair.question)[:1]
        return bool(first and first[0] not in wording.QUESTION and _JUDGEMENT.match(pair.answer))

    def _unsupported(self, pair: Pair, answer: str, names: bool) -> Iterable[str]:
        """What an answer says that is not word for word in the document."""
        asked = frozenset(wording.stems(pair.question))
        wanted = [stem for stem in dict.fromkeys(wording.stems(answer)) if stem not in asked]
        missing = [stem for stem in wanted if not self._knows(stem)]
        if not wanted:
            if not wording.stems(answer) and normalise(answer):
                yield ANSWER  # of small words alone, and not there
            return
        if len(missing) > _MISSING * len(wanted):
            yield ANSWER
        if names and any(self._is_strange(name, asked) for name in mentions.entities(answer)):
            yield ENTITY
        windows = [
            sum(stem in here | after for stem in wanted)
            for here, after in zip(self._stems, [*self._stems[1:], frozenset()], strict=True)
        ]
        if pair.kind != "complex" and windows and max(windows) < _TOGETHER * len(wanted):
            yield ELSEWHERE
        elif windows:
            best = max(windows)
            yield from self._elsewhere(
                pair, [j for i, n in enumerate(windows) if n == best for j in (i, i + 1)]
            )

    def _knows(self, stem: str) -> bool:
        return stem in self._all or (
            stem.isdigit() and mentions.has_number(float(stem), self._mentions.numbers)
        )

    def _is_strange(self, name: str, asked: frozenset[str]) -> bool:
        return any(stem not in asked and not self._knows(stem) for stem in wording.stems(name))

    def _elsewhere(self, pair: Pair, places: Sequence[int]) -> Iterable[str]:
        """Whether the question is about other sentences than those with the answer."""
        asked = frozenset(wording.stems(pair.question)) - frozenset(wording.stems(pair.answer))
        asked = (asked & self._weight.keys()) - self._title  # every sentence is about the title
        places = [i for i in places if i < len(self._stems)]
        if not asked or not places or pair.kind == "complex":
            return
        scores = [self._agreement(asked, i) for i in range(len(self._stems))]
        if max(scores[i] for i in places) < _BELONGS * max(scores):
            yield ELSEWHERE

    def _agreement(self, asked: Iterable[str], i: int) -> float:
        """How much of a question is in a sentence, or less surely in one beside it."""
        near = frozenset().union(*self._stems[max(0, i - 1) : i], *self._stems[i + 1 : i + 2])
        share = dict.fromkeys(near, _NEIGHBOUR) | dict.fromkeys(self._stems[i], 1.0)
        return sum(self._weight[stem] * share.get(stem, 0.0) for stem in asked)


def _form(pair: Pair, language: str) -> Iterable[str]:
    """Reasons that need no document."""
    sizes = [len(text.split()) for text in (pair.question, pair.answer)]
    if not all(0 < size <= _MOST_WORDS for size in sizes):
        yield LENGTH
    if languages.is_other(pair.question, language):
        yield LANGUAGE


def _repeats(pair: Pair, earlier: Sequence[Pair]) -> Iterable[str]:
    ours = _asked(pair.question)
    for other in earlier:
        theirs = _asked(other.question)
        same_answer = normalise(pair.answer) == normalise(other.answer)
        alike = len(ours & theirs) >= _SAME * len(ours | theirs)
        if ours == theirs or (same_answer and alike):
            yield REPEAT
            return


def _asked(question: str) -> frozenset[str]:
    wh = {f"{word}?" for word in sentences.words(question) if word in wording.QUESTION}
    return frozenset(wording.stems(question)) | wh


def _fits(question: str, answer: str, own: mentions.Mentions) -> bool:
    """Whether an answer is of the kind that a question word asks for."""
    asked = " ".join(sentences.words(question))
    if asked.startswith("how many "):
        return bool(own.numbers) or not mentions.entities(f"It is {answer}")
    return not (re.match(r"who\b", asked) and own.numbers and re.fullmatch(r"[\d\W]+", answer))


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]
