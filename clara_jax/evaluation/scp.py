"""How well questions are answered from memories, beside no document and the full text.

Every question of an SCP record is one example. Under each condition the prompt is the same but for
what stands for the document, and the assistant's turn is opened with the question, so that the
cross-entropies of the answers compare:

    memory               the compressed document, read by the trained generator
    no_document          nothing, read by the plain base
    full_text            the document's text, read by the plain base
    no_document_trained  nothing, read by the trained generator: how much of the gain is only form
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clara_jax import api
from clara_jax.data import sources
from clara_jax.data.records import ScpRecord, digest
from clara_jax.errors import UserError
from clara_jax.evaluation import asking, driver, results
from clara_jax.evaluation.answer_losses import Labelled, labelled_rows
from clara_jax.evaluation.driver import Condition, Example, Result
from clara_jax.evaluation.journal import Journal
from clara_jax.inference.generate import Prompt
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model

CONDITIONS = {
    "memory": Condition("all", "memory", "generator"),
    "no_document": Condition("none", "text", None),
    "full_text": Condition("all", "text", None),
    "no_document_trained": Condition("none", "text", "generator"),
}


def evaluate(
    model: Model,
    trees: Trees,
    source: sources.Source[ScpRecord] | Sequence[ScpRecord],
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Evaluates on the qa records of a source; `model.config.eval` says how many and how.

    Args:
        model: the model.
        trees: its weights.
        source: records; those that are not qa, or are read as text, are passed over.
        journal: keeps what is finished, for a run that is killed.

    Returns:
        `driver.Result` as a dictionary, documents being drawn for the intervals.

    Raises:
        UserError: the source has no qa record, or there is no such condition.
    """
    options = model.config.eval
    begun = time.monotonic()
    records = list(itertools.islice(qa_records(source), options.records or None))
    if not records:
        raise UserError(f"{source!r}: there is no qa record to evaluate on")
    names = _names(model, trees)
    questions = sum(len(record.questions) for record in records)
    # Losses have a row for each record and, where it has several, for each question but one.
    report, close = driver.reporter(len(records) + len(names) * 2 * questions)
    compressed = api.compress(model, trees, [r.document for r in records], options.batch, report)

    def examples(condition: Condition) -> list[Example]:
        pairs = zip(records, compressed.memories, strict=True)
        return [_example(model, condition, *pair) for pair in pairs]

    asked = [
        (record, digest(record.document).hex()[:12], *pair)
        for record in records
        for pair in zip(record.questions, record.accepted, strict=True)
    ]
    _, documents, _, accepted = zip(*asked, strict=True)
    conditions = {name: CONDITIONS[name] for name in names}
    answered = driver.ask(model, trees, conditions, examples, accepted, documents, journal, report)
    close()
    return Result(
        step=model.step,
        records=len(records),
        questions=questions,
        documents_cut=compressed.cut,
        memory_tokens=len(model.extra.memory),
        compression_rate=compressed.rate,
        conditions=answered.conditions,
        intervals=answered.intervals,
        gap_closed=results.gaps(answered.conditions, ("no_document", "memory", "full_text")),
        seconds=time.monotonic() - begun,
        predictions=[
            {
                "origin": record.origin,
                "document": document,
                "question": question,
                "answer": accepted[0],
                "answers": list(accepted),
                **{name: answers[i] for name, answers in answered.answers.items()},
            }
            for i, (record, document, question, accepted) in enumerate(asked)
        ],
    ).as_dict()


def _names(model: Model, trees: Trees) -> list[str]:
    """The conditions that take place."""
    options = model.config.eval
    if options.conditions:
        return driver.named(options.conditions, tuple(CONDITIONS))
    if not options.baselines:
        return ["memory"]
    # Without adapters no_document_trained is no_document.
    return [n for n in CONDITIONS if n != "no_document_trained" or "generator" in trees]


def _example(
    model: Model, condition: Condition, record: ScpRecord, memory_MD: np.ndarray
) -> Example:
    given = memory_MD[None] if condition.form == "memory" else record.document
    if condition.documents == "none":
        given = ""

    def prompts() -> tuple[list[Prompt], list[Labelled]]:
        asked = [asking.prompt(model, question, given)[0] for question in record.questions]
        return asked, labelled_rows(model, record, given)

    return Example((record.document, record.questions, record.accepted), prompts)


def qa_records(source: sources.Source[ScpRecord] | Sequence[ScpRecord]) -> Iterator[ScpRecord]:
    """The records that have questions about a document that is compressed."""
    for i in range(len(source)):
        record = source[i]
        if record.data_type == "qa" and record.compress:
            yield record
