"""What looking inside a model starts from: documents, and facts about them to ask for."""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Sequence

from clara_jax.data import sources
from clara_jax.data.records import QaRecord, ScpRecord
from clara_jax.errors import UserError
from clara_jax.evaluation.asking import occurrence, place
from clara_jax.runs.setup import Loaded, Model
from clara_jax.stages import STAGES

_KINDS = 12  # most questions that are shown beside each other


@dataclasses.dataclass(frozen=True)
class Fact:
    """A question about a document."""

    row: int  # the document's position
    question: str  # the question
    answer: str  # its answer
    # where in the document the answer's first word begins, from 0 to 1; None: nowhere
    place: float | None


@dataclasses.dataclass(frozen=True)
class Given:
    """What is looked at."""

    documents: Sequence[str]  # distinct texts
    facts: Sequence[Fact] = ()  # what is asked about them; empty for a file of texts
    # questions with their gold documents, as the run's stage asks; empty likewise
    questions: Sequence[QaRecord] = ()
    other: Loaded | None = None  # a second model, to compare with; None: there is none
    names: Sequence[str] = ("",)  # of the models, one or two
    replace: str = "mean"  # `mean` or `zero`, what stands for a slot that is taken away


def read(model: Model, names: str, count: int) -> Given:
    """The first records of sources.

    Args:
        model: the model; after scp it is asked as in scp, else as in the later stages.
        names: sources as of `config.eval.sources`.
        count: most records of either form.

    Raises:
        UserError: a source cannot be read, or holds no question with a gold document.
    """
    by_document: dict[str, dict[str, str]] = {}
    for record in itertools.islice(_scp_records(sources.open_sources(names)), count):
        pairs = zip(record.questions, record.answers, strict=True)
        by_document.setdefault(record.document, {}).update(pairs)
    if not by_document:
        raise UserError(f"{names}: no question about a document; give records of qa")
    documents, facts, questions = list(by_document), [], []
    for row, (document, pairs) in enumerate(by_document.items()):
        own = [Fact(row, q, answer, place(document, answer)) for q, answer in pairs.items()]
        one = own[row % len(own)]  # of each document another one
        questions.append(QaRecord(one.question, (document,), (one.answer,), (0,), ""))
        facts += own
    if STAGES[model.config.stage].records != "scp":
        source = sources.open_sources(names, form="qa")
        opened = (source[i] for i in range(len(source)))
        questions = list(itertools.islice((q for q in opened if q.gold), count))
    return Given(documents, facts, questions)


def _scp_records(source: sources.Source[ScpRecord]) -> Iterator[ScpRecord]:
    for i in range(len(source)):
        record = source[i]
        if record.data_type == "qa" and record.questions:
            yield record


def kinds(facts: Sequence[Fact]) -> list[str]:
    """Questions that different documents answer differently, in alphabetical order.

    None where there are too many of them to be shown beside each other.
    """
    answers: dict[str, set[str]] = {}
    for fact in facts:
        answers.setdefault(fact.question, set()).add(fact.answer)
    recur = sorted(question for question, own in answers.items() if len(own) > 1)
    return recur if len(recur) <= _KINDS else []


def changed(given: Given, seed: int = 0) -> list[tuple[Fact, str, str]]:
    """Facts with another document, in which they are not true any more.

    The answer is replaced wherever it stands by that of another fact: one to the same question
    where the question recurs, else one of the same `form`.

    Args:
        given: documents and facts.
        seed: of the choice.

    Returns:
        Fact, the new answer and the new document, of those facts whose answer the document holds.
    """
    rng, out = random.Random(seed), []
    pools: dict[str, list[str]] = {}
    recur = set(kinds(given.facts))
    for fact in given.facts:
        for key in (fact.question, form(fact.answer)):
            pools.setdefault(key, []).append(fact.answer)
    for fact in given.facts:
        document = given.documents[fact.row]
        key = fact.question if fact.question in recur else form(fact.answer)
        others = [a for a in dict.fromkeys(pools[key]) if not occurrence(a).search(document)]
        if fact.place is not None and others:
            new = rng.choice(others)
            text = occurrence(fact.answer).sub(lambda _, new=new: new, document)
            out.append((fact, new, text))
    return out


def form(answer: str) -> str:
    """Whether an answer holds a digit, else whether it begins with a capital."""
    if re.search(r"\d", answer):
        return "number"
    return "name" if answer[:1].isupper() else "words"
